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
