"""--load of what is no run of ours: weights of either dialect, the originals' training checkpoints, --finetune."""

import argparse
import os
from pathlib import Path

import checkpoint_files as originals
import pytest
import torch
from rank_runs import DENOISER, FOUR_BLOCKS, Layout, Run
from ranks import log_lines, run_ranks

from mindspeed_mm.checkpoint import origin
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import layout
from mindspeed_mm.weights import split_checkpoint


@pytest.fixture(scope="module")
def weights() -> tuple[originals.Tensors, originals.Tensors]:
    """Whole weights, and others that stand for their average, with the text tail of Open-Sora Plan's last block."""
    return tuple(
        {name: value * 0.02 for name, value in originals.whole_weights(seed, DENOISER, text_tail=True).items()}
        for seed in (1, 2)
    )


def in_osp(whole, tensor_size: int) -> list[dict]:
    """Shards as Open-Sora Plan saves them, with Megatron's empty states."""
    return [{**shard, "proj_out._extra_state": None} for shard in originals.shards_of(whole, tensor_size)]


def in_mm(whole, tensor_size: int) -> list[dict]:
    """Shards with MindSpeed-MM's names, which has no text tail."""
    tail = [name for name in whole if name.startswith(originals.last_block(DENOISER)) and is_tail(name)]
    rest = {name: value for name, value in whole.items() if name not in tail}
    return [
        {originals.mm_name(name): value for name, value in shard.items()}
        for shard in originals.shards_of(rest, tensor_size)
    ]


def is_tail(name: str) -> bool:
    return any(part in name for part in ("to_add_out", "norm2.norm_enc", "ff_enc"))


def as_run(root: Path, **more) -> None:
    """Add to the files of a directory what a training run saves beside the weights."""
    for file in root.rglob(layout.MODEL_FILE):
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, weights_only=True)
        state["args"] = argparse.Namespace(**{**vars(state["args"]), **more.get("args", {})})
        torch.save({**state, **{key: value for key, value in more.items() if key != "args"}}, file)


def begun(made: Layout, root: Path, settings: dict, ema: bool = True, denoiser=DENOISER) -> dict:
    """A run that has just begun from `root`, on this rank."""
    torch.manual_seed(0)
    options = {"ema": ema, "optimizer": {"lr_decay_style": "linear"}, "denoiser": denoiser}
    run = Run(made, CheckpointConfig(load=str(root), **settings), **options)
    with log_lines() as lines:
        try:
            run.saver.resume(root)
        except CheckpointError as error:
            return {"error": str(error)}
    found = {
        "place": (run.state.iteration, run.state.consumed_samples, run.engine.scheduler.updates, run.stream.seen),
        "network": {name: value.detach().clone() for name, value in run.network.named_parameters()},
        "weights": run.weights(),
        "average": run.averages() if ema else None,
        "moments": sum(float(value.abs().sum()) for values in run.engine.moments().values() for value in values),
        "lines": [line for line in lines if "from" in line and "loaded the denoiser" not in line],
    }
    run.steps(1)
    return found


def holds(found: originals.Tensors, whole: originals.Tensors, rank: int = 0, size: int = 1) -> bool:
    """Whether a TP rank's tensors are the whole ones' part."""
    mine = originals.shards_of(whole, size)[rank]
    return all(torch.equal(value.float(), mine[name].float()) for name, value in found.items())


def osp_release(root: Path, whole) -> Path:
    return originals.write_directory(root, in_osp(whole, 2), iteration=None)


def mm_release(root: Path, whole) -> Path:
    return originals.write_directory(root, in_mm(whole, 1), iteration=None)


def mm_of_4(root: Path, whole) -> Path:
    return originals.write_directory(root, in_mm(whole, 4), iteration=None, rank_suffix="_000")


def by_our_tool(root: Path, whole) -> Path:
    """A checkpoint at iteration 7, for another TP size, in MM's names."""
    source = originals.write_directory(root.with_name("source"), in_osp(whole, 2), in_osp(whole, 2), iteration=7)
    return split_checkpoint(source, root, 4, dialect="MM")


@pytest.mark.parametrize("write", [osp_release, mm_release, mm_of_4, by_our_tool])
@pytest.mark.parametrize(("ranks", "made"), [(1, Layout(micro_batch=4)), (2, Layout(tensor=2, micro_batch=4))], ids=str)
def test_weights_alone_start_at_iteration_0_at_any_tp(tmp_path, weights, write, ranks, made):
    root = write(tmp_path / "load", weights[0])
    for rank, found in enumerate(run_ranks(begun, ranks, made, root, {"load_optimizer": False, "load_rng": False})):
        assert found["place"] == (0, 0, 0, 0) and found["moments"] == 0
        for tensors in (found["network"], found["weights"], found["average"]):
            assert holds(tensors, weights[0], rank, ranks)
        (line,) = found["lines"]
        assert line.startswith(f"began from {root}") and "took the weights; iteration, AdamW's moments" in line


@pytest.mark.parametrize("made", [Layout(micro_batch=4), Layout(micro_batch=2, dtype="bf16")], ids=str)
def test_an_originals_training_checkpoint_continues_with_what_it_holds(tmp_path, weights, made):
    """TP 2 with averages, Megatron's schedule and garbage for an optimizer; `args` count the samples."""
    live, average = weights
    root = originals.write_directory(tmp_path / "load", in_osp(live, 2), in_osp(average, 2), iteration=12)
    flags = {"consumed_train_samples": 48, "iteration": 3, "global_batch_size": 4, "train_iters": 100}
    schedule = {"num_steps": 44, "max_lr": 1e-2, "lr_decay_steps": 400}
    as_run(root, args=flags, opt_param_scheduler=schedule, optimizer={"state": [torch.zeros(3)]}, rng_state=[{"x": 1}])
    (found, *others) = run_ranks(begun, 4 // made.micro_batch, made, root, {})
    assert found["place"] == (12, 48, 11, 48)
    assert holds(found["network"], live) and holds(found["weights"], live) and holds(found["average"], average)
    assert all(holds(other["network"], live) for other in others)
    (line,) = found["lines"]
    assert "continues at iteration 12 from " in line and "took weights, averages, iteration, 48 samples" in line
    assert "learning rate after 11 updates; not there: AdamW's moments" in line


def test_mms_run_saved_without_its_optimizer_continues_by_its_args(tmp_path, weights):
    """MM's launch script gives --no-save-optim --no-save-rng: `args` are all that tells a run from weights."""
    root = originals.write_directory(tmp_path / "load", in_mm(weights[0], 2), iteration=5)
    as_run(root, args={"consumed_train_samples": 10, "iteration": 0, "global_batch_size": 2, "train_iters": 5000})
    (found,) = run_ranks(begun, 1, Layout(micro_batch=4), root, {}, False)
    assert found["place"] == (5, 10, 5, 10) and holds(found["network"], weights[0])


def test_finetune_takes_the_weights_alone_of_anything(tmp_path, weights):
    root = originals.write_directory(tmp_path / "osp", in_osp(weights[0], 2), in_osp(weights[1], 2), iteration=12)
    as_run(root, args={"consumed_train_samples": 48})
    for source, whole in ((root, weights[0]), (tmp_path / "ours", None), (tmp_path / "ours_dist", None)):
        if whole is None:
            form = "torch_dist" if source.name == "ours_dist" else "torch"
            whole = run_ranks(ours, 2, CheckpointConfig(save=str(source), format=form))[0]
        (found,) = run_ranks(begun, 1, Layout(micro_batch=4), source, {"finetune": True})
        assert found["place"] == (0, 0, 0, 0) and found["moments"] == 0
        assert holds(found["network"], whole) and holds(found["average"], whole)
        assert "(--finetune): took the weights" in found["lines"][0]


def ours(checkpoint: CheckpointConfig) -> dict[str, torch.Tensor]:
    """A run of ours with two data ranks that saves; its weights."""
    run = Run(Layout(micro_batch=2), checkpoint)
    run.steps(1)
    run.saver.save()
    return run.weights()


def test_weights_of_another_network_are_named(tmp_path, weights):
    root = originals.write_directory(tmp_path / "load", in_mm(weights[0], 1), iteration=None)
    (found,) = run_ranks(begun, 1, Layout(micro_batch=4), root, {}, True, FOUR_BLOCKS)
    assert "does not fit the network" in found["error"] and "num_layers is" in found["error"]


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_nothing_in_args_is_executed(tmp_path, weights):
    root = originals.write_directory(
        tmp_path / "load", in_osp(weights[0], 1), iteration=5, flags={"evil": Evil(tmp_path / "executed")}
    )
    (found,) = run_ranks(begun, 1, Layout(micro_batch=4), root, {})
    assert "holds more than tensors and plain values" in found["error"]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("state", "name", "iteration", "wanted"),
    [
        ({}, "iter_0000007", 7, (None, 0)),
        ({"iteration": 7}, "iter_0000007", 7, (None, 0)),
        ({"iteration": 0, "rng_state": [1]}, "release", None, (None, 0)),
        ({"iteration": 7, "rng_state": [1]}, "iter_0000007", 7, (7, 7)),
        ({"args": {"consumed_train_samples": 24, "global_batch_size": 4}}, "weights", None, (6, 24)),
        ({"args": {"iteration": 9, "global_batch_size": 4}}, "weights", None, (9, 36)),
        ({"args": {"iteration": True, "lr": 1.0}}, "iter_0000007", 7, (None, 0)),
    ],
    ids=str,
)
def test_what_tells_a_run_from_weights(state, name, iteration, wanted):
    flags = argparse.Namespace(**state.get("args", {"tensor_model_parallel_size": 1}))
    found = origin.of({**state, "args": flags}, layout.Location(Path(name), iteration))
    assert (found.iteration, found.samples) == wanted
    assert not found.has_average
