"""The simulated NPU as a fixture. Where it cannot run these tests skip, naming the reason; where it can, all failures count."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from simulation import wheel
from simulation.server import Simulation


@pytest.fixture(scope="session")
def npu():
    """A `Simulation`: `npu.one(function, *arguments)` runs a function of a module `cases_*` where there are NPUs."""
    reason = wheel.obstacle()
    if reason is not None:
        pytest.skip(reason)
    simulation = Simulation()
    yield simulation
    simulation.close()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """With `-n`, one worker runs these tests: they share a server."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("npu"))
