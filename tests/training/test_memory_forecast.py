"""A run says before its first step that it will not fit, and after the second what it took beside the plan; not on a CPU."""

import dataclasses
import types

import config_files
import pytest
from ranks import log_lines

from mindspeed_mm.config import resolve
from mindspeed_mm.planning import job, memory
from mindspeed_mm.planning.memory import GIB
from mindspeed_mm.platforms.base import Platform
from mindspeed_mm.training.memory_forecast import MemoryForecast, planned_parts


class Card(Platform):
    """A device of so many bytes, of which a run has taken a GiB."""

    name = "cuda"

    def __init__(self, total: int):
        self.total = total

    def total_memory(self) -> int:
        return self.total

    def peak_memory(self) -> int:
        return GIB


def seats(tensor: int = 1, context: int = 1, data: int = 1, rank: int = 0):
    sizes = {"tensor_size": tensor, "context_size": context, "data_size": data}
    return types.SimpleNamespace(**sizes, sequence_parallel=tensor > 1, is_first=rank == 0)


@pytest.fixture
def run(tmp_path):
    config_files.write_all(tmp_path)
    files = ["--mm-model", str(tmp_path / "model.json"), "--mm-data", str(tmp_path / "data.json")]

    def config(*flags: str):
        return resolve.run_config([*files, "--lr", "1e-4", "--train-iters", "4", *flags], 1)

    return config


def test_a_run_is_planned_by_its_flags(run, tmp_path):
    flags = ["--bf16", "--use-ema", "--use-distributed-optimizer", "--selective_recom", "--recom_ffn_layers", "1"]
    found = planned_parts(run(*flags), seats(data=4))
    alike = dataclasses.replace(job.read(tmp_path / "model.json", tmp_path / "data.json"), dtype="bf16")
    assert found == memory.parts(alike, memory.Layout(1, 1, 4, "feed-forwards", 1))
    assert found["moments"] * 4 == pytest.approx(planned_parts(run(*flags), seats())["moments"], rel=0.01)
    assert planned_parts(run("--bf16"), seats())["average"] == 0


def test_a_plan_that_does_not_fit_is_a_warning_with_its_largest_parts(run):
    with log_lines() as lines:
        MemoryForecast({"moments": 30 * GIB, "weights": 5 * GIB}, Card(24 * GIB)).warn_if_too_large()
        MemoryForecast({"moments": 3 * GIB, "weights": 5 * GIB}, Card(24 * GIB)).warn_if_too_large()
    assert len(lines) == 1
    assert "needs 35.0 GiB on each device (moments 30.0, weights 5.0), of 24.0 GiB" in lines[0]


def test_the_second_step_says_the_plan_and_what_was_seen():
    forecast = MemoryForecast({"weights": 2 * GIB}, Card(24 * GIB))
    with log_lines() as lines:
        for _ in range(5):
            forecast.after_step()
    assert lines == ["memory: planned 2.00 GiB, seen 1.00 GiB at the peak of 2 steps (-50%)"]


def test_nothing_is_said_on_a_cpu_on_other_ranks_and_of_partial_training(run):
    card = Card(24 * GIB)
    assert MemoryForecast.of_run(run(), seats(), card) is not None
    cpu = Card(24 * GIB)
    cpu.name = "cpu"
    assert MemoryForecast.of_run(run(), seats(), cpu) is None
    assert MemoryForecast.of_run(run(), seats(rank=1), card) is None
    assert MemoryForecast.of_run(run("--train-only", "attention"), seats(), card) is None
