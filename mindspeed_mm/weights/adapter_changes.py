"""Turns adapters into weights and back: merges them into whole weights, and extracts one from two whole weights."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.adapters.record import AdapterRecord, check_base
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import DOWN, MAGNITUDE, UP, AdapterConfig, LayerAdapter, linears_of
from mindspeed_mm.families.base import DenoiserFamily
from mindspeed_mm.files.plan import human
from mindspeed_mm.files.reshard import Weights, some
from mindspeed_mm.parallel.seeds import generator
from mindspeed_mm.weights import convert, sources, targets
from mindspeed_mm.weights.adapters import Adapter, fingerprint_of
from mindspeed_mm.weights.progress import Progress

_log = logs.get(__name__)
_OVERSAMPLING, _POWER_STEPS = 8, 4  # of the randomized SVD (0909.4061, algorithm 4.4)


@dataclasses.dataclass(frozen=True, slots=True)
class _Update:
    """An adapter of one weight: scale B A, and with DoRA the rows' lengths."""

    down: Tensor
    up: Tensor
    scale: float
    lengths: Tensor | None

    def of(self, rows: Tensor, at: int) -> Tensor:
        """What it adds to some rows of the weight, fp32, of which the first is row `at`."""
        part = slice(at, at + rows.shape[0])
        added = self.scale * (self.up[part] @ self.down)
        if self.lengths is None:
            return added
        whole = rows + added
        return whole * (self.lengths[part] / torch.linalg.vector_norm(whole, dim=1))[:, None] - rows


class Merged(Weights):
    """Whole weights with adapters added: computed row by row in fp32, as they are read, and rounded once."""

    def __init__(self, base: Weights, adapters: Sequence[tuple[Adapter, float]]):
        """adapters: each with its scale; they fit the base (see `merge_adapters`)."""
        said = [adapter.record.distilled for adapter, _ in adapters if adapter.record.distilled is not None]
        super().__init__(base.shards, base.dim, base.origin, base.mapped, said[-1] if said else base.distilled)
        self._updates: dict[str, list[_Update]] = {}
        for adapter, scale in adapters:
            for layer, settings in adapter.layers.items():
                read = functools.partial(_fp32, adapter.weights)
                lengths = read(f"{layer}.{MAGNITUDE}") if settings.dora else None
                update = _Update(read(f"{layer}.{DOWN}"), read(f"{layer}.{UP}"), scale * settings.scale, lengths)
                self._updates.setdefault(f"{layer}.weight", []).append(update)

    def chunks(self, name: str, index: int = 0, count: int = 1) -> Iterator[Tensor]:
        if name not in self._updates:
            yield from super().chunks(name, index, count)
            return
        assert count == 1, "adapters are merged into whole weights"
        at = 0
        for chunk in super().chunks(name):
            rows = chunk.float()
            yield rows + sum(update.of(rows, at) for update in self._updates[name])
            at += chunk.shape[0]


def merge_adapters(
    load: str | Path,
    adapters: Sequence[tuple[Adapter, float]],
    save: str | Path,
    *,
    ema: bool = False,
    format: str = targets.TORCH,
    dtype: str | None = None,
    largest: int | None = None,
) -> Path:
    """Writes the weights at `load` with adapters added to `save`/model.pt or .safetensors. Returns the path to load from.

    ema: adds to the average of the weights. largest: bytes per safetensors file.
    """
    base = convert.whole_denoiser(load, ema)
    mine = fingerprint_of(load, ema)
    for adapter, scale in adapters:
        check_base(adapter.record, mine, adapter.path)
        if scale != 1 and any(settings.dora for settings in adapter.layers.values()):
            raise CheckpointError(f"{adapter.path}: a DoRA adapter has no size {scale:g} but 1")
        for layer in adapter.layers:
            shapes = [adapter.weights.shape(f"{layer}.{kind}") for kind in (UP, DOWN)]
            if f"{layer}.weight" not in base or base.shape(f"{layer}.weight") != (shapes[0][0], shapes[1][1]):
                raise CheckpointError(
                    f"{adapter.path}: is an adapter of another network: {layer} of {load} does not fit it"
                )
    merged = Merged(base, adapters)
    todo = targets.flat_file(merged, Path(save) / "model", format=format, dtype=dtype, largest=largest)
    targets.execute(todo, merged, "merging")
    _log.info(f"merged {len(adapters)} adapters into {load}: {human(todo.nbytes)}")
    return todo.texts[0][0] if todo.texts else todo.files[0].path


def extract_adapter(
    tuned: str | Path, base: str | Path, *, rank: int | None = None, error: float | None = None, ema: bool = False
) -> Adapter:
    """The adapter that turns the weights at `base` into nearly those at `tuned`, by SVD of their differences.

    rank: of every linear. error: instead, the least rank of each linear at which the difference that is left is at most
    this share of the whole (Frobenius norms). ema: takes the average of the tuned weights. Linears that do not differ
    get none; what differs in other parameters is logged and left out.
    """
    checkpoint = sources.open_checkpoint(tuned)
    after, before = (
        targets.without_unused(weights)
        for weights in (convert.whole_denoiser(tuned, ema), convert.whole_denoiser(base))
    )
    family = checkpoint.family
    if not isinstance(family, DenoiserFamily) or _shapes(after) != _shapes(before):
        raise CheckpointError(f"{tuned} and {base}: are not weights of one network; their names or shapes differ")
    linears = linears_of(family.parameters(family.config(**family.describe(after, after.shape))))
    tensors: dict[str, Tensor] = {}
    layers: dict[str, LayerAdapter] = {}
    others, left, total = [], 0.0, 0.0
    with Progress(sum(math.prod(after.shape(name)) for name in after), "extracting") as bar:
        for name in after:
            change = _fp32(after, name) - _fp32(before, name)
            layer = name.removesuffix(".weight")
            if not change.any():
                pass
            elif layer not in linears:
                others.append(name)
            else:
                up, down = _low_rank(change, rank, error, name)
                tensors |= {f"{layer}.{DOWN}": down, f"{layer}.{UP}": up}
                layers[layer] = LayerAdapter(down.shape[0], 1.0)
                left += torch.linalg.vector_norm(change - up @ down).item() ** 2
                total += torch.linalg.vector_norm(change).item() ** 2
            bar.add(change.numel())
    if not layers:
        raise CheckpointError(f"{tuned}: its linears are those of {base}; there is nothing to extract")
    ranks = sorted({settings.rank for settings in layers.values()})
    _log.info(
        f"{len(layers)} linears, rank {ranks[0]} to {ranks[-1]}; {100 * math.sqrt(left / total):.3g} % of the difference is left"
    )
    if others:
        _log.warning(f"{len(others)} parameters that are no linears differ too and are left out: {some(others)}")
    chosen = AdapterConfig(kind="lora", rank=ranks[-1], alpha=float(ranks[-1]), targets=tuple(layers))
    record = AdapterRecord(chosen, family.model_id, fingerprint_of(base), str(base))
    return Adapter(str(tuned), Weights([tensors], lambda name: None, str(tuned)), layers, record)


def _low_rank(change: Tensor, rank: int | None, error: float | None, name: str) -> tuple[Tensor, Tensor]:
    """B [out,r] and A [r,in] with B A near `change`; both have half of each singular value."""
    small = min(change.shape)
    if rank is not None and rank + _OVERSAMPLING < small // 2:
        u, s, v = _randomized_svd(change, rank + _OVERSAMPLING, generator(0, "extract", name))
    else:
        u, s, v = torch.linalg.svd(change, full_matrices=False)
    if rank is None:
        assert error is not None, "rank or error is given"
        tail = s.square().flip(0).cumsum(0).flip(0)  # what is left without the values from here on
        allowed = error**2 * tail[0]
        rank = max(1, int((tail > allowed).sum()))
    rank = min(rank, small)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).contiguous(), (root[:, None] * v[:rank]).contiguous()


def _randomized_svd(matrix: Tensor, size: int, source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values and vectors (Halko et al. 0909.4061, section 4.5, with power steps)."""
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], size, generator=source)).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: weights.shape(name) for name in weights}


def _fp32(weights: Weights, name: str) -> Tensor:
    return weights.part(name).float()
