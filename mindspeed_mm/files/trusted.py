"""Names that a pickle may hold. No code of another program is ever run: its classes become empty stand-ins.

A Megatron checkpoint keeps the launch flags beside the weights. Flags may hold objects: enums, numpy dtypes, parsed
JSON files of Open-Sora Plan and MindSpeed-MM. We need none of them, so a name on the list below is read as `Inert`.
Any other name ends the reading.
"""

from argparse import Namespace
from collections import Counter, OrderedDict

import torch

_STAND_INS = ("megatron.", "mindspeed.", "mindspeed_mm.", "numpy.")
_STAND_IN_NAMES = (
    "datetime.timedelta",
    "io.BytesIO",
    "pathlib.PosixPath",
    "signal.Signals",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "types.SimpleNamespace",
)


class Inert:
    """Stands in for an object of another program: keeps nothing, runs nothing."""

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


def find(module: str, name: str):
    """The stand-in for a name in a pickle; None for a name that is not allowed."""
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    # names of Python 2, which protocol 2 uses
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    if full in _STAND_IN_NAMES or full.startswith(_STAND_INS):
        return Inert
    return _PLAIN.get(full)


def _encode(text: str, encoding: str) -> bytes:
    """Encodes bytes that protocol 2 wrote as text."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it holds bytes as {encoding!r}")
    return text.encode("latin-1")


def _bytes(*arguments) -> bytes:
    """Creates bytes and bytearray; refuses a bare count, which would allocate zero bytes."""
    if arguments and not isinstance(arguments[0], (bytes, str)):
        raise ValueError(f"it holds bytes made of {type(arguments[0]).__name__}")
    return _encode(*arguments) if len(arguments) == 2 else b"".join(arguments)


_PLAIN = {
    "argparse.Namespace": Namespace,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": complex,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.Counter": Counter,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "torch.Size": tuple,
}
