"""Which names a pickle may hold. Nothing of another program is ever run: its classes become empty stand-ins.

A checkpoint of Megatron keeps the launch flags beside the weights, and flags may hold objects: enums, dtypes of numpy,
the parsed JSON files of Open-Sora Plan and MindSpeed-MM. We need none of them, so a name from the list below is read as
`Inert`, whatever it would have done. Any other name ends the reading.
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
    """Stands for an object of another program: keeps nothing, runs nothing."""

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
    """What a name in a pickle stands for; None for a name that may not be there."""
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # Python 2's, in protocol 2
    full = f"{module}.{name}"
    if full in _STAND_IN_NAMES or full.startswith(_STAND_INS):
        return Inert
    return _PLAIN.get(full)


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it holds bytes as {encoding!r}")
    return text.encode("latin-1")


def _bytes(*arguments) -> bytes:
    """bytes and bytearray; a number of bytes, which would be made of nothing, is no way to write them."""
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
