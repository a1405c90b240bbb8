"""Commands that README and docs show are run, in this process and at tiny sizes, in a folder that has the files they name.

A page's sizes and placeholders become small ones (`SMALL`). What is not run here is listed with the reason (`ELSEWHERE`), and
its flags are read by test_commands.py. The tutorial is run there from its first line to its last.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from config_files import data_block, model_block
from documented import PAGES, ROOT, Documented, commands
from hub_server import hub as hub
from sampling_world import write_world

from mindspeed_mm.cli.main import command, programs
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.weights import split_checkpoint

pytestmark = pytest.mark.docs

ELSEWHERE = {
    "train": "starts ranks; the tutorial, tests/e2e and tests/test_launchers.py run it",
    "extract": "starts ranks; the tutorial and tests/e2e/test_data_runs.py run it",
    "sample": "starts ranks; the tutorial and tests/e2e run it, tests/sampling its job",
    "evaluate": "needs ranks, or networks that are downloaded; tests/cli/test_evaluate.py runs it",
    "serve": "serves until it is stopped; tests/serving talks to it",
    "train-vae": "starts ranks; tests/training/test_autoencoder_runs.py runs it",
    "eval-vae": "starts a process group; tests/training/test_autoencoder_runs.py runs it",
    "doctor": "asks other machines and the network; the tutorial and tests/cli/test_doctor.py run it",
}
SMALL = {
    "data.json --global-batch-size 64 --": "data.json --global-batch-size 1 --",
    "check-data --mm-data data.json --global-batch-size 64": "check-data --mm-data data.json --global-batch-size 1",
    "--tensor-model-parallel-size 8": "--tensor-model-parallel-size 2",
    "--samples 100": "--samples 2",
    "--clips 100": "--clips 2",
    "--rank 32": "--rank 1",
    "/data/run1": "run1",
    "/data/merged": "merged",
    "examples/opensoraplan1.5": str(ROOT / "examples" / "opensoraplan1.5"),
    # placeholders of inline commands
    "--load TUNED --base BASE": "--load tuned.pt --base model.pt",
    "--load BASE --adapter DIR": "--load model.pt --adapter lora",
    "--save DIR": "--save made",
    "init DIR": "init made",
    "show FILE": "show model.json",
    "diff A B": "diff model.json again.json",
    "inspect PATH": "inspect run1",
    "plot SAVE": "plot run1/checkpoints",
    "show train": "show train --mm-model model.json --mm-data data.json --lr 1e-4 --train-iters 1 --device cpu",
    # a run that trained an adapter: its folder in PEFT's format stands for it (tests/e2e/test_adapter_run.py has the run)
    "adapter convert --load run1 --ema": "adapter convert --load lora",
    "adapter convert --load run1": "adapter convert --load lora",
}


def is_mention(entry: Documented) -> bool:
    """True for a command in a sentence that leaves out what the program needs."""
    try:
        programs()[entry.program].parse(entry.flags)
    except (ConfigError, SystemExit) as error:
        return not entry.is_whole and "required" in str(error)
    return False


def line_of(entry: Documented) -> str:
    """The command with small sizes."""
    line = " ".join([entry.program, *entry.flags])
    for word, small in SMALL.items():
        line = line.replace(word, small)
    return line


ALL = [
    entry
    for page in PAGES
    if page.name not in ("tutorial.md", "CHANGELOG.md") and not page.name.endswith("_cn.md")
    for entry in commands(page)
    if entry.flags and not any("|" in word for word in entry.flags) and "--help" not in entry.flags
]
RUN = sorted({line_of(entry) for entry in ALL if entry.program not in ELSEWHERE and not is_mention(entry)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the pages name: model.json, data.json, sample.json, model.pt, merged.ckpt, run1, lora, clips."""
    folder = write_world(tmp_path_factory.mktemp("documented"))
    for name, block in (("model", model_block(folder)), ("data", data_block(folder))):
        (folder / f"{name}.json").write_text(json.dumps(block))
    shutil.copy(folder / "model.json", folder / "again.json")
    rows = []
    for number in range(4):
        frames = np.full((9, 32, 32, 3), 40 * number, np.uint8)
        write_video(frames, folder / "videos" / f"{number}.mp4", 8)
        row = {"path": f"{number}.mp4", "cap": "a red circle", "num_frames": 9, "fps": 8}
        rows.append({**row, "resolution": {"height": 32, "width": 32}})
    (folder / "videos.json").write_text(json.dumps(rows))
    (folder / "data.txt").write_text(f"{folder}/videos,{folder}/videos.json\n")
    state = torch.load(folder / "model.pt", weights_only=True)
    tuned = {name: value + 0.01 if name.endswith("to_q.weight") else value for name, value in state.items()}
    torch.save(tuned, folder / "tuned.pt")
    shutil.copy(folder / "vae.pt", folder / "merged.ckpt")
    (folder / "both").mkdir()
    for name in ("model.pt", "model_ema.pt"):
        shutil.copy(folder / "model.pt", folder / "both" / name)
    split_checkpoint(folder / "both", folder / "run1", 2)
    run(f"adapter extract --load {folder}/tuned.pt --base {folder}/model.pt --save {folder}/lora --rank 1")
    row = {
        "kind": "step",
        "iteration": 1,
        "loss": 1.0,
        "gradient_norm": 1.0,
        "clip_threshold": 1.0,
        "learning_rate": 1e-4,
    }
    (folder / "run1" / "metrics.jsonl").write_text(json.dumps({**row, "samples_per_second": 1.0}) + "\n")
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world to work in."""
    copy = tmp_path / "here"
    shutil.copytree(world, copy, copy_function=lambda source, target: Path(target).hardlink_to(source))
    monkeypatch.chdir(copy)
    return copy


def prepare(line: str, here: Path) -> None:
    """What a command takes from the commands before it on its page."""
    if line.startswith("config init run1"):
        shutil.rmtree(here / "run1")
    if " run1/" in line:  # the folder of `config init run1`, with a run in it
        (here / "run1").rename(here / "checkpoints")
        run("config init run1")
        (here / "checkpoints").rename(here / "run1" / "checkpoints")
        shutil.copy(here / "data.json", here / "run1" / "data.json")
    if "merged/" in line:
        run("merge --load run1 --save merged --ema")
    if line.startswith("export --save"):
        run("export --mm-model sample.json --save folder --load run1 --copy-encoders")


def run(line: str) -> None:
    words = line.split()
    try:
        command(words[0])(words[1:], f"mindspeed-mm {words[0]}")
    except SystemExit as ended:
        assert not ended.code, line


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(line, here, hub, capsys):
    prepare(line, here)
    capsys.readouterr()
    run(line)
    out = capsys.readouterr().out
    assert out.strip() or line.startswith("config diff"), "nothing is printed"
    if " --save " in line and "--push" not in line:
        made = Path(line.split(" --save ")[1].split()[0])
        assert made.exists(), f"{line}\n{out}"


def test_every_documented_command_is_run_or_has_a_reason():
    programs = {entry.program for entry in ALL}
    assert len(RUN) > 25 and set(ELSEWHERE) <= programs | {"train-vae", "eval-vae", "extract"}
    for reason in ELSEWHERE.values():
        for word in reason.replace(",", "").split():
            assert not word.startswith("tests/") or (ROOT / word).exists(), word
