"""The quickstart's path on two simulated NPUs (TP=2, sequence parallel) against one process on the CPU."""

import argparse
import json
import math
from pathlib import Path

import cases_programs
import config_files
import numpy as np
import programs
import pytest
import torch
from tiny_encoders import write_encoders

import mindspeed_mm as mm
from mindspeed_mm.sampling.writer import write_video
from mindspeed_mm.weights import merge_checkpoint

RELATIVE = 1e-5
STEPS, SAVED = 4, 2
FLAGS = [
    "--lr", 1e-3, "--save-interval", SAVED, "--log-interval", 1, "--optimizer-selection", "fused_ema_adamw",
    "--clip_grad_ema_decay", 0.99, "--model_custom_precision", "--selective_recom", "--recom_ffn_layers", 2,
    "--global-batch-size", 2,
    # Adam divides each gradient by its size: with a small epsilon it turns the rounding of gradients that are almost zero
    # into moves of full length, by 1.5e-5 on some CPUs. With this one, weights differ by 8e-7.
    "--adam-eps", 1e-4,
]  # fmt: skip
LAYOUT = ["--tensor-model-parallel-size", 2, "--sequence-parallel", "--use-distributed-optimizer"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with clips, encoders, an autoencoder and the JSONs, in fp32; in bf16 as model_bf16.json."""
    folder = tmp_path_factory.mktemp("world")
    rows = [write_clip(folder, number) for number in range(8)]
    (folder / "annotations.json").write_text(json.dumps(rows))
    (folder / "data.txt").write_text(f"{folder},{folder / 'annotations.json'}\n")
    write_encoders(folder, [row["cap"] for row in rows])
    torch.manual_seed(0)
    torch.save(mm.build_autoencoder(config_files.AUTOENCODER).state_dict(), folder / "vae.pt")
    (folder / "data.json").write_text(json.dumps(config_files.data_block(folder)))
    model = config_files.model_block(folder)
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "model_bf16.json").write_text(json.dumps({**model, "weight_dtype": "bf16"}))
    (folder / "sample.json").write_text(json.dumps(config_files.sample_block(folder)))
    return folder


def write_clip(folder: Path, number: int) -> dict:
    """A bright square that moves to the right; returns its row of the annotations."""
    frames = np.full((9, 32, 32, 3), 20 * number, dtype=np.uint8)
    for at, frame in enumerate(frames):
        frame[8 + number : 20, 2 * at : 2 * at + 9, number % 3] = 250
    write_video(frames, folder / f"{number}.mp4", 8)
    resolution = {"height": 32, "width": 32}
    caption = f"square number {number} moves to the right"
    return {"path": f"{number}.mp4", "cap": caption, "num_frames": 9, "fps": 8, "resolution": resolution}


def flags(world: Path, run: Path, *more, model: str = "model.json") -> list[str]:
    files = ["--mm-data", world / "data.json", "--mm-model", world / model, "--save", run, "--load", run]
    return [str(flag) for flag in (*files, *FLAGS, *more)]


def train_on_the_cpu(world: Path, run: Path, steps: int = STEPS, **options) -> None:
    result = programs.run("pretrain_opensoraplan.py", flags(world, run, "--train-iters", steps, **options))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def on_the_cpu(world) -> Path:
    """A run of all steps on one CPU process."""
    train_on_the_cpu(world, world / "cpu")
    return world / "cpu"


@pytest.fixture(scope="module")
def on_npus(npu, world) -> Path:
    """A run on two NPUs that ended, and was resumed, in the middle."""
    run = world / "npu"
    for steps in (SAVED, STEPS):
        counts = npu.run(cases_programs.program, "train", flags(world, run, *LAYOUT, "--train-iters", steps), ranks=2)
        for name in ("aclnnFlashAttentionScore", "aclnnFlashAttentionScoreGrad", "aclnnRmsNorm", "aclnnApplyAdamWV2"):
            assert all(rank[name] > 0 for rank in counts), name
    return run


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(found: list[dict], wanted: list[dict], tolerance: float) -> None:
    assert [row["iteration"] for row in found] == [row["iteration"] for row in wanted] == list(range(1, STEPS + 1))
    for mine, theirs in zip(found, wanted, strict=True):
        for name in ("loss", "gradient_norm"):
            assert math.isclose(mine[name], theirs[name], rel_tol=tolerance), (mine["iteration"], name)


def test_training_and_resuming_give_the_numbers_of_the_cpu(on_npus, on_the_cpu):
    assert_equal_runs(metrics(on_npus), metrics(on_the_cpu), RELATIVE)


@pytest.mark.parametrize("ema", [False, True], ids=["live", "ema"])
def test_merged_weights_are_the_cpus(on_npus, on_the_cpu, tmp_path, ema):
    found, wanted = (
        torch.load(merge_checkpoint(str(run), str(tmp_path / run.name), ema), weights_only=True)
        for run in (on_npus, on_the_cpu)
    )
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        assert (found[name] - weight).abs().max() <= RELATIVE * weight.abs().max().clamp_min(1e-2), name


def test_the_checkpoint_is_megatrons(on_npus):
    assert (on_npus / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(on_npus / f"iter_{STEPS:07d}" / "mp_rank_01" / "model_optim_rng.pt", weights_only=True)
    assert state["model"]["transformer_blocks.0.0.attn1.to_q.weight"].shape == (16, 32)
    assert all(tensor.device.type == "cpu" for tensor in state["model"].values() if tensor is not None)


def test_samples_are_the_cpus(npu, on_npus, world):
    merge_checkpoint(str(on_npus), str(world), False)  # where sample.json looks
    first, second = npu.run(cases_programs.sample, world / "sample.json", "a moving square", 3, ranks=2)
    assert torch.equal(first, second)
    pipeline = mm.T2VPipeline.from_config(world / "sample.json")
    wanted = cases_programs.video(pipeline, "a moving square", 3)
    assert wanted.shape == (1, 3, 9, 32, 32)
    assert (first - wanted).abs().max() < RELATIVE * wanted.abs().max()


def test_the_sampling_program_writes_its_file(npu, on_npus, world, tmp_path):
    more = ["--mm-model", world / "sample.json", "--load", on_npus, "--save-path", tmp_path, "--seed", 3, *LAYOUT[:3]]
    npu.run(cases_programs.program, "sample", [str(flag) for flag in more], ranks=2)
    assert (tmp_path / "video_000000.mp4").stat().st_size > 500


def test_bf16(npu, world):
    """fp32 main weights and reductions, everything else in bf16: the losses of the CPU but for its rounding."""
    runs = {device: world / f"{device}_bf16" for device in ("cpu", "npu")}
    steps = 2  # the second has weights that were updated
    train_on_the_cpu(world, runs["cpu"], steps, model="model_bf16.json")
    more = flags(world, runs["npu"], *LAYOUT, "--train-iters", steps, model="model_bf16.json")
    npu.run(cases_programs.program, "train", more, ranks=2)
    found, wanted = (metrics(runs[device]) for device in ("npu", "cpu"))
    for mine, theirs in zip(found, wanted, strict=True):
        assert math.isclose(mine["loss"], theirs["loss"], rel_tol=2e-2), mine["iteration"]
