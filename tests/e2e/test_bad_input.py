"""What a user sees for bad input: one line that names file and key, exit code 1, nothing half-written."""

import json
import shutil

import pytest
from config_files import change
from programs import run


@pytest.fixture
def broken(world, tmp_path):
    """A copy of the configs in which a test may break something."""
    for name in ("model.json", "data.json", "sample.json"):
        shutil.copy(world / name, tmp_path / name)
    (tmp_path / "model.pt").touch()
    return tmp_path


def train(folder, *flags, ranks=1):
    files = ["--mm-data", folder / "data.json", "--mm-model", folder / "model.json", "--save", folder / "run"]
    return run("pretrain_opensoraplan.py", [*files, "--train-iters", 2, "--lr", 1e-3, *flags], ranks)


def only_error(result, folder) -> str:
    """The one line of stderr; also checks the exit code, and that no checkpoint was begun."""
    assert result.returncode == 1, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert not (folder / "run").exists()
    return lines[0]


def test_an_unknown_key(broken):
    change(broken / "model.json", "predictor.num_headz", 2)
    line = only_error(train(broken), broken)
    assert "model.json:" in line and "predictor.num_headz: unknown key; did you mean 'num_heads'?" in line


def test_a_missing_weight_file(broken):
    change(broken / "model.json", "ae.from_pretrained", str(broken / "none.ckpt"))
    line = only_error(train(broken), broken)
    assert "model.json:" in line and "ae.from_pretrained" in line and "none.ckpt: no such file" in line


def test_heads_that_do_not_divide(broken):
    line = only_error(train(broken, "--tensor-model-parallel-size", 4), broken)
    assert (
        "model.json:" in line and "predictor.num_heads: 2 heads do not divide by --tensor-model-parallel-size 4" in line
    )


def test_pipeline_parallelism(broken):
    line = only_error(train(broken, "--pipeline-model-parallel-size", 2), broken)
    assert "--pipeline-model-parallel-size 2: must be 1; the long skips" in line


def test_a_list_of_which_nothing_is_left(broken, world):
    change(broken / "data.json", "dataset_param.preprocess_parameters.min_hxw", 10**9)
    line = only_error(train(broken), broken)
    assert str(world / "data.txt") in line
    assert "res_too_small" in line and "6" in line


def test_a_checkpoint_with_a_shard_missing(broken, world):
    run_directory = broken / "checkpoint"
    flags = ["--mm-data", world / "data.json", "--mm-model", world / "model.json", "--train-iters", 1, "--lr", 1e-3]
    layout = ["--tensor-model-parallel-size", 2]
    result = run("pretrain_opensoraplan.py", [*flags, *layout, "--save", run_directory], ranks=2)
    assert result.returncode == 0, result.stderr
    (run_directory / "iter_0000001" / "mp_rank_01" / "model_optim_rng.pt").unlink()
    result = run(
        "inference.py", ["--mm-model", world / "sample.json", "--load", run_directory, "--save-path", broken / "out"]
    )
    line = only_error(result, broken)
    assert "mp_rank_01/model_optim_rng.pt: missing" in line
    assert not (broken / "out").exists()


def test_a_file_that_is_no_json(broken):
    (broken / "data.json").write_text('{"dataset_param": {\n  "basic_parameters" [\n')
    line = only_error(train(broken), broken)
    assert "data.json:2 dataset_param.basic_parameters: expected ':', found '['" in line


def test_on_several_ranks_the_line_is_said_once(broken):
    change(broken / "data.json", "dataset_param.preprocess_parameters.min_hxw", 10**9)
    result = train(broken, "--tensor-model-parallel-size", 2, ranks=2)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, said
    assert json.dumps(said[0]).count("res_too_small") >= 1


def test_help_explains(broken):
    for program in ("pretrain_opensoraplan.py", "inference.py"):
        result = run(program, ["--help"])
        assert result.returncode == 0
        assert "--mm-model" in result.stdout and "ranks that share each layer" in result.stdout
