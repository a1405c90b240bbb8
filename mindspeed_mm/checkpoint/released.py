"""Weights as they are published: which files they come in, and strict loading that names what does not fit."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import files, layout, reshard
from mindspeed_mm.errors import CheckpointError

_log = logs.get(__name__)

# The original's last block owns a text tail when it ran with TP > 1; its output is never used and we do not build it.
TEXT_TAIL = (
    "attn1.to_add_out.weight",
    "attn1.to_add_out.bias",
    "norm2.norm_enc.weight",
    "norm2.norm_enc.bias",
    "ff_enc.net.0.proj.weight",
    "ff_enc.net.2.weight",
)


def text_tail(last_block: str) -> set[str]:
    """Names of the text tail of the block with this prefix, for example "transformer_blocks.6.1"."""
    return {f"{last_block}.{name}" for name in TEXT_TAIL}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A flat state dict from a merged `.pt` or `.safetensors` file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _tensors(files.load(path), path)


def read_megatron(root: str | Path, dim_of: Callable[[str], int | None], ema: bool = False) -> dict[str, Tensor]:
    """Whole parameters from a Megatron directory of any TP size."""
    location = layout.find(Path(root))
    shards = read_shards(location, ema)
    return dict(reshard.merged(shards, dim_of, "the model"))


def read_shards(location: layout.Location, ema: bool = False) -> list[dict]:
    """The `model` (or `ema_model`) of every TP rank, memory-mapped; checks that all ranks are of one moment."""
    key = "ema_model" if ema else "model"
    shards = []
    for path in layout.rank_files(location.directory):
        state = files.load(path)
        if key not in state:
            hint = "; it was trained without --use-ema" if ema else ""
            raise CheckpointError(f"{path}: holds no {key!r}{hint}")
        if location.iteration is not None and state.get("iteration", location.iteration) != location.iteration:
            raise CheckpointError(
                f"{path}: is of iteration {state['iteration']}, its directory of {location.iteration}"
            )
        world = getattr(state.get("args"), "tensor_model_parallel_size", None)
        shards.append((path, world, state[key]))
    for path, world, _ in shards:
        if world is not None and world != len(shards):
            raise CheckpointError(
                f"{path}: was saved by {world} TP ranks, but {location.directory} holds {len(shards)} shards"
            )
    return [shard for _, _, shard in shards]


def read_autoencoder(path: str | Path) -> dict[str, Tensor]:
    """A WFVAE state dict: an OSP `.ckpt` (its EMA weights, else `state_dict`, else `gen_model` in it) or a flat file.

    $NOT_USE_EMA_MODEL=1 takes the live weights where there are both.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = files.load(path)
    live_only = os.environ.get("NOT_USE_EMA_MODEL", "0").lower() in ("1", "true", "yes")
    if state.get("ema_state_dict") and not live_only:
        state = state["ema_state_dict"]
    elif "state_dict" in state:
        state = state["state_dict"]
    state = state.get("gen_model", state)
    return {name.removeprefix("module."): value for name, value in _tensors(state, path).items()}


def load_strict(
    network: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    part_of: Callable[[str, Tensor], Tensor],
    permitted_extras: set[str],
    source: str,
) -> None:
    """Copy whole parameters into a network, of which part_of(name, whole) gives this rank's part.

    Every name and shape must fit; extras that are permitted are dropped and listed in the log.
    """
    target = {**dict(network.named_parameters()), **_persistent_buffers(network)}
    seen, unknown, misshapen, dropped = set(), [], [], []
    with torch.no_grad():
        for name, whole in weights:
            if name not in target:
                (dropped if name in permitted_extras else unknown).append(name)
                continue
            part = part_of(name, whole)
            seen.add(name)
            if part.shape != target[name].shape:
                misshapen.append(f"{name} {list(part.shape)} instead of {list(target[name].shape)}")
            else:
                target[name].copy_(part)
    missing = [name for name in target if name not in seen]
    if missing or unknown or misshapen:
        raise CheckpointError(f"{source}: does not fit the network: {_report(missing, unknown, misshapen)}")
    if dropped:
        _log.info(f"{source}: left out, their output is never used: {', '.join(dropped)}")


def _report(missing: list[str], unknown: list[str], misshapen: list[str]) -> str:
    parts = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    return "; ".join(f"{len(names)} {kind} ({reshard.some(names)})" for kind, names in parts.items() if names)


def _persistent_buffers(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    return {name: buffer for name, buffer in network.named_buffers() if name in state}


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a dict of weights")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no tensors at its top level, only {reshard.some(sorted(map(str, state)))}"
        )
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except Exception as error:  # the Rust reader raises its own kind, which is an Exception
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None
