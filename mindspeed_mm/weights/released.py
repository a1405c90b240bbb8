"""Strict loading of published weights: every name and shape must fit, else a report lists the differences."""

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mindspeed_mm import families, logs
from mindspeed_mm.config.distillation import Distilled
from mindspeed_mm.files.reshard import Weights, some
from mindspeed_mm.weights import sources
from mindspeed_mm.weights.progress import Progress

_log = logs.get(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """Differences between weights and the names and shapes of a network."""

    missing: list[str]
    unknown: list[str]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # name -> (shape found, shape wanted)
    dropped: list[str]  # unknown, but known to be unused

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.misshapen)

    def __str__(self) -> str:
        """One line with a few names of each kind."""
        return self._text(4)

    def every_name(self) -> str:
        return self._text(10**9)

    def _text(self, limit: int) -> str:
        shapes = [f"{name} {list(found)} instead of {list(wanted)}" for name, (found, wanted) in self.misshapen.items()]
        kinds = {
            "missing": grouped(self.missing),
            "unknown": grouped(self.unknown),
            "of another shape": shapes,
        }
        counts = {"missing": len(self.missing), "unknown": len(self.unknown), "of another shape": len(self.misshapen)}
        return "; ".join(f"{counts[kind]} {kind} ({some(names, limit)})" for kind, names in kinds.items() if names)


def compare(
    wanted: Mapping[str, tuple[int, ...]],
    weights: Weights,
    permitted_extras: Collection[str] = (),
    may_be_missing: Callable[[str], bool] = lambda name: False,
) -> Misfit:
    """Compares weights with the names and whole shapes of a network."""
    misshapen = {
        name: (weights.shape(name), tuple(shape))
        for name, shape in wanted.items()
        if name in weights and weights.shape(name) != tuple(shape)
    }
    return Misfit(
        missing=[name for name in wanted if name not in weights and not may_be_missing(name)],
        unknown=[name for name in weights if name not in wanted and name not in permitted_extras],
        misshapen=misshapen,
        dropped=[name for name in weights if name not in wanted and name in permitted_extras],
    )


def load(
    network: nn.Module,
    weights: Weights,
    index: int = 0,
    count: int = 1,
    progress: bool = True,
    beat: Callable[[str], None] = lambda what: None,
) -> None:
    """Copies part `index` of `count` of each parameter into a network that the weights fit (see `compare`).

    beat: called after each parameter.
    """
    targets = [(name, target) for name, target in stored_tensors(network).items() if name in weights]
    total = sum(target.numel() * weights.dtype(name).itemsize for name, target in targets)
    with Progress(total, "loading", progress) as bar:
        for name, target in targets:
            weights.copy_into(target.data, name, index, count)
            bar.add(target.numel() * weights.dtype(name).itemsize)
            beat("loading a weight")
    weights.report()


def stored_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a network."""
    return {name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def weights_of(network: nn.Module, distilled: Distilled | None = None) -> Weights:
    """Weights of a network that this process holds, for writing, and what they say of their distillation."""
    tensors = {name: value.detach() for name, value in stored_tensors(network).items()}
    said = None if distilled is None else distilled.plain()
    return Weights([tensors], lambda name: None, type(network).__name__, distilled=said)


def grouped(names: Iterable[str]) -> list[str]:
    """Groups names that differ only in numbers, such as those of blocks: "blocks.*.weight (32)"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return [found[0] if len(found) == 1 else f"{pattern} ({len(found)})" for pattern, found in groups.items()]


def autoencoder_weights(path: str | Path) -> Weights:
    """A WFVAE state dict: an OSP `.ckpt` (its EMA weights if present), a flat file, or a folder with one.

    $NOT_USE_EMA_MODEL=1 takes the live weights if both are present.
    """
    checkpoint = sources.open_checkpoint(path)
    live_only = os.environ.get("NOT_USE_EMA_MODEL", "0").lower() in ("1", "true", "yes")
    ema = sources.EMA in checkpoint.groups and not live_only
    return checkpoint.weights(ema, lambda name: None)


def describe_names(weights: Weights) -> str:
    """A sentence for a report that names the network to which these names belong."""
    found = families.of_names(weights)
    if found:
        return f"the names are a {found[0].title}'s"
    titles = " nor ".join(f"a {family.title}'s" for family in families.known())
    return f"the names are neither {titles}, the first are {some(list(weights))}"
