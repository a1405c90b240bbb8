"""What MindSpeed patches of megatron-core, by name: an upgrade of either that moves one of these names fails here.

MindSpeed replaces functions of megatron-core when it is imported. Where such a name no longer exists, or takes other
parameters, the replacement does not fit and the first training step fails on the cluster. Needs neither.
"""

import importlib
import inspect
import json
from importlib import metadata
from pathlib import Path

import pytest

from mindspeed_mm.parallel import megatron

pytestmark = pytest.mark.skipif(
    not metadata.version("megatron-core").startswith("0.16."),
    reason="MindSpeed core_r0.16.0 goes with megatron-core 0.16; with another one the NPU platform leaves it out",
)
RECORD = json.loads(Path(__file__).with_name("mindspeed_names.json").read_text())


def find(dotted: str):
    """The object of a dotted name: a module as deep as there is one, then attributes."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        for name in parts[depth:]:
            found = getattr(found, name)
        return found
    raise ImportError(dotted)


def test_the_record_is_of_the_installed_megatron_core():
    found = metadata.version("megatron-core")
    assert found == RECORD["megatron-core"], (
        f"megatron-core {found}: run MindSpeed's adaptor with it, compare what it patches with mindspeed_names.json, "
        "then record the version (docs/ascend.md, MindSpeed)"
    )


@pytest.mark.parametrize("name", RECORD["patched"])
def test_a_patched_name_has_the_parameters_that_its_patch_expects(name):
    assert list(inspect.signature(find(name)).parameters) == RECORD["patched"][name]


def test_every_import_from_megatron_core_was_compared_with_mindspeeds_patches():
    ours = {
        name for name in megatron.__all__ if getattr(getattr(megatron, name), "__module__", "") == megatron.__name__
    }
    missing = set(megatron.__all__) - ours - set(RECORD["imported"])
    assert not missing, f"say in mindspeed_names.json whether MindSpeed patches {sorted(missing)}"


def test_the_linears_are_megatrons_own():
    """MindSpeed leaves the linears alone without flags, so their numbers on NPUs are those that were tested."""
    touched = {name.split(".")[-2] for name in RECORD["patched"]}
    assert not touched & {"ColumnParallelLinear", "RowParallelLinear", "mappings"}


def test_a_name_that_moved_is_seen():
    with pytest.raises(AttributeError):
        find("megatron.core.optimizer.distrib_optimizer.DistributedOptimizer.step_with_ready_gradients")
