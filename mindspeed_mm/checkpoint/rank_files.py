"""`--ckpt-format torch`: Megatron's layout, a folder of files per TP rank, written tensor by tensor."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_mm import atomic
from mindspeed_mm.files import layout
from mindspeed_mm.files.integrity import Beat
from mindspeed_mm.files.plan import Piece
from mindspeed_mm.files.torch_file import TorchFileWriter

_MODEL, _AVERAGE, EMA = "model", "ema_model", "ema_params"


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """What the files of a TP rank hold, but for the optimizer's tensors.

    common: plain values and small tensors. model: parameters in the model's precision. names: of the network's state dict,
    in Megatron's order, with its empty entries. shapes: of the trained parameters. groups: of the optimizer's tensors.
    """

    common: dict
    model: Mapping[str, Tensor]
    names: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]]
    groups: Sequence[str]


def write(contents: Contents, tensors: Iterable[tuple[str, str, Tensor]], directory: Path, beat: Beat) -> None:
    """Writes a TP rank's files. tensors: (group, parameter's name, fp32 tensor), each used before the next one is asked for."""
    small: list[tuple[Piece, Tensor]] = []
    pieces = {name: _piece(_MODEL, name, value) for name, value in contents.model.items()}
    state = {**_without_tensors(contents.common, small), _MODEL: {name: pieces.get(name) for name in contents.names}}
    averages: dict[str, Piece] = {}
    if EMA in contents.groups:  # in the model's precision, for whoever samples
        averages = {name: _piece(_AVERAGE, name, value) for name, value in contents.model.items()}
        state[_AVERAGE] = {name: averages.get(name) for name in contents.names}
    with contextlib.ExitStack() as files:
        model = TorchFileWriter(files.enter_context(atomic.replacing(directory / layout.MODEL_FILE, beat)), state)
        for piece, value in small:
            model.write(piece, [value.contiguous()])
        for name, value in contents.model.items():
            model.write(pieces[name], [_as(value, pieces[name])])
            if name in averages and name not in contents.shapes:  # not trained, such as WFVAE's Haar kernels
                model.write(averages[name], [_as(value, averages[name])])
        if contents.groups:
            optimizer_file = files.enter_context(atomic.replacing(directory / layout.OPTIMIZER_FILE, beat))
            _write_optimizer(contents, tensors, optimizer_file, model, averages)
        model.close()


def _write_optimizer(contents: Contents, tensors, file, model: TorchFileWriter, averages: Mapping[str, Piece]) -> None:
    groups = {
        group: {name: Piece(group, name, 0, 1, shape, torch.float32) for name, shape in contents.shapes.items()}
        for group in contents.groups
    }
    writer = TorchFileWriter(file, groups)
    for group, name, value in tensors:
        writer.write(groups[group][name], [value])
        if group == EMA:
            model.write(averages[name], [_as(value, averages[name])])
    writer.close()


def _piece(group: str, name: str, value: Tensor) -> Piece:
    return Piece(group, name, 0, 1, tuple(value.shape), value.dtype)


def _as(value: Tensor, piece: Piece) -> Tensor:
    return value.detach().to("cpu", piece.dtype).contiguous()


def _without_tensors(value: Any, found: list[tuple[Piece, Tensor]]) -> Any:
    """The value with a `Piece` in place of each tensor, which is added to `found`."""
    if isinstance(value, Tensor):
        piece = _piece("common", str(len(found)), value)
        found.append((piece, value))
        return piece
    if isinstance(value, dict):
        return {key: _without_tensors(item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_tensors(item, found) for item in value]
    return value
