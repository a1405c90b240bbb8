"""Converts checkpoints to other layouts, for the converters in `examples/` and `tools/`."""

from pathlib import Path

from mindspeed_mm import families, logs
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.base import Dialect
from mindspeed_mm.files.plan import Plan, human
from mindspeed_mm.files.reshard import Weights, some
from mindspeed_mm.weights import released, sources, targets

_log = logs.get(__name__)


def merge_checkpoint(
    load_dir: str | Path,
    save_dir: str | Path,
    ema: bool = False,
    *,
    format: str = targets.TORCH,
    dtype: str | None = None,
    largest: int | None = None,
    dry_run: bool = False,
) -> Path:
    """Writes the whole denoiser weights of `load_dir` to `save_dir`/model.pt (model_ema.pt with `ema`) or
    .safetensors.

    load_dir: a run's directory, or any source of `sources.open_checkpoint`. Names are OSP's; a text tail in the last
    block is kept. largest: bytes per safetensors file. Returns the path to load from.
    """
    weights = whole_denoiser(load_dir, ema)
    stem = Path(save_dir) / ("model_ema" if ema else "model")
    todo = targets.flat_file(weights, stem, format=format, dtype=dtype, largest=largest)
    return _run(todo, weights, f"merging {len(weights.shards)} TP shards of {weights.origin}", dry_run)


def split_checkpoint(
    source: str | Path,
    save_dir: str | Path,
    tensor_size: int,
    *,
    dialect: str = "OSP",
    text_tail: str = "keep",
    dtype: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Writes the denoiser weights at `source` (live, and their average if present) as a Megatron directory for TP n.

    text_tail: "keep" it as in the source, "drop" it, or "write" it even if the source has none. MM's layout never has
    it. Returns `save_dir`.
    """
    if tensor_size < 1:
        raise CheckpointError(f"TP {tensor_size}: must be at least 1")
    checkpoint = sources.open_checkpoint(source)
    groups = {group: _denoiser_weights(checkpoint, ema=group == sources.EMA) for group in checkpoint.groups}
    spelling = _dialect(checkpoint, dialect)
    tail = text_tail if spelling.has_unused else "drop"
    groups = {group: _with_tail(weights, tail) for group, weights in groups.items()}
    if sources.MODEL not in groups:  # only an average: a run continues from it in the new directory
        groups = {sources.MODEL: groups[sources.EMA]}
    todo = targets.megatron_directory(
        groups,
        Path(save_dir),
        tensor_size=tensor_size,
        dialect=spelling,
        iteration=checkpoint.iteration,
        dtype=dtype,
    )
    _run(todo, groups, f"splitting {source} over TP {tensor_size}, names of {dialect}", dry_run)
    return Path(save_dir)


def whole_denoiser(source: str | Path, ema: bool = False) -> Weights:
    """Denoiser weights at `source`, readable part by part. Raises CheckpointError for a name of another model."""
    return _denoiser_weights(sources.open_checkpoint(source), ema)


def convert_autoencoder(
    source: str | Path, target: str | Path, *, dtype: str | None = None, dry_run: bool = False
) -> Path:
    """Converts a WFVAE `.ckpt` or other file to one flat .safetensors or .pt file."""
    target = Path(target)
    format = target.suffix.removeprefix(".")
    if format not in (targets.SAFETENSORS, targets.TORCH):
        raise CheckpointError(f"{target}: must end in .safetensors or .pt")
    weights = released.autoencoder_weights(source)
    found = families.of_names(weights)
    if found is None or found[0] not in families.AUTOENCODERS.values():
        raise CheckpointError(f"{source}: holds no WFVAE: {released.describe_names(weights)}")
    todo = targets.flat_file(weights, target.with_suffix(""), format=format, dtype=dtype)
    return _run(todo, weights, f"converting {source}", dry_run)


def _denoiser_weights(checkpoint: sources.Checkpoint, ema: bool) -> Weights:
    weights = checkpoint.weights(ema)
    for name in weights:
        checkpoint.split(name)  # raises for a name of another model
    missing = checkpoint.family.missing(weights, weights.shape) if checkpoint.family else []
    if missing:
        raise CheckpointError(
            f"{weights.origin}: {len(missing)} parameters are missing ({some(missing)}); the file is damaged or incomplete"
        )
    return weights


def _dialect(checkpoint: sources.Checkpoint, name: str) -> Dialect:
    """Dialect of this name in the family of the checkpoint's network."""
    family = checkpoint.family
    assert family is not None, "_denoiser_weights refuses names of no known network"
    known = {dialect.name: dialect for dialect in family.dialects}
    if name not in known:
        raise CheckpointError(f"dialect {name!r}: {family.title} has {', '.join(known)}")
    return known[name]


def _with_tail(weights: Weights, text_tail: str) -> Weights:
    edits = {"keep": lambda same: same, "drop": targets.without_unused, "write": targets.with_unused}
    if text_tail not in edits:
        raise CheckpointError(f"text tail {text_tail!r}: must be one of {', '.join(edits)}")
    return edits[text_tail](weights)


def _run(todo: Plan, weights, what: str, dry_run: bool) -> Path:
    """Writes a plan, or only logs it. Returns the file to load: the index if there is one."""
    _log.info(what)
    targets.announce(todo, dry_run)
    if not dry_run:
        targets.execute(todo, weights, "converting")
        _log.info(f"wrote {human(todo.nbytes)}")
    return todo.texts[0][0] if todo.texts else todo.files[0].path
