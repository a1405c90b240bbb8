"""Which classes a pickle may name. None of another program's is ever run: they become empty stand-ins.

A checkpoint of Megatron keeps the launch flags beside the weights, and flags may hold objects: enums, dtypes of numpy,
the parsed JSON files of Open-Sora Plan and MindSpeed-MM. We need none of them, so a name from the list below is read as
`Inert`, whatever it would have done. Any other name ends the reading.
"""

import argparse
import contextlib
import pickle
from pathlib import Path

import torch

_MODULES = ("megatron.", "mindspeed.", "mindspeed_mm.", "numpy.")
_NAMES = (
    "datetime.timedelta",
    "io.BytesIO",
    "pathlib.PosixPath",
    "signal.Signals",
    "types.SimpleNamespace",
)


class Inert:
    """Stands for an object of another program: keeps nothing, runs nothing."""

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


def classes(path: Path) -> contextlib.AbstractContextManager:
    """While it is active, torch.load(weights_only=True) reads what the file at `path` may hold."""
    wanted = [name for name in _names_in(path) if name in _NAMES or name.startswith(_MODULES)]
    return torch.serialization.safe_globals([argparse.Namespace, *((Inert, name) for name in wanted)])


def _names_in(path: Path) -> list[str]:
    """Names that a torch file's pickle holds beyond torch's own, found without running it."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError, UnicodeDecodeError, IndexError):
        return list(_NAMES)  # not in torch's zip format, or damaged; loading says which
