"""Reports end no run: what cannot be written is said once, and again when it works again."""

import contextlib
import json
import os
import resource
import subprocess
import sys

from ranks import log_lines

from mindspeed_mm import logs
from mindspeed_mm.config.run import CheckpointConfig, ReportConfig
from mindspeed_mm.training.reports import JsonLines, Reports
from mindspeed_mm.training.stragglers import describe


@contextlib.contextmanager
def full_disk(room: int):
    """Files may have `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Config:
    """The part of a run's config that reports read."""

    def __init__(self, save):
        self.report, self.checkpoint = ReportConfig(), CheckpointConfig(save=str(save))


def test_a_full_disk_costs_a_line_of_the_log_and_no_number(tmp_path):
    reports = Reports(Config(tmp_path), is_first=True)
    file = tmp_path / "metrics.jsonl"
    with log_lines() as lines, reports.open():
        reports.values(1, {"loss": 1.0})
        with full_disk(file.stat().st_size + 10):  # a part of the next line fits
            reports.values(2, {"loss": 2.0})
            reports.values(3, {"loss": 3.0})
        reports.values(4, {"loss": 4.0})
    failed, again = lines
    assert "metrics.jsonl: cannot be written" in failed and failed.endswith("going on without it")
    assert again.endswith("metrics.jsonl: is written again")
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_folder_that_is_gone_ends_nothing(tmp_path):
    reports = Reports(Config(tmp_path / "run"), is_first=True)
    os.rmdir(tmp_path / "run")
    with log_lines() as lines, reports.open():
        reports.values(1, {"loss": 1.0})
        reports.values(2, {"loss": 1.0})
    assert len(lines) == 1 and "No such file" in lines[0]


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "values", "iteration": 1}\n{"kind": "val')
    JsonLines(file).values(2, {})
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [1, 2]


class Failing:
    """Another program's writer, as TensorBoard's is once its thread has met a full disk."""

    def values(self, iteration, values):
        raise ValueError("I/O operation on closed file")

    step = None

    def close(self):
        raise OSError("still")


def test_no_failure_of_another_library_ends_a_run(tmp_path):
    reports = Reports(Config(tmp_path), is_first=True)
    reports._add(Failing(), "events")
    with log_lines() as lines, reports.open():
        reports.values(1, {})
        reports.values(2, {})
    assert lines == ["events: cannot be written (I/O operation on closed file); going on without it"]


def test_a_log_that_nobody_reads_ends_silently():
    """`train | head`: not a traceback for each line, nor one at the end."""
    program = """
import sys
from mindspeed_mm import logs
logs.setup()
log = logs.get("a")
for number in range(5000):
    log.info("line %d of a long log", number)
sys.stderr.write("the end")
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.readline()
    run.stdout.close()
    assert (run.stderr.read(), run.wait(timeout=60)) == ("the end", 0)


def test_attempts_say_what_changes():
    answers = iter([ValueError("a"), ValueError("b"), None, None])

    def action():
        answer = next(answers)
        if answer is not None:
            raise answer

    with log_lines() as lines:
        attempt = logs.Attempts(logs.get("test"), "a file")
        assert [attempt(action) for _ in range(4)] == [False, False, True, True]
    assert lines == ["a file: cannot be written (a); going on without it", "a file: is written again"]


def test_the_slowest_rank_is_named():
    ranks = [[1.0, 0.1, 10.0], [1.5, 0.6, 11.0], [1.1, 0.1, 12.0]]
    assert describe(ranks) == (
        "slowest rank: 1, own time per step (ms): 1500.0 (median 1100.0) | its data wait (ms): 600.0 (median 100.0) | "
        "its memory: 11.00 GiB (most: rank 2, 12.00 GiB)"
    )
