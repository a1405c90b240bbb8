"""`mindspeed-mm config`: a new folder holds what was asked for, values have their places, two files are compared."""

import json
import subprocess

import config_files
import pytest

from mindspeed_mm.cli.configs import config
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.schema import build, read_json


def run(capsys, *words) -> tuple[int, str]:
    """Exit code and output."""
    with pytest.raises(SystemExit) as ending:
        config([*map(str, words)])
    printed = capsys.readouterr()
    return ending.value.code, printed.out + printed.err


def test_a_new_folder_holds_the_published_files_with_other_paths(tmp_path, capsys):
    folder = tmp_path / "new"
    paths = ["--vae", "/w/v.ckpt", "--t5", '/w/a "t5"', "--clip", "/w/clip", "--denoiser", "/w/m", "--save", "/out"]
    code, printed = run(capsys, "init", folder, *paths, "--videos", "/v", "--annotations", "/a.json")
    assert code == 0 and printed.splitlines() == [str(file) for file in map(folder.__truediv__, FILES)]
    model = build(TrainModelConfig, read_json(folder / "model_opensoraplan1_5.json"))
    assert (model.ae.from_pretrained, model.text_encoder.from_pretrained) == ("/w/v.ckpt", '/w/a "t5"')
    sample = build(SampleModelConfig, read_json(folder / "inference_t2v_model1_5.json"))
    assert (sample.predictor.from_pretrained, sample.save_path, sample.prompt) == ("/w/m", "/out", "sora.txt")
    data = build(DataConfig, read_json(folder / "data.json")).dataset_param
    assert (data.basic_parameters.data_path, data.tokenizer_config_2.from_pretrained) == ("data.txt", "/w/clip")
    assert (folder / "data.txt").read_text() == "/v,/a.json\n"
    assert "# Number of layers per stage." in (folder / "model_opensoraplan1_5.json").read_text()
    assert "path/to" not in "".join(file.read_text() for file in folder.iterdir())
    for script in folder.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    code, printed = run(capsys, "init", folder)
    assert code == 1 and printed.startswith(f"error: {folder}/model_opensoraplan1_5.json: is there already")


FILES = (
    "model_opensoraplan1_5.json",
    "data.json",
    "inference_t2v_model1_5.json",
    "tools.json",
    "data.txt",
    "sora.txt",
    "train.sh",
    "sample.sh",
)


def test_without_paths_the_files_are_the_published_ones(tmp_path, capsys):
    run(capsys, "init", tmp_path / "new")
    published = "examples/opensoraplan1.5/model_opensoraplan1_5.json"
    code, printed = run(capsys, "diff", tmp_path / "new" / "model_opensoraplan1_5.json", published)
    assert (code, printed) == (0, "")


def test_a_value_is_shown_with_its_place(tmp_path, capsys):
    file = tmp_path / "data.json"
    block = config_files.data_block(tmp_path)
    block["dataset_param"]["use_img_from_vid"] = True
    block["dataset_param"]["enable_text_preprocess"] = False
    file.write_text(json.dumps(block, indent=1))
    code, printed = run(capsys, "show", file)
    assert code == 0 and printed.startswith(f"{file} (data):\n")
    lines = file.read_text().splitlines()
    place = 1 + next(number for number, line in enumerate(lines) if '"enable_text_preprocess"' in line)
    assert f"  dataset_param.enable_text_preprocessing = false    # line {place}\n" in printed
    assert "  dataset_param.use_clean_caption = true    # default\n" in printed
    assert "train_pipeline.video[1] = CenterCropResizeVideo(size=(32, 32)" in printed
    assert "  dataset_param.use_img_from_vid has no effect here: the original stores it" in printed


def test_a_program_is_shown_with_its_flags(tmp_path, capsys):
    folder = config_files.write_all(tmp_path)
    flags = ["--mm-model", folder / "model.json", "--mm-data", folder / "data.json", *config_files.TRAIN_FLAGS]
    code, printed = run(capsys, "show", "train", *flags, "--nproc", "4", "--tensor-model-parallel-size", "2")
    assert code == 0, printed
    for line in (
        "optimizer.lr = 0.001    # --lr",
        "launch.tensor_size = 2    # --tensor-model-parallel-size",
        "global_batch_size = 2    # computed; --global-batch-size sets it",
        "seed = 1234    # default",
    ):
        assert f"  {line}\n" in printed
    assert f"{folder / 'data.json'} (data):" in printed
    code, printed = run(capsys, "show", "train", *flags, "--nproc", "3", "--tensor-model-parallel-size", "2")
    assert code == 1 and printed.startswith("error: 3 processes do not divide")


def test_two_files_are_compared_by_what_they_mean(tmp_path, capsys):
    folder = config_files.write_all(tmp_path)
    other = folder / "other.json"
    other.write_text((folder / "model.json").read_text())
    assert run(capsys, "diff", folder / "model.json", other) == (0, "")
    config_files.change(other, "allow_tf32", False)  # the default
    assert run(capsys, "diff", folder / "model.json", other) == (0, "")
    config_files.change(other, "predictor.dropout", 0.25)
    code, printed = run(capsys, "diff", folder / "model.json", other)
    assert code == 1 and printed.startswith("predictor.dropout: 0.0 (default) -> 0.25 (line ")
    assert run(capsys, "diff", other, folder / "data.json")[1].startswith(f"error: {other} is a model JSON")
    assert run(capsys, "dif", "a", "b")[1].startswith(
        "error: config dif: expected init, show, diff; did you mean 'diff'?"
    )
