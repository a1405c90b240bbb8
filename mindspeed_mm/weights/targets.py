"""Writes weights to files: plans of the supported layouts, and their execution, one tensor at a time."""

import argparse
import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from mindspeed_mm import atomic, families, logs
from mindspeed_mm.config.distillation import DISTILLED
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.base import Dialect, Unused
from mindspeed_mm.files import integrity, layout, plan, safetensors_file
from mindspeed_mm.files.plan import OutputFile, Piece, Plan
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.files.safetensors_file import SafetensorsWriter
from mindspeed_mm.files.streamed import StreamedFile
from mindspeed_mm.files.torch_file import TorchFileWriter
from mindspeed_mm.weights.progress import Progress

_log = logs.get(__name__)
_CHECKPOINT_VERSION = 3.0  # Megatron's version number for this layout
TORCH, SAFETENSORS = "pt", "safetensors"
_GROUP = "weights"  # group of a plan with one group only


def flat_file(
    weights: Weights, stem: Path, *, format: str = TORCH, dtype: str | None = None, largest: int | None = None
) -> Plan:
    """Plan: all weights, whole, in `stem`.pt or `stem`.safetensors.

    largest: limit in bytes of tensors per safetensors file; above it several files and an index are written.
    """
    pieces = {
        name: Piece(_GROUP, name, 0, 1, weights.shape(name), plan.cast(weights.dtype(name), dtype)) for name in weights
    }
    path = stem.with_name(f"{stem.name}.{format}")
    total = sum(piece.nbytes for piece in pieces.values())
    said = {} if weights.distilled is None else {DISTILLED: weights.distilled}
    if format == TORCH:
        return Plan((OutputFile(path, pieces | said),))
    metadata = {name: json.dumps(value) for name, value in said.items()}
    if largest is None or total <= largest:
        return Plan((OutputFile(path, pieces, metadata),))
    groups = _packed(pieces, largest)
    outputs = [
        OutputFile(stem.with_name(f"{stem.name}-{number:05d}-of-{len(groups):05d}.{format}"), group, metadata)
        for number, group in enumerate(groups, 1)
    ]
    index = safetensors_file.index_text(
        {output.path.name: output.pieces for output in outputs}, {piece: name for name, piece in pieces.items()}
    )
    return Plan(tuple(outputs), ((stem.with_name(f"{stem.name}.{format}.index.json"), index),))


def megatron_directory(
    groups: Mapping[str, Weights],
    root: Path,
    *,
    tensor_size: int,
    dialect: Dialect,
    iteration: int | None = None,
    dtype: str | None = None,
) -> Plan:
    """Plan: `root`/iter_XXXXXXX (or release)/mp_rank_XX/model_optim_rng.pt, one per TP rank, and the tracker."""
    directory = root / "release" if iteration is None else layout.iteration_directory(root, iteration)
    outputs = []
    for rank in range(tensor_size):
        content: dict[str, object] = {
            "args": argparse.Namespace(tensor_model_parallel_size=tensor_size, pipeline_model_parallel_size=1),
            "checkpoint_version": _CHECKPOINT_VERSION,
            "iteration": iteration or 0,
        }
        for group, weights in groups.items():
            content[group] = _rank_state(group, weights, rank, tensor_size, dialect, dtype)
            if weights.distilled is not None:
                content[DISTILLED] = weights.distilled
        outputs.append(OutputFile(layout.rank_directory(directory, rank) / layout.MODEL_FILE, content))
    tracker = root / layout.TRACKER, "release" if iteration is None else str(iteration)
    return Plan(tuple(outputs), (tracker,), directory)


def with_unused(weights: Weights) -> Weights:
    """Weights with the parameters that the original owns but never uses (`Family.unused`).

    Missing ones are added as fresh constant values, which cost no memory.
    """
    added = {}
    for name, fact in _unused(weights).items():
        if name not in weights and fact.like in weights:
            value = torch.tensor(fact.value, dtype=weights.dtype(fact.like))
            added[name] = value.expand(weights.shards[0][fact.like].shape)
    return _edited(weights, lambda shard: {**shard, **added}) if added else weights


def without_unused(weights: Weights) -> Weights:
    """Weights without the parameters that no result depends on."""
    unused = _unused(weights)
    return _edited(weights, lambda shard: {name: value for name, value in shard.items() if name not in unused})


def _unused(weights: Weights) -> Mapping[str, Unused]:
    found = families.of_names(weights)
    return found[0].unused(weights) if found else {}


def announce(todo: Plan, dry_run: bool) -> None:
    """Logs what a plan writes, or would write."""
    for line in todo.describe():
        _log.info(f"{'would write' if dry_run else 'writing'} {line}")


def execute(todo: Plan, groups: Mapping[str, Weights] | Weights, what: str, progress: bool = True) -> None:
    """Writes the files of a plan; at the end all appear complete, or none."""
    if isinstance(groups, Weights):
        groups = {_GROUP: groups}
    _check_place(todo)
    with _disk_errors(todo):
        integrity.change({output.path: None for output in todo.files})
    with _disk_errors(todo), atomic.Together(todo.directory) as together:
        writers = [(_writer(together.open(output.path, StreamedFile), output), output.pieces) for output in todo.files]
        jobs = [(writer, piece) for writer, pieces in writers for piece in pieces]
        place = {group: {name: at for at, name in enumerate(weights)} for group, weights in groups.items()}
        # By parameter, not by file: the parts of one parameter share pages of the source.
        jobs.sort(key=lambda job: (job[1].group, place[job[1].group][job[1].name], job[1].index))
        with Progress(todo.nbytes, what, progress) as bar:
            for writer, piece in jobs:
                chunks = groups[piece.group].cast_chunks(piece.name, piece.dtype, piece.index, piece.count)
                writer.write(piece, (_counted(chunk, bar) for chunk in chunks))
        for writer, _ in writers:
            writer.close()
        together.commit()
    with _disk_errors(todo):
        for path, text in todo.texts:
            atomic.write_text(path, text)
        integrity.change(_facts(todo, [writer for writer, _ in writers]))
    for weights in groups.values():
        weights.report()


def _rank_state(group: str, weights: Weights, rank: int, count: int, dialect: Dialect, dtype: str | None) -> dict:
    """Content of a TP rank's file under `group`."""
    state: dict[str, Piece | None] = {}
    for name in weights:
        theirs = dialect.renaming.to_theirs(name)
        wide = plan.cast(weights.dtype(name), dtype)
        state[theirs] = Piece(group, name, rank, count, weights.part_shape(name, count), wide)
        layer, _, kind = name.rpartition(".")
        if dialect.has_extra_states and kind == "weight" and weights.dim(name) is not None:
            # Megatron's linears expect it; MM's converter drops it.
            state[f"{layer}.{layout.EXTRA_STATE}"] = None
    return state


def _packed(pieces: dict[str, Piece], largest: int) -> list[dict[str, Piece]]:
    """Splits pieces, in order, into groups of at most `largest` bytes; a larger tensor forms its own group."""
    groups: list[dict[str, Piece]] = [{}]
    held = 0
    for name, piece in pieces.items():
        if groups[-1] and held + piece.nbytes > largest:
            groups.append({})
            held = 0
        groups[-1][name] = piece
        held += piece.nbytes
    return groups


def _edited(weights: Weights, edit) -> Weights:
    return Weights(
        [edit(shard) for shard in weights.shards], weights.dim, weights.origin, weights.mapped, weights.distilled
    )


def _writer(file, output: OutputFile) -> TorchFileWriter | SafetensorsWriter:
    if output.path.suffix == f".{SAFETENSORS}":
        return SafetensorsWriter(file, output.content, output.metadata)
    return TorchFileWriter(file, output.content)


def _facts(todo: Plan, writers: Iterable[TorchFileWriter | SafetensorsWriter]) -> dict[Path, list[int]]:
    """What the record says of files that have no checksums of their own; `.pt` files have them."""
    pairs = zip(todo.files, writers, strict=True)
    return {output.path: writer.facts for output, writer in pairs if isinstance(writer, SafetensorsWriter)}


def _counted(chunk: torch.Tensor, bar: Progress) -> torch.Tensor:
    bar.add(chunk.numel() * chunk.element_size())
    return chunk


@contextlib.contextmanager
def _disk_errors(todo: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{todo.files[0].path}: cannot be written: {error.strerror or error}") from None


def _check_place(todo: Plan) -> None:
    if todo.directory is not None and todo.directory.exists():
        raise CheckpointError(f"{todo.directory}: exists already; remove it, or write elsewhere")
    folder = todo.files[0].path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if todo.nbytes > free:
        raise CheckpointError(f"{folder}: {plan.human(free)} free, {plan.human(todo.nbytes)} are needed")
