"""All that surrounds a step holds for the autoencoder: signals, hangs, reports, evaluation, checkpoints, folders."""

import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch
from autoencoder_world import flags, trainer_of, write_world
from rank_runs import At
from ranks import forked_from_server, log_lines, run_ranks

from mindspeed_mm.checkpoint.lock import RunLock
from mindspeed_mm.stopping import Reason, StopRequest
from mindspeed_mm.training.heartbeat import EXIT_CODE


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("autoencoder_runs"))


def events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ended(world, step: int, *more) -> tuple:
    """The last rank gets SIGTERM in a step, or before the first one (0): iteration, lines, and why the run ended."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not as under nohup
    trainer = trainer_of(world, "--train-iters", 50, *more)
    last = trainer.parallel.rank == trainer.parallel.world_size - 1
    with log_lines() as lines, StopRequest(says=False) as request:
        if last and step == 0:
            signal.raise_signal(signal.SIGTERM)
        elif last:
            trainer.state.loader = At(trainer.state.loader, step, lambda: signal.raise_signal(signal.SIGTERM))
        ending = trainer.fit(request)
    return trainer.state.iteration, lines, ending


def test_a_signal_to_one_rank_saves_exports_and_ends_all(world, tmp_path):
    more = ("--save", tmp_path, "--export", tmp_path / "vae.pt", "--async-save")
    for iteration, lines, ending in run_ranks(ended, 2, world, 2, *more):
        assert (iteration, ending) == (2, Reason("SIGTERM"))
        assert "SIGTERM: saving and ending at iteration 2" in lines
        assert f"saved iteration 2 to {tmp_path}" in lines
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert (tmp_path / "vae.pt").is_file()


def test_a_signal_before_the_first_step_writes_nothing(world, tmp_path):
    more = ("--save", tmp_path, "--export", tmp_path / "vae.pt")
    ((iteration, lines, ending),) = run_ranks(ended, 1, world, 0, *more)
    assert (iteration, ending) == (0, Reason("SIGTERM"))
    assert lines[-1] == "SIGTERM: ending before the first step; there is nothing to save"
    assert not (tmp_path / "latest_checkpointed_iteration.txt").exists() and not (tmp_path / "vae.pt").exists()


def fitted(world, *more) -> tuple:
    """A whole run on this rank: main weights, lines of the log, and why it ended."""
    trainer = trainer_of(world, *more)
    with log_lines() as lines:
        ending = trainer.fit(StopRequest())
    weights = {shard.name: shard.main.detach().clone() for shard in trainer.step.engine.main_shards()}
    return weights, lines, ending


def same(mine: dict, theirs: dict) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_planned_ends_reports_evaluation_and_another_format_change_no_weight(world, tmp_path):
    """One straight run, and one that ends by plan, is evaluated and continues from dist_checkpointing's format."""
    ((straight, lines, _),) = run_ranks(fitted, 1, world, "--train-iters", 3, "--log-interval", 1)
    assert [line.split(" | ")[0] for line in lines if line.startswith("iteration ")] == [
        f"iteration {n}/3" for n in (1, 2, 3)
    ]
    (tmp_path / "run").mkdir()
    save = tmp_path / "run"
    keep = ("--train-iters", 3, "--save", save, "--load", save, "--ckpt-format", "torch_dist", "--exit-interval", 2)
    more = ("--eval-data", world / "data.txt", "--eval-iters", 2, "--eval-interval", 2, "--log-interval", 1)
    ((_, lines, ending),) = run_ranks(fitted, 1, world, *keep, *more)
    assert ending == Reason("--exit-interval")
    ((resumed, _, ending),) = run_ranks(fitted, 1, world, *keep, *more)
    assert ending is None and same(resumed, straight)
    steps = [event for event in events(save) if event["kind"] == "step"]
    assert [step["iteration"] for step in steps] == [1, 2, 3]
    for step in steps:
        parts = step["reconstruction"] + 1e-6 * step["kl"] + 0.1 * step["wavelet"]
        assert step["loss"] == pytest.approx(parts, rel=1e-5)
        assert step["samples_per_second"] > 0 and step["tokens_per_second"] is None and step["tflops"] is None
    logged = next(line for line in lines if line.startswith("iteration 1/3"))
    for field in ("loss: ", "reconstruction: ", "kl: ", "wavelet: ", "grad norm: ", "samples/s: ", "ETA: "):
        assert field in logged
    assert "tokens/s" not in logged and "MFU" not in logged
    values = [event for event in events(save) if event["kind"] == "values"]
    assert [value["iteration"] for value in values] == [2, 3]
    for value in values:
        assert value.keys() == {"kind", "iteration", "eval PSNR", "eval SSIM", "ema eval PSNR", "ema eval SSIM"}
        assert 0 < value["eval PSNR"] < 60 and -1 < value["eval SSIM"] < 1
    assert (save / "data" / "dropped.json").is_file() and (save / "data" / "bad_samples.json").is_file()


def test_two_ranks_evaluate_the_same_clips_as_one(world, tmp_path):
    found = []
    for ranks, iterations in ((1, 4), (2, 2)):
        save = tmp_path / str(ranks)
        more = ("--eval-data", world / "data.txt", "--eval-iters", iterations, "--weights", weights_of(world))
        run_ranks(fitted, ranks, world, "--train-iters", 1, "--save", save, *more, "--lr", "1e-12")
        (event,) = [event for event in events(save) if event.pop("kind") == "values"]
        found.append(event)
    assert found[0].keys() > {"eval PSNR", "ema eval SSIM"}
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def weights_of(world):
    """A file of fresh weights."""
    file = world / "fresh.pt"
    if not file.exists():
        run_ranks(fitted, 1, world, "--train-iters", 1, "--export", file)
    return file


def test_a_broken_clip_is_replaced_named_and_counted(world, tmp_path):
    for file in world.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    for name in ("data.txt", "data.json"):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(str(world), str(tmp_path)))
    for name in ("t5", "clip"):
        shutil.copytree(world / name, tmp_path / name)
    (tmp_path / "3.mp4").write_bytes(b"no video")
    run_ranks(fitted, 1, tmp_path, "--train-iters", 4, "--save", tmp_path / "run")
    bad = json.loads((tmp_path / "run" / "data" / "bad_samples.json").read_text())
    assert [entry["path"] for entry in bad["bad_samples"]] == [str(tmp_path / "3.mp4")] and bad["tried"] == 9


# ------------------------------------------------------------------------------------------------------ whole programs


def program(arguments: list[str], printed: str, prepare=None) -> None:
    """tools/train_wfvae.py in this process, which then ends; its output goes to a file."""
    os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(OMP_NUM_THREADS="1", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    sys.argv = ["train_wfvae.py", *arguments]
    if prepare is not None:
        prepare()
    from mindspeed_mm.cli import training

    training.train_vae()


def hang_in_the_first_step() -> None:
    from mindspeed_mm.training.step import TrainStep

    def stuck_here(self, batches):
        time.sleep(600)

    TrainStep.__call__ = stuck_here


def test_a_hang_ends_the_program_with_its_stacks(world, tmp_path):
    arguments = flags(world, "--train-iters", 3, "--hang-timeout-minutes", 0.1)
    process = forked_from_server(program, arguments, str(tmp_path / "printed"), hang_in_the_first_step)
    process.join(timeout=240)
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == EXIT_CODE, printed
    assert "no progress for 6 s; its threads:" in printed and "in stuck_here" in printed
    assert "last finished the start of iteration 0" in printed


def wait_shortly() -> None:
    from mindspeed_mm.checkpoint import lock

    lock._GRACE_S = 0.5


def test_a_second_run_in_a_folder_is_refused(world, tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    try:
        arguments = flags(world, "--train-iters", 1, "--save", tmp_path)
        process = forked_from_server(program, arguments, str(tmp_path / "printed"), wait_shortly)
        process.join(timeout=240)
    finally:
        lock.release()
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == 1
    assert f"error: {tmp_path}: in use by another run (process {os.getpid()} on" in printed
    assert not (tmp_path / "metrics.jsonl").exists()
