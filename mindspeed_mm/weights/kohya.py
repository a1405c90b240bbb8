"""Adapters in one safetensors file, as kohya's and musubi's trainers write and user interfaces read them.

A layer's name has underscores for dots and a prefix: lora_unet_transformer_blocks_0_0_attn1_to_q.lora_down.weight (A),
.lora_up.weight (B), .alpha, and .dora_scale (DoRA's lengths). So reading needs the names of the network's linears.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm import families
from mindspeed_mm.adapters.record import AdapterRecord
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import DOWN, MAGNITUDE, UP, AdapterConfig, LayerAdapter, linears_of
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.files import safetensors_file
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.weights import targets
from mindspeed_mm.weights.adapters import Adapter

_PREFIX = "lora_unet_"
_KINDS = {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": MAGNITUDE}
_ALPHA = "alpha"


def read(path: Path, config: DenoiserConfig) -> Adapter:
    """Opens a file. config: of the network that the adapter is of. Raises CheckpointError for other names."""
    known = {_theirs(layer): layer for layer in linears_of(families.of_denoiser(config).parameters(config))}
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, value in safetensors_file.read(path).items():
        theirs, _, kind = name.partition(".")
        if theirs not in known or kind not in (*_KINDS, _ALPHA):
            raise CheckpointError(f"{path}: {name}: the network of the config has no linear of this name")
        if kind == _ALPHA:
            alphas[known[theirs]] = float(value)
        else:
            ours = _KINDS[kind]
            tensors[f"{known[theirs]}.{ours}"] = value.reshape(-1) if ours == MAGNITUDE else value
    layers = {}
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        for needed in (DOWN, UP):
            if f"{layer}.{needed}" not in tensors:
                raise CheckpointError(f"{path}: {layer} has no {needed}; the file is damaged or incomplete")
        if kind == DOWN:
            rank = tensors[name].shape[0]
            layers[layer] = LayerAdapter(rank, alphas.get(layer, rank) / rank, f"{layer}.{MAGNITUDE}" in tensors)
    if not layers:
        raise CheckpointError(f"{path}: holds no adapter")
    first = next(iter(layers.values()))
    chosen = AdapterConfig(
        kind="dora" if first.dora else "lora", rank=first.rank, alpha=first.scale * first.rank, targets=tuple(layers)
    )
    return Adapter(
        str(path), Weights([tensors], lambda name: None, str(path)), layers, AdapterRecord(chosen, config.model_id)
    )


def write(adapter: Adapter, path: Path, *, dtype: str | None = None) -> Path:
    """Writes one file; the tensors of an adapter are small enough to be held at once."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: must end in .safetensors")
    found: dict[str, Tensor] = {}
    for layer, settings in adapter.layers.items():
        for theirs, ours in _KINDS.items():
            if f"{layer}.{ours}" in adapter.weights:
                value = adapter.weights.part(f"{layer}.{ours}")
                found[f"{_theirs(layer)}.{theirs}"] = value[:, None] if ours == MAGNITUDE else value
        found[f"{_theirs(layer)}.{_ALPHA}"] = torch.tensor(settings.scale * settings.rank)
    _write(found, path, dtype)
    return path


def _write(tensors: Mapping[str, Tensor], path: Path, dtype: str | None) -> None:
    weights = Weights([tensors], lambda name: None, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = targets.flat_file(weights, path.with_suffix(""), format=targets.SAFETENSORS, dtype=dtype)
    targets.execute(todo, weights, "saving", progress=False)


def _theirs(layer: str) -> str:
    return _PREFIX + layer.replace(".", "_")
