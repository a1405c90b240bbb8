"""What a wheel holds is enough: installed into an environment without the sources, it starts, trains, merges and samples."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import config_files
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mindspeed_mm", "examples", "configs", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("out", "__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """Folder of the programs of an environment that holds the wheel, and sees the packages of this one but no sources."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "seen.pth").write_text("\n".join(site.getsitepackages()))
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "bin"


def run(programs: Path, cwd: Path, *words, timeout_s: float = 600) -> str:
    """Output of a call of mindspeed-mm; its process sees no sources."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RANK", "WORLD_SIZE")}
    result = subprocess.run(
        [programs / "mindspeed-mm", *map(str, words)],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_wheel_holds_the_published_configs_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    published = {name.rpartition("/")[2] for name in names if name.startswith("mindspeed_mm/published/")}
    assert published == {
        "data.json",
        "data.txt",
        "inference_t2v_model1_5.json",
        "model_opensoraplan1_5.json",
        "sora.txt",
        "tools.json",
    }
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mindspeed_mm"}


def smaller(file: Path, block: dict) -> None:
    """A published config with a tiny network's values."""
    file.write_text(json.dumps(block, indent=1))


def test_from_a_wheel_to_a_video(programs, small_model, clips, tmp_path):
    assert "check-data" in run(programs, tmp_path, "--help")
    where = run(
        programs, tmp_path, "config", "init", "run", "--videos", clips, "--annotations", clips / "annotations.json"
    )
    folder = tmp_path / "run"
    assert where.splitlines()[-1] == "run/sample.sh" and (folder / "data.json").is_file()
    assert "ae.base_channels = 160    # line 11" in run(
        programs, folder, "config", "show", "model_opensoraplan1_5.json"
    )
    data = config_files.data_block(small_model)
    data["dataset_param"]["basic_parameters"]["data_path"] = "data.txt"
    data["dataset_param"]["preprocess_parameters"].update(train_fps=8.05, too_long_factor=12.0)
    smaller(folder / "data.json", data)
    smaller(folder / "model_opensoraplan1_5.json", config_files.model_block(small_model))
    sample = config_files.sample_block(small_model)
    sample["predictor"]["from_pretrained"] = "merged/model_ema.pt"
    sample["diffusion"]["num_inference_steps"] = 1
    smaller(folder / "inference_t2v_model1_5.json", {**sample, "save_path": "samples"})
    flags = ["--mm-model", "model_opensoraplan1_5.json", "--mm-data", "data.json", "--lr", "1e-3", "--device", "cpu"]
    flags += ["--train-iters", 2, "--use-ema", "--optimizer-selection", "fused_ema_adamw", "--log-interval", 1]
    printed = run(programs, folder, "train", *flags, "--nproc", 2, "--save", "checkpoints")
    assert "iteration 2/2" in printed.replace("       ", " ")
    merged = run(programs, folder, "merge", "--load", "checkpoints", "--save", "merged", "--ema")
    assert merged.splitlines()[-1] == "merged/model_ema.pt"
    run(programs, folder, "sample", "--mm-model", "inference_t2v_model1_5.json", "--device", "cpu")
    assert [file.name for file in (folder / "samples").glob("*.mp4")] == ["video_000000.mp4"]
