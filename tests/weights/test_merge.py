"""Megatron directories: found, checked and merged; the golden TP=2 shards give the golden weights."""

import argparse
import json

import pytest
import torch
from safetensors import safe_open

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.files import layout
from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.schema import build, node_from_python
from mindspeed_mm.weights import load_denoiser, merge_checkpoint

CASE = "predictor/a_base_4x16_div"


def tensors(path):
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("w.")]  # noqa: SIM118
        return {name[2:]: file.get_tensor(name).clone() for name in names}, json.loads(file.metadata()["meta"])


def write_run(root, shards, iteration=7, ema_shards=None, world=None):
    """A Megatron directory of the given state dicts, as a training run leaves it."""
    directory = layout.iteration_directory(root, iteration)
    for rank, shard in enumerate(shards):
        rank_directory = layout.rank_directory(directory, rank)
        rank_directory.mkdir(parents=True)
        args = argparse.Namespace(tensor_model_parallel_size=world or len(shards))
        state = {"model": shard, "args": args, "iteration": iteration, "checkpoint_version": 3.0}
        if ema_shards:
            state["ema_model"] = ema_shards[rank]
        torch.save(state, rank_directory / layout.MODEL_FILE)
    (root / layout.TRACKER).write_text(str(iteration))
    return root


@pytest.fixture
def golden_run(golden, tmp_path):
    shards = []
    for rank in (0, 1):
        values, meta = tensors(golden(f"{CASE}.tp2_rank{rank}.safetensors"))
        shards.append({**values, **dict.fromkeys(meta["none_keys"])})
    return write_run(
        tmp_path / "run",
        shards,
        ema_shards=[{name: None if value is None else 2 * value for name, value in shard.items()} for shard in shards],
    )


@pytest.fixture
def whole(golden):
    return tensors(golden(f"{CASE}.safetensors"))[0]


def test_the_golden_shards_merge_to_the_golden_weights(golden, golden_run, tmp_path, whole):
    merged = torch.load(merge_checkpoint(golden_run, tmp_path / "out"), weights_only=True)
    for name, value in whole.items():
        assert torch.equal(merged[name].to(value.dtype), value), name
    extras = set(merged) - set(whole)
    checked = json.loads(golden("predictor/convert_check.json").read_text())
    assert extras == set(checked["extra_tensor_keys_vs_tp1"])


def test_the_merged_file_loads_with_the_text_tail_dropped_by_name(golden, golden_run, tmp_path, whole, caplog):
    config = build(
        SparseUMMDiTConfig, node_from_python(tensors(golden(f"{CASE}.safetensors"))[1]["config"], "predictor")
    )
    path = merge_checkpoint(golden_run, tmp_path / "out")
    for source in (path, golden_run):  # the merged file, and the directory itself
        network = build_denoiser(config, ParallelContext.current(), seed=1)
        with caplog.at_level("INFO", logger="mindspeed_mm"):
            load_denoiser(network, source)
        state = network.state_dict()
        assert all(torch.equal(state[name], value.float()) for name, value in whole.items())
    assert any("transformer_blocks.2.1.ff_enc.net.2.weight" in record.getMessage() for record in caplog.records)


def test_ema_weights_are_another_file(golden_run, tmp_path, whole):
    path = merge_checkpoint(golden_run, tmp_path / "out", ema=True)
    assert path.name == "model_ema.pt"
    merged = torch.load(path, weights_only=True)
    assert torch.equal(merged["proj_out.weight"], 2 * whole["proj_out.weight"].to(merged["proj_out.weight"].dtype))


def test_replicated_parameters_that_differ_are_taken_from_the_last_rank_with_a_warning(golden_run, tmp_path, caplog):
    file = layout.rank_directory(layout.iteration_directory(golden_run, 7), 0) / layout.MODEL_FILE
    state = torch.load(file, weights_only=False)
    state["model"]["norm_final.weight"] = state["model"]["norm_final.weight"] + 1
    torch.save(state, file)
    with caplog.at_level("WARNING", logger="mindspeed_mm"):
        merged = torch.load(merge_checkpoint(golden_run, tmp_path / "out"), weights_only=True)
    last = torch.load(file.parent.with_name("mp_rank_01") / layout.MODEL_FILE, weights_only=False)["model"]
    assert torch.equal(merged["norm_final.weight"], last["norm_final.weight"])
    assert any(
        "TP ranks hold different values of norm_final.weight" in record.getMessage() for record in caplog.records
    )


def test_a_missing_shard_is_named_and_nothing_is_written(golden_run, tmp_path):
    missing = layout.rank_directory(layout.iteration_directory(golden_run, 7), 1) / layout.MODEL_FILE
    missing.unlink()
    with pytest.raises(CheckpointError, match="mp_rank_01/model_optim_rng.pt: missing"):
        merge_checkpoint(golden_run, tmp_path / "out")
    missing.parent.rmdir()  # now only the launch flags in the other shard tell that there were two
    with pytest.raises(CheckpointError, match="was saved by 2 TP ranks, but .* holds 1 shards"):
        merge_checkpoint(golden_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / layout.TRACKER).write_text("8"), r"names iter_0000008, but .* does not exist"),
        (lambda root: (root / layout.TRACKER).write_text("soon"), r"holds 'soon'; expected an iteration"),
        (
            lambda root: (root / layout.TRACKER).unlink(),
            r"holds neither latest_checkpointed_iteration.txt nor mp_rank_XX",
        ),
    ],
)
def test_a_directory_that_is_no_checkpoint(golden_run, tmp_path, change, message):
    change(golden_run)
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(golden_run, tmp_path / "out")


def test_an_iteration_directory_itself_and_a_release_are_found(golden_run):
    directory = layout.iteration_directory(golden_run, 7)
    assert layout.find(directory) == layout.Location(directory, 7)
    directory.rename(golden_run / "release")
    (golden_run / layout.TRACKER).write_text("release\n")
    assert layout.find(golden_run) == layout.Location(golden_run / "release", None)


def test_no_ema_says_so(golden, tmp_path):
    values, _ = tensors(golden(f"{CASE}.tp2_rank0.safetensors"))
    run = write_run(tmp_path / "run", [values, values])
    with pytest.raises(CheckpointError, match="holds no 'ema_model'; it was trained without --use-ema"):
        merge_checkpoint(run, tmp_path / "out", ema=True)


def test_another_models_names_are_refused(tmp_path):
    run = write_run(tmp_path / "run", [{"layers.0.weight": torch.ones(2)}])
    with pytest.raises(CheckpointError, match="layers.0.weight: no parameter of SparseUMMDiT"):
        merge_checkpoint(run, tmp_path / "out")


def test_weights_that_do_not_fit_are_listed(golden, tmp_path, whole):
    config = build(
        SparseUMMDiTConfig, node_from_python(tensors(golden(f"{CASE}.safetensors"))[1]["config"], "predictor")
    )
    network = build_denoiser(config, ParallelContext.current(), seed=1)
    broken = {**whole, "surely.unknown": torch.ones(1), "proj_out.bias": torch.ones(3)}
    del broken["norm_final.weight"]
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError) as error:
        load_denoiser(network, tmp_path / "broken.pt")
    text = str(error.value)
    assert "1 missing (norm_final.weight)" in text
    assert "1 unknown (surely.unknown)" in text
    assert "1 of another shape (proj_out.bias [3] instead of [32])" in text
