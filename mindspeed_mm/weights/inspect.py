"""What is in a checkpoint, for people: kind, dialect, layout, sizes, norms, and how it fits a config."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from mindspeed_mm.checkpoint import architecture, dialects, plan, released, sources
from mindspeed_mm.checkpoint.progress import Progress
from mindspeed_mm.checkpoint.reshard import Weights
from mindspeed_mm.config.model import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.weights.partition import denoiser_partition


def describe(
    path: str | Path, config: DenoiserConfig | AutoencoderConfig | None = None, norms: bool = True
) -> Iterator[str]:
    """Lines of a report. With a config, of all names that are missing, unknown or of another shape as well.

    norms: read every value, for the norm of each part of the network; without, only names and shapes are read.
    """
    checkpoint = sources.open_checkpoint(path)
    ranks = f", {checkpoint.tensor_size} TP ranks" if checkpoint.tensor_size > 1 else ""
    when = "" if checkpoint.iteration is None else f", iteration {checkpoint.iteration}"
    yield f"{checkpoint.path}: {checkpoint.kind}{ranks}{when}"
    yield f"dialect: {_DIALECTS[checkpoint.dialect]}"
    yield f"EMA weights: {'yes' if sources.EMA in checkpoint.groups else 'no'}"
    dim_of = _dims(checkpoint)
    for group in checkpoint.groups:
        weights = checkpoint.weights(dim_of, ema=group == sources.EMA)
        yield from _describe_group(group, weights, norms)
        if config is not None:
            yield from _fit(group, weights, config)


def _describe_group(group: str, weights: Weights, norms: bool) -> Iterator[str]:
    count = architecture.parameters(weights, weights.shape)
    dtypes = sorted({plan.short(weights.dtype(name)) for name in weights})
    nbytes = sum(math.prod(weights.shape(name)) * weights.dtype(name).itemsize for name in weights)
    yield f"{group}: {len(weights)} tensors, {count:,} parameters, {'/'.join(dtypes)}, {plan.human(nbytes)}"
    tail = [name for name in weights if name in dialects.text_tail(dialects.last_block(weights) or "")]
    if dialects.last_block(weights):
        yield f"  text tail of the last block (never used): {f'{len(tail)} tensors' if tail else 'none'}"
    shape = architecture.describe(weights, weights.shape)
    if shape:
        yield "  config by the shapes: " + ", ".join(f"{key} {_plain(value)}" for key, value in shape.items())
    groups: dict[str, list[str]] = {}
    for name in weights:
        groups.setdefault(_group_of(name), []).append(name)
    width = max(map(len, groups))
    with Progress(nbytes if norms else 0, "reading") as bar:
        for part, names in groups.items():
            line = f"  {part:<{width}} {len(names):>5} tensors {architecture.parameters(names, weights.shape):>15,}"
            yield f"{line}  norm {_norm(weights, names, bar):.6g}" if norms else line


def _fit(group: str, weights: Weights, config: DenoiserConfig | AutoencoderConfig) -> Iterator[str]:
    network = _network(config)
    wanted = {name: tuple(value.shape) for name, value in released.stored_tensors(network).items()}
    tail = dialects.text_tail(dialects.last_block(wanted) or "")
    misfit = released.compare(wanted, weights, tail, released.is_constant)
    yield f"{group} fits the config" if not misfit else f"{group} does not fit the config: {misfit.every_name()}"
    if misfit and isinstance(config, DenoiserConfig):
        differences = architecture.differences(architecture.describe(weights, weights.shape), config)
        if differences:
            yield f"  {differences}"


def _network(config: DenoiserConfig | AutoencoderConfig) -> torch.nn.Module:
    """A network of the config without memory."""
    from mindspeed_mm.models.build import build_autoencoder, build_denoiser
    from mindspeed_mm.parallel.context import ParallelContext

    if isinstance(config, AutoencoderConfig):
        return build_autoencoder(config, device="meta")
    return build_denoiser(config, ParallelContext.current(), device="meta", seed=None)


def _dims(checkpoint: sources.Checkpoint) -> Callable[[str], int | None]:
    """How the tensors are split; of whole ones nothing has to be known."""
    return denoiser_partition() if checkpoint.tensor_size > 1 else lambda name: None


def _norm(weights: Weights, names: list[str], bar: Progress) -> float:
    """Euclidean norm of all values of the named parameters."""
    total = 0.0
    for name in names:
        for chunk in weights.chunks(name):
            if chunk.is_floating_point():
                total += torch.linalg.vector_norm(chunk, dtype=torch.float64).item() ** 2
            bar.add(chunk.numel() * chunk.element_size())
    return math.sqrt(total)


def _group_of(name: str) -> str:
    """Part of the network that a parameter belongs to: its module at the top, and the stage of a block."""
    match = re.match(r"transformer_blocks\.\d+|(?:encoder|decoder)\.[^.]+|[^.]+", name)
    return match[0] if match else name


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


_DIALECTS = {
    dialects.OSP: "Open-Sora Plan (OSP)",
    dialects.MM: "MindSpeed-MM (MM)",
    dialects.WFVAE: "WFVAE",
    dialects.UNKNOWN: "unknown; the names are neither a SparseUMMDiT's nor a WFVAE's",
}
