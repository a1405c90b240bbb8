"""Describes a checkpoint for people: kind, dialect, layout, sizes, norms, and its fit to a config."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from mindspeed_mm import families
from mindspeed_mm.config.distillation import read_record
from mindspeed_mm.families.base import AutoencoderConfig, DenoiserConfig, Family
from mindspeed_mm.files import plan
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.weights import released, sources
from mindspeed_mm.weights.progress import Progress


def describe(
    path: str | Path, config: DenoiserConfig | AutoencoderConfig | None = None, norms: bool = True
) -> Iterator[str]:
    """Lines of a report. With a config, also lists all names that are missing, unknown or of another shape.

    norms: read every value and report the norm of each part of the network; otherwise read only names and shapes.
    """
    checkpoint = sources.open_checkpoint(path)
    ranks = f", {checkpoint.tensor_size} TP ranks" if checkpoint.tensor_size > 1 else ""
    when = "" if checkpoint.iteration is None else f", iteration {checkpoint.iteration}"
    yield f"{checkpoint.path}: {checkpoint.kind}{ranks}{when}"
    yield f"dialect: {checkpoint.dialect.title if checkpoint.dialect else _unknown()}"
    yield f"EMA weights: {'yes' if sources.EMA in checkpoint.groups else 'no'}"
    distilled = read_record(checkpoint.distilled, str(path))
    if distilled is not None:
        yield f"distilled ({distilled.method}): samples {distilled}; {', '.join(f'{k} {v}' for k, v in distilled.plain().items())}"
    for group in checkpoint.groups:
        weights = checkpoint.weights(ema=group == sources.EMA)
        yield from _describe_group(group, weights, checkpoint.family, norms)
        if config is not None:
            yield from _fit(group, weights, config)


def _describe_group(group: str, weights: Weights, family: Family | None, norms: bool) -> Iterator[str]:
    count = _count(weights, weights)
    dtypes = sorted({plan.short(weights.dtype(name)) for name in weights})
    nbytes = sum(math.prod(weights.shape(name)) * weights.dtype(name).itemsize for name in weights)
    yield f"{group}: {len(weights)} tensors, {count:,} parameters, {'/'.join(dtypes)}, {plan.human(nbytes)}"
    unused = family.unused(weights) if family else {}
    if unused:
        held = sum(name in weights for name in unused)
        yield f"  text tail of the last block (never used): {f'{held} tensors' if held else 'none'}"
    shape = family.describe(weights, weights.shape) if family else {}
    if shape:
        yield "  config by the shapes: " + ", ".join(f"{key} {_plain(value)}" for key, value in shape.items())
    groups: dict[str, list[str]] = {}
    for name in weights:
        groups.setdefault(family.part_of(name) if family else name.partition(".")[0], []).append(name)
    width = max(map(len, groups))
    with Progress(nbytes if norms else 0, "reading") as bar:
        for part, names in groups.items():
            line = f"  {part:<{width}} {len(names):>5} tensors {_count(weights, names):>15,}"
            yield f"{line}  norm {_norm(weights, names, bar):.6g}" if norms else line


def _fit(group: str, weights: Weights, config: DenoiserConfig | AutoencoderConfig) -> Iterator[str]:
    family = families.of_config(config)
    wanted = {name: parameter.shape for name, parameter in family.parameters(config).items()}
    misfit = released.compare(
        wanted,
        weights,
        set(family.unused(wanted)),
        lambda name: family.may_be_missing(name) or family.begins_at_zero(name),
    )
    yield f"{group} fits the config" if not misfit else f"{group} does not fit the config: {misfit.every_name()}"
    if misfit:
        differences = family.differences(family.describe(weights, weights.shape), config)
        if differences:
            yield f"  {differences}"


def _count(weights: Weights, names: Iterable[str]) -> int:
    """Number of values of the named parameters."""
    return sum(math.prod(weights.shape(name)) for name in names)


def _norm(weights: Weights, names: list[str], bar: Progress) -> float:
    """Euclidean norm of all values of the named parameters."""
    total = 0.0
    for name in names:
        for chunk in weights.chunks(name):
            if chunk.is_floating_point():
                total += torch.linalg.vector_norm(chunk, dtype=torch.float64).item() ** 2
            bar.add(chunk.numel() * chunk.element_size())
    return math.sqrt(total)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _unknown() -> str:
    return "unknown; the names are neither " + " nor ".join(f"a {family.title}'s" for family in families.known())
