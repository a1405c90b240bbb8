"""The loop around the steps: signals, saves that fail, reports, and what happens when nothing moves."""

import json
import os
import resource
import signal
import subprocess
import textwrap
import threading
from pathlib import Path

import pytest
from rank_runs import At, Layout, Run
from ranks import forked_from_server, log_lines, run_ranks

from mindspeed_mm.config.run import CheckpointConfig, ExitConfig, ReportConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.stopping import Reason, StopRequest
from mindspeed_mm.training.heartbeat import EXIT_CODE


def stopped(checkpoint: CheckpointConfig, number: int, exits: ExitConfig | None = None, step: int = 3):
    """The last rank gets a signal in a step, or before the first one: iteration, lines, and why the run ended."""
    run = Run(Layout(micro_batch=2), checkpoint)
    last = run.parallel.rank == run.parallel.world_size - 1
    signal.signal(
        number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    )  # not as under nohup
    before = signal.getsignal(number)
    with log_lines() as lines, StopRequest(says=False) as request:
        if last and step == 0:
            signal.raise_signal(number)
        elif last:
            run.state.loader = At(run.stream, step, lambda: signal.raise_signal(number))
        ending = run.trainer(train_iters=50, exits=exits or ExitConfig()).fit(request)
    assert signal.getsignal(number) is before
    return run.state.iteration, lines, ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_one_rank_saves_and_ends_all(tmp_path, number):
    checkpoint = CheckpointConfig(save=str(tmp_path), in_background=number == signal.SIGTERM)
    for iteration, lines, ending in run_ranks(stopped, 2, checkpoint, number):
        assert iteration == 3
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        assert ending == Reason(name, 130 if number == signal.SIGINT else 0)
        assert f"{name}: saving and ending at iteration 3" in lines
        assert lines[-1] == f"saved iteration 3 to {tmp_path}"
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_without_save_the_log_claims_no_saving():
    for iteration, lines, _ in run_ranks(stopped, 2, CheckpointConfig(), signal.SIGTERM):
        assert iteration == 3
        assert lines[-1] == "SIGTERM: ending at iteration 3; nothing is saved without --save"


def test_a_signal_that_came_while_weights_were_loaded_ends_before_the_first_step(tmp_path):
    checkpoint = CheckpointConfig(save=str(tmp_path))
    for iteration, lines, ending in run_ranks(stopped, 2, checkpoint, signal.SIGTERM, None, 0):
        assert (iteration, ending) == (0, Reason("SIGTERM"))
        assert lines[-1] == "SIGTERM: ending before the first step; there is nothing to save"
    assert not (tmp_path / "latest_checkpointed_iteration.txt").exists()


def test_sigusr1_ahead_of_the_end_leaves_half_of_the_time_to_training(tmp_path):
    exits = ExitConfig(signal_ahead_s=2.0)
    for iteration, lines, ending in run_ranks(stopped, 2, CheckpointConfig(save=str(tmp_path)), signal.SIGUSR1, exits):
        assert ending == Reason("SIGUSR1") and iteration > 3
        assert f"SIGUSR1: saving and ending at iteration {iteration}" in lines


def ended_by_plan(checkpoint: CheckpointConfig, exits: ExitConfig, train_iters: int) -> list:
    """Starts of one run until it is complete: iteration and reason of each end."""
    found = []
    while not found or found[-1][1] is not None:
        run = Run(Layout(micro_batch=4), checkpoint)
        ending = run.trainer(train_iters, exits=exits).fit(StopRequest())
        found.append((run.state.iteration, ending))
    return found


def test_a_run_that_ends_by_plan_goes_on_at_the_next_start(tmp_path):
    def settings(name):
        return CheckpointConfig(save=str(tmp_path / name), load=str(tmp_path / name))

    interval, duration = Reason("--exit-interval"), Reason("--exit-duration-in-mins")
    (found,) = run_ranks(ended_by_plan, 1, settings("interval"), ExitConfig(interval=2), 5)
    assert found == [(2, interval), (4, interval), (5, None)]
    (found,) = run_ranks(ended_by_plan, 1, settings("interval"), ExitConfig(interval=5), 5)
    assert found == [(5, None)]  # at its last step a run is complete
    (found,) = run_ranks(ended_by_plan, 1, settings("minutes"), ExitConfig(minutes=1e-9), 3)
    assert found == [(1, duration), (2, duration), (3, None)]


def full_disk_for_a_while(checkpoint: CheckpointConfig, until_step: int):
    """Files may have 100 kB in steps 3 to `until_step`; with a save every second step."""
    run = Run(Layout(micro_batch=4), checkpoint, ema=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        for thread in threading.enumerate():
            if thread.name == "checkpoint writer":  # the save before is to succeed
                thread.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    to_limit = At(run.stream, 3, fill)
    run.state.loader = At(to_limit, until_step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    with log_lines() as lines:
        try:
            run.trainer(train_iters=6).fit()
        except CheckpointError as error:
            lines.append(f"raised: {error}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return [line for line in lines if "saved" in line]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_ends_the_run_only_at_the_last_save(tmp_path, in_background):
    def settings(name):
        return CheckpointConfig(save=str(tmp_path / name), save_interval=2, in_background=in_background)

    ((first, second, third),) = run_ranks(full_disk_for_a_while, 1, settings("short"), 6)
    assert first.startswith("saved iteration 2") and third.startswith("saved iteration 6")
    assert "the checkpoint of iteration 4 is not saved" in second and "training goes on" in second
    ((*_, last),) = run_ranks(full_disk_for_a_while, 1, settings("long"), 99)
    assert last.startswith("raised: ") and "the checkpoint of iteration 6 is not saved" in last
    assert (tmp_path / "long" / "latest_checkpointed_iteration.txt").read_text() == "2"


def reported(checkpoint: CheckpointConfig, report: ReportConfig) -> list[str]:
    run = Run(Layout(micro_batch=2, clip_decay=0.9), checkpoint)
    with log_lines() as lines:
        run.trainer(4, report).fit()
    return lines


def test_numbers_go_to_the_log_and_the_file(tmp_path):
    report = ReportConfig(log_interval=2, peak_tflops=1e-3)
    first, _ = run_ranks(reported, 2, CheckpointConfig(save=str(tmp_path)), report)
    steps = [line for line in first if line.startswith("iteration ")]
    assert [line.split(" | ")[0] for line in steps] == ["iteration 2/4", "iteration 4/4"]
    for field in ("loss: ", "grad norm: ", "clip threshold: ", "learning rate: ", "samples/s: ", "tokens/s: ",
                  "TFLOP/s: ", "MFU: ", "memory: ", "data wait: ", "ETA: "):  # fmt: skip
        assert field in steps[-1]
    assert [line.split(":")[0] for line in first if "median" in line] == ["slowest rank"] * 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["consumed_samples"] == 16
    assert f"loss: {rows[-1]['loss']:.6E}" in steps[-1]
    assert rows[0]["clip_threshold"] is None and rows[-1]["clip_threshold"] > 0


def run_alone(code: str, printed: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(printed / name, os.O_WRONLY | os.O_CREAT), descriptor)
    exec(compile(code, "alone", "exec"), {})


@pytest.fixture
def alone(tmp_path):
    """Runs a program in a process of its own, which may end as it likes."""

    def run(program: str, timeout_s: float = 120) -> subprocess.CompletedProcess:
        code = "import sys, time\nimport torch.distributed as dist\n" + textwrap.dedent(program)
        process = forked_from_server(run_alone, code, tmp_path)
        process.join(timeout_s)
        texts = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(code, process.exitcode, *texts)

    return run


def test_a_hang_prints_stacks_and_who_is_behind(alone):
    result = alone(
        """
        from mindspeed_mm.parallel.pulse import Pulse
        from mindspeed_mm.training.watchdog import Watchdog

        def stuck_here():
            time.sleep(60)

        store = dist.HashStore()
        for rank in (1, 3, 4, 5):
            Pulse(store, rank, 6).beat("the step", 6 if rank == 1 else 7)
        watchdog = Watchdog(Pulse(store, 0, 6), minutes=1 / 60)
        with watchdog:
            watchdog.beat("the step", 7)
            stuck_here()
        """
    )
    assert result.returncode == EXIT_CODE
    assert "[rank 0] no progress for 1 s; its threads:" in result.stderr
    assert "in stuck_here" in result.stderr
    told = result.stderr[result.stderr.index("[rank 0] rank") :]  # a line for each state, not for each rank
    assert told == (
        "[rank 0] rank 2 last finished nothing of iteration -1  <- behind\n"
        "[rank 0] rank 1 last finished the step of iteration 6\n"
        "[rank 0] ranks 0, 3-5 last finished the step of iteration 7\n"
    )


def test_beats_keep_the_watchdog_quiet(alone):
    result = alone(
        """
        from mindspeed_mm.parallel.pulse import Pulse
        from mindspeed_mm.training.watchdog import Watchdog

        with Watchdog(Pulse(dist.HashStore(), 0, 1), minutes=2 / 60) as watchdog:
            for iteration in range(5):
                time.sleep(0.5)
                watchdog.beat("the step", iteration)
        """
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_rank_without_a_sign_of_life_is_named(alone):
    result = alone(
        """
        from mindspeed_mm.parallel.pulse import Pulse
        from mindspeed_mm.training.heartbeat import Heartbeat

        with Heartbeat(Pulse(dist.HashStore(), 0, 2), gone_after_s=2.0):
            time.sleep(60)
        """
    )
    assert result.returncode == EXIT_CODE
    assert "[rank 0] rank 1 is gone: no sign of life for 2 s; ending" in result.stderr


def test_what_one_rank_has_found_ends_the_others(alone):
    result = alone(
        """
        from mindspeed_mm.parallel.pulse import Pulse
        from mindspeed_mm.training.heartbeat import Heartbeat

        store = dist.HashStore()
        store.set("gone", "rank 5 is gone")
        with Heartbeat(Pulse(store, 0, 8), gone_after_s=60.0):
            time.sleep(60)
        """
    )
    assert result.returncode == EXIT_CODE
    assert "[rank 0] rank 5 is gone; ending" in result.stderr


def test_a_failed_collective_becomes_the_name_of_the_lost_rank(alone):
    result = alone(
        """
        from mindspeed_mm.errors import RankLost
        from mindspeed_mm.parallel.pulse import Pulse
        from mindspeed_mm.training.heartbeat import Heartbeat

        try:
            with Heartbeat(Pulse(dist.HashStore(), 0, 2)):
                raise RuntimeError("Connection closed by peer")
        except RankLost as error:
            print(error, "|", error.__cause__)
        """
    )
    assert result.stdout.startswith("rank 1 is gone, the others cannot go on")
    assert "Connection closed by peer" in result.stdout
