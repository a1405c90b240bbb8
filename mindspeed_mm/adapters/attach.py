"""Puts adapters on the linears of a network, freezes the rest, and names the adapters' parameters."""

import contextlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mindspeed_mm import families
from mindspeed_mm.adapters.branches import KINDS, Branch, Branches, PlainLinear
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import DOWN, HOME, AdapterConfig, LayerAdapter, is_adapter, settings_of
from mindspeed_mm.families.base import DenoiserConfig, DenoiserFamily
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import weight_of


def attach(network: nn.Module, parallel: ParallelContext, layers: Mapping[str, LayerAdapter]) -> dict[str, Branch]:
    """Adds an adapter to each of these linears; returns them by layer. Their values change nothing yet (B is 0, m is
    the length of W's rows), but A is not set.

    Call this when the network has its weights, in the form in which they are held (`adapters/base.py`), and before an
    engine or a compiler sees it.
    """
    found = {}
    for name, settings in layers.items():
        linear = _linear(network, name)
        if linear.adapters is None:
            linear.adapters = Branches()
        weight = weight_of(linear, torch.float32)
        branch = KINDS[type(linear)](weight, settings, parallel, zlib.crc32(name.encode()))
        with torch.no_grad():
            branch.lora_A.zero_()
            if branch.lora_magnitude_vector is not None:
                branch.lora_magnitude_vector.copy_(branch.lengths(weight))
        linear.adapters.append(branch)
        partition.mark(branch, branch.partial(weight))
        found[name] = branch
    return found


def attach_trained(
    network: Any, config: DenoiserConfig, adapter: AdapterConfig, parallel: ParallelContext, seed: int
) -> dict[str, Branch]:
    """Adds a fresh adapter to the targets' linears and freezes everything else. seed: of A, by each parameter's name.

    Raises ConfigError for dropout in a network that does not say the places of its tokens.
    """
    if adapter.dropout and not network.has_adapter_dropout:
        raise ConfigError(f"--adapter-dropout {adapter.dropout:g}: a {type(network).__name__} has none; leave it out")
    family: DenoiserFamily = families.of_denoiser(config)
    layers = settings_of(adapter, family.parameters(config))
    network.requires_grad_(False)
    network.adapter_dropout = adapter.dropout
    branches = attach(network, parallel, layers)
    fresh = {f"{layer}.{HOME}.{len(_linear(network, layer).adapters) - 1}.{DOWN}" for layer in layers}
    partition.fill(network, _draw, seed, parallel, only=fresh)
    return branches


def detach(network: nn.Module, branches: Mapping[str, Branch]) -> None:
    """Takes adapters off again; the network computes what it did before."""
    for name, branch in branches.items():
        linear = _linear(network, name)
        kept = [other for other in linear.adapters if other is not branch]
        linear.adapters = Branches(kept) if kept else None


@contextlib.contextmanager
def set_aside(network: nn.Module) -> Iterator[None]:
    """Context in which the network computes as without any adapter."""
    held = [module for module in network.modules() if getattr(module, HOME, None) is not None]
    adapters = [getattr(module, HOME) for module in held]
    for module in held:
        setattr(module, HOME, None)
    try:
        yield
    finally:
        for module, branches in zip(held, adapters, strict=True):
            setattr(module, HOME, branches)


def trained_branches(network: nn.Module) -> dict[str, Branch]:
    """The adapters that a run trains, by layer."""
    return {
        name.rpartition(f".{HOME}.")[0]: module
        for name, module in network.named_modules()
        if isinstance(module, Branch) and module.lora_A.requires_grad
    }


def adapter_names(names: Iterable[str]) -> list[str]:
    """Those of a network's parameters that belong to adapters."""
    return [name for name in names if is_adapter(name)]


def _linear(network: nn.Module, name: str) -> Any:
    """A linear that can carry adapters; torch's own is replaced by one with the same parameters."""
    linear = network.get_submodule(name)
    if type(linear) is nn.Linear:
        linear = PlainLinear(linear)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, linear)
    if type(linear) not in KINDS:
        raise TypeError(f"{name}: a {type(linear).__name__} takes no adapter; its kinds are in adapters/branches.py")
    return linear


def _draw(name: str, full: Tensor, generator: torch.Generator) -> None:
    """A is uniform within 1 / sqrt(in), as in LoRA's own code (Kaiming's with a = sqrt 5)."""
    bound = 1 / math.sqrt(full.shape[1])
    full.uniform_(-bound, bound, generator=generator)
