"""What is wrong with a checkpoint is said in one sentence, and nothing is written; an interruption leaves nothing whole."""

import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from checkpoint_files import files_below, shards_of, whole_weights, write_directory
from safetensors.torch import save_file

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import layout, torch_dist_reader
from mindspeed_mm.files.torch_file import TorchFileWriter
from mindspeed_mm.weights import convert_autoencoder, merge_checkpoint, sources, split_checkpoint

ROOT = Path(__file__).resolve().parents[2]


class Trap:
    """Pickles to a call."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


@pytest.fixture(scope="module")
def weights():
    return whole_weights()


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_directory(tmp_path / "run", shards_of(weights, 2), flags={"seed": 1, "save": "a"})


def shard_file(run, rank):
    return run / "iter_0000007" / f"mp_rank_{rank:02d}" / layout.MODEL_FILE


def trap(run):
    state = torch.load(shard_file(run, 1), weights_only=False)
    torch.save({**state, "more": Trap()}, shard_file(run, 1))


def trap_in_the_flags(run):
    state = torch.load(shard_file(run, 0), weights_only=False)
    state["args"].hook = Trap()
    torch.save(state, shard_file(run, 0))


def cut(run):
    os.truncate(shard_file(run, 1), shard_file(run, 1).stat().st_size - 1000)


def of_another_iteration(run):
    state = torch.load(shard_file(run, 1), weights_only=False)
    torch.save({**state, "iteration": 8}, shard_file(run, 1))


def of_another_run(run):
    state = torch.load(shard_file(run, 1), weights_only=False)
    state["args"].seed = 2
    torch.save(state, shard_file(run, 1))


def of_another_shape(run):
    state = torch.load(shard_file(run, 1), weights_only=False)
    state["model"]["proj_out.bias"] = torch.ones(3)
    torch.save(state, shard_file(run, 1))


def without_a_rank(run):
    shutil.rmtree(shard_file(run, 0).parent)


def without_the_last_rank(run):
    shutil.rmtree(shard_file(run, 1).parent)


ACCIDENTS = [
    (trap, r"mp_rank_01/model_optim_rng.pt: refused, it holds more than tensors and plain values"),
    (trap_in_the_flags, r"mp_rank_00/model_optim_rng.pt: refused"),
    (cut, r"mp_rank_01/model_optim_rng.pt: cannot be read, it is truncated"),
    (of_another_iteration, r"mp_rank_01/model_optim_rng.pt: .*8.*7"),
    (of_another_run, r"was trained with seed 2, mp_rank_00 with 1; the shards are not of one run"),
    (of_another_shape, r"proj_out.bias is \[3\] on TP rank 1, \[16\] on rank 0"),
    (without_a_rank, r"mp_rank_00/model_optim_rng.pt: missing; the other shards are useless without it"),
    (without_the_last_rank, r"was saved by 2 TP ranks, but .* holds 1 shards"),
]


@pytest.mark.parametrize(("accident", "message"), ACCIDENTS, ids=lambda value: getattr(value, "__name__", ""))
def test_nothing_is_written(run, tmp_path, accident, message):
    accident(run)
    before = files_below(tmp_path)
    for convert in (
        lambda: merge_checkpoint(run, tmp_path / "out"),
        lambda: split_checkpoint(run, tmp_path / "out", 4),
        lambda: merge_checkpoint(run, tmp_path / "out", format="safetensors"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            convert()
        assert "\n" not in str(error.value)
    assert files_below(tmp_path) == before  # no output, and the trap was not sprung


def test_flat_files_and_autoencoders_are_as_safe(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"gen_model": Trap()}}, "trap.ckpt")
    for convert in (
        lambda: convert_autoencoder("trap.ckpt", "out/vae.safetensors"),
        lambda: split_checkpoint("trap.ckpt", "out", 2),
    ):
        with pytest.raises(CheckpointError, match="trap.ckpt: refused"):
            convert()
    save_file(weights, "cut.safetensors")
    os.truncate("cut.safetensors", os.stat("cut.safetensors").st_size - 10)
    with pytest.raises(CheckpointError, match="cut.safetensors: truncated: .* ends at byte"):
        split_checkpoint("cut.safetensors", "out", 2)
    os.truncate("cut.safetensors", 100)
    with pytest.raises(CheckpointError, match="cut.safetensors: cannot be read, it is truncated"):
        split_checkpoint("cut.safetensors", "out", 2)
    assert files_below(tmp_path) == ["cut.safetensors", "trap.ckpt"]


def test_an_index_of_torch_dist_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "iter_0000001"
    directory.mkdir()
    (directory / "metadata.json").write_text("{}")
    (directory / torch_dist_reader.INDEX).write_bytes(pickle.dumps(Trap()))
    (tmp_path / layout.TRACKER).write_text("1")
    with pytest.raises(CheckpointError, match=r"\.metadata: refused or damaged \(it names posix.system"):
        merge_checkpoint(tmp_path, tmp_path / "out")
    assert not (tmp_path / "trapped").exists() and not (tmp_path / "out").exists()


def test_flags_of_the_originals_own_classes_are_read(run, weights):
    """Megatron keeps its launch flags beside the weights; objects among them are neither made nor in the way."""
    module = types.ModuleType("megatron.core.enums_of_old")
    module.ModelType = type("ModelType", (), {"__module__": module.__name__, "__qualname__": "ModelType"})
    sys.modules[module.__name__] = module
    try:
        state = torch.load(shard_file(run, 0), weights_only=False)
        state["args"].model_type = module.ModelType()
        torch.save(state, shard_file(run, 0))
    finally:
        del sys.modules[module.__name__]
    opened = sources.open_checkpoint(run)
    assert torch.equal(opened.groups["model"][0]["proj_out.bias"], weights["proj_out.bias"])


class Interruption(BaseException):
    """Like a KeyboardInterrupt, which no `except Exception` sees."""


@pytest.mark.parametrize(
    "failure", [Interruption(), OSError(28, "No space left on device")], ids=["signal", "full disk"]
)
def test_an_interrupted_conversion_leaves_nothing(run, tmp_path, monkeypatch, failure):
    before = files_below(tmp_path)
    written = []
    write = TorchFileWriter.write

    def interrupted(self, piece, chunks):
        written.append(piece)
        if len(written) % 20 == 0:
            raise failure
        write(self, piece, chunks)

    monkeypatch.setattr(TorchFileWriter, "write", interrupted)
    wanted = CheckpointError if isinstance(failure, OSError) else Interruption
    for convert in (
        lambda: merge_checkpoint(run, tmp_path / "out"),
        lambda: split_checkpoint(run, tmp_path / "out", 1),
    ):
        with pytest.raises(wanted):
            convert()
    assert len(written) == 40
    assert files_below(tmp_path) == before


KILLED = """
import os, sys
from mindspeed_mm.files.torch_file import TorchFileWriter
from mindspeed_mm.weights import split_checkpoint
write = TorchFileWriter.write
def last(self, piece, chunks, count=[0]):
    count[0] += 1
    if count[0] == 100:
        os.kill(os.getpid(), 9)
    write(self, piece, chunks)
TorchFileWriter.write = last
split_checkpoint(sys.argv[1], sys.argv[2], 1)
"""


def test_what_a_killed_conversion_leaves_is_no_checkpoint(run, tmp_path, weights):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", KILLED, str(run), str(out)], env=environment)
    assert result.returncode == -9
    assert any(name.endswith(".tmp") for name in files_below(out))  # it had begun
    with pytest.raises(CheckpointError, match="holds neither"):
        sources.open_checkpoint(out)
    split_checkpoint(run, out, 1)  # and it is in nobody's way
    assert not any(name.endswith(".tmp") for name in files_below(out))
    assert torch.equal(sources.open_checkpoint(out).groups["model"][0]["proj_out.bias"], weights["proj_out.bias"])
