"""Opens weights of every supported format: reads only names and shapes, and gives parameters this project's names.

| source | what it looks like |
|---|---|
| Megatron directory of OSP or MM | latest_checkpointed_iteration.txt, iter_0001000 or release, mp_rank_XX[_000]/model_optim_rng.pt |
| our torch_dist directory | iter_0001000 with metadata.json, .metadata, *.distcp, state.pt |
| merged file of OSP | model.pt, model_ema.pt; a flat dict, or one under "model", "state_dict", "gen_model", "ema_state_dict" |
| safetensors | one file, or several and an *.safetensors.index.json |
| a folder | of any of these, such as a Hugging Face one with diffusion_pytorch_model.safetensors |
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from mindspeed_mm import families
from mindspeed_mm.config.distillation import DISTILLED
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import is_adapter
from mindspeed_mm.families.base import Dialect, Family
from mindspeed_mm.files import layout, safetensors_file, torch_dist_reader, torch_state
from mindspeed_mm.files.integrity import Proof
from mindspeed_mm.files.mapped import MappedFiles
from mindspeed_mm.files.pieces import Pieces
from mindspeed_mm.files.reshard import DimOf, Shards, Weights, some
from mindspeed_mm.files.torch_reader import Record

MODEL, EMA = "model", "ema_model"  # Megatron's names for the live weights and their average
_INDEX = ".safetensors.index.json"
_STEMS = {"model": MODEL, "diffusion_pytorch_model": MODEL, "model_ema": EMA}  # stems of files in a folder
_SUFFIXES = (".safetensors", _INDEX, ".pt")
# Flags that are equal on all ranks of a run and rarely equal in two runs.
_OF_A_RUN = ("save", "seed", "lr", "train_iters", "global_batch_size", "mm_data", "mm_model")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """Opened weights: the tensors of each TP rank, by our names, for each group ("model", "ema_model")."""

    path: Path
    kind: str  # for messages: "Megatron directory", "safetensors file" ...
    groups: Mapping[str, Shards]
    family: Family | None  # None: no known network has these names
    dialect: Dialect | None
    files: tuple[Path, ...] = ()
    iteration: int | None = None  # None: a release, or a file
    mapped: MappedFiles | None = None
    records: tuple[Record, ...] = ()  # records that hold the tensors of torch files
    distilled: object = None  # what the files say of the weights' distillation (`config/distillation.py`)

    @property
    def tensor_size(self) -> int:
        return len(next(iter(self.groups.values())))

    def split(self, name: str) -> int | None:
        """Dimension of a parameter that is split over TP, by the network's family. Raises CheckpointError for an
        unknown name.
        """
        family = self.family or next(iter(families.DENOISERS.values()))
        try:
            return family.split(name)
        except KeyError:
            if is_adapter(name):
                raise CheckpointError(
                    f"{self.path}: holds an adapter, not a network; `mindspeed-mm adapter` merges and converts it"
                ) from None
            raise CheckpointError(
                f"{name}: no parameter of {family.title} has this name; is it another model's checkpoint?"
            ) from None

    def weights(self, ema: bool = False, dim_of: DimOf | None = None) -> Weights:
        """The live weights, or with `ema` their average. Without `ema`, a file with one kind of weights gives that
        kind.

        dim_of: gives the dimension split over TP, for a network in memory; default: the family's.
        """
        group = EMA if ema else MODEL
        if group not in self.groups and (ema or len(self.groups) != 1):
            hint = "; it was trained without --use-ema" if ema else ""
            raise CheckpointError(f"{self.path}: holds no {group!r}{hint}")
        shards = self.groups.get(group) or next(iter(self.groups.values()))
        return Weights(shards, dim_of or self.split, str(self.path), self.mapped, self.distilled)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Detects the format of `path` and opens it."""
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or directory")
    if path.name.endswith(_INDEX):
        parts = safetensors_file.indexed_files(path)
        shards = [safetensors_file.read_index(path)]
        return _checkpoint(path, "safetensors files", {MODEL: shards}, parts, distilled=_said_in(parts[0]))
    if path.suffix == ".safetensors":
        shards = [safetensors_file.read(path)]
        return _checkpoint(path, "safetensors file", {MODEL: shards}, [path], distilled=_said_in(path))
    return _open_torch(path)


def _open_directory(path: Path) -> Checkpoint:
    if layout.has_checkpoint(path):
        location = layout.find(path)
        return (_open_torch_dist if layout.is_torch_dist(location.directory) else _open_megatron)(location)
    found: dict[str, Path] = {}
    for stem, group in _STEMS.items():
        for suffix in _SUFFIXES:
            file = path / f"{stem}{suffix}"
            if file.is_file() and group in found:
                raise CheckpointError(f"{path}: holds {found[group].name} and {file.name}; name the one that is meant")
            if file.is_file():
                found[group] = file
    if not found:
        held = sorted(item.name for item in path.iterdir())
        raise CheckpointError(
            f"{path}: holds neither {layout.TRACKER} nor mp_rank_XX directories (Megatron), nor one of "
            f"{', '.join(stem + suffix for stem in _STEMS for suffix in _SUFFIXES)}; there is {some(held) or 'nothing'}"
        )
    opened = {group: open_checkpoint(file) for group, file in found.items()}
    groups = {group: checkpoint.weights().shards for group, checkpoint in opened.items()}
    kinds = sorted({checkpoint.kind for checkpoint in opened.values()})
    held = " and ".join(kind if kind.endswith("s") else f"a {kind}" for kind in kinds)
    paths = [file for checkpoint in opened.values() for file in checkpoint.files]
    records = [record for checkpoint in opened.values() for record in checkpoint.records]
    said = next((checkpoint.distilled for checkpoint in opened.values() if checkpoint.distilled is not None), None)
    return _checkpoint(path, f"folder with {held}", groups, paths, records=records, distilled=said)


def _open_megatron(location: layout.Location) -> Checkpoint:
    paths = layout.rank_files(location.directory)
    opened = [torch_state.open_mapped(path) for path in paths]
    states = [state for state, _ in opened]
    _check_one_run(paths, states, location)
    groups: dict[str, list[Mapping[str, Tensor]]] = {}
    for group in (MODEL, EMA):
        if all(group in state for state in states):
            groups[group] = [_flat(state[group], path) for path, state in zip(paths, states, strict=True)]
    if not groups:
        raise CheckpointError(f"{paths[0]}: holds no {MODEL!r}, only {some(sorted(map(str, states[0])))}")
    records = [record for _, found in opened for record in found]
    said = states[0].get(DISTILLED)
    return _checkpoint(location.directory, "Megatron directory", groups, paths, location.iteration, records, said)


def _open_torch(path: Path) -> Checkpoint:
    """Opens a `.pt` or `.ckpt` file: a flat dict, or a flat dict within a trainer's wrapper."""
    state, records = torch_state.open_mapped(path)
    world = _plain(getattr(state.get("args"), "tensor_model_parallel_size", None))
    if world not in (None, 1):
        raise CheckpointError(f"{path}: is one of {world} TP shards; give the directory of the run")
    groups = {}
    live = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), dict)), None)
    live = (state if live is None else live).get("gen_model", live)
    average = next((state[key] for key in ("ema_model", "ema_state_dict") if isinstance(state.get(key), dict)), None)
    if live is not None:
        groups[MODEL] = [_flat(live, path)]
    if average:
        groups[EMA] = [_flat(average, path)]
    found = groups or {MODEL: [_flat(state, path)]}
    return _checkpoint(path, "torch file", found, [path], records=records, distilled=state.get(DISTILLED))


def _open_torch_dist(location: layout.Location) -> Checkpoint:
    """Opens our --ckpt-format torch_dist. Its average is in fp32, as in the run."""
    prefixes = {"model": MODEL, "ema_params": EMA}
    found, files, paths = torch_dist_reader.read(location.directory, prefixes)
    held = torch_state.load(location.directory / layout.STATE_FILE)
    iteration = held.get("iteration")
    if None not in (iteration, location.iteration) and iteration != location.iteration:
        raise CheckpointError(
            f"{location.directory}: holds iteration {iteration}; these are files of another checkpoint"
        )
    groups = {group: [tensors] for group, tensors in found.items()}
    kind, said = "torch_dist directory", held.get(DISTILLED)
    opened = _checkpoint(location.directory, kind, groups, paths, iteration, distilled=said)
    return dataclasses.replace(opened, mapped=files)


def _said_in(path: Path) -> object:
    """What a safetensors file says of its weights' distillation, or None."""
    text = safetensors_file.metadata(path).get(DISTILLED)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: what it says of its distillation is damaged: it is no JSON") from None


def _check_one_run(paths: list[Path], states: list[dict], location: layout.Location) -> None:
    """Checks that all shards are present and come from one run and iteration."""
    first = states[0]
    for path, state in zip(paths, states, strict=True):
        flags, first_flags = state.get("args"), first.get("args")
        world = _plain(getattr(flags, "tensor_model_parallel_size", None))
        if world is not None and world != len(paths):
            raise CheckpointError(
                f"{path}: was saved by {world} TP ranks, but {location.directory} holds {len(paths)} shards"
            )
        iteration = _plain(state.get("iteration"))
        if None not in (iteration, location.iteration) and iteration != location.iteration:
            raise CheckpointError(f"{path}: is of iteration {iteration}, its directory of {location.iteration}")
        for key in ("iteration", "consumed_train_samples", "checkpoint_version"):
            if _plain(state.get(key)) != _plain(first.get(key)):
                raise CheckpointError(
                    f"{path}: {key} is {state.get(key)}, that of {paths[0].parent.name} {first.get(key)}; "
                    "the shards are not of one checkpoint"
                )
        for flag in _OF_A_RUN:
            mine, theirs = _plain(getattr(flags, flag, None)), _plain(getattr(first_flags, flag, None))
            if None not in (mine, theirs) and mine != theirs:
                raise CheckpointError(
                    f"{path}: was trained with {flag} {mine!r}, {paths[0].parent.name} with {theirs!r}; "
                    "the shards are not of one run"
                )


def _checkpoint(
    path: Path,
    kind: str,
    groups: Mapping[str, Shards],
    paths: list[Path],
    iteration: int | None = None,
    records: Iterable[Record] = (),
    distilled: object = None,
) -> Checkpoint:
    """records: records that hold the tensors of torch files."""
    family, dialect = families.of_names(next(iter(groups.values()))[0]) or (None, None)
    to_ours = family.to_ours if family else str
    renamed = {group: [_renamed(shard, to_ours, path) for shard in shards] for group, shards in groups.items()}
    values = (value for shards in renamed.values() for shard in shards for value in shard.values())
    tensors = [value for value in values if isinstance(value, Tensor)]
    records = tuple(records)
    mapped = MappedFiles(paths, tensors, Proof(paths, records))
    return Checkpoint(path, kind, renamed, family, dialect, tuple(paths), iteration, mapped, records, distilled)


def _renamed(
    shard: Mapping[str, Tensor | Pieces], to_ours: Callable[[str], str], path: Path
) -> dict[str, Tensor | Pieces]:
    """Tensors by our names. Raises CheckpointError if a parameter appears under two names."""
    ours = {to_ours(name): value for name, value in shard.items()}
    if len(ours) != len(shard):
        name = next(name for name in shard if to_ours(name) != name and to_ours(name) in shard)
        raise CheckpointError(f"{path}: holds {name} and {to_ours(name)}, two names of one parameter")
    return ours


def _flat(state: object, path: Path) -> dict[str, Tensor]:
    """Tensors of a state dict, without Megatron's empty `_extra_state` and a wrapper's "module." prefix."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a dict of weights")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors at its top level, only {some(sorted(map(str, state)))}")
    if len(tensors) != sum(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f'{path}: holds names with and without "module." before them, which are the same ones')
    for name, value in tensors.items():
        if value.dtype not in safetensors_file.DTYPES.values():
            raise CheckpointError(f"{path}: {name} is {value.dtype}; readable are {', '.join(safetensors_file.DTYPES)}")
    return tensors


def _plain(value: object) -> object:
    """A number or a text, which can be compared; None for any other value in the file."""
    return value if isinstance(value, (int, float, str)) else None
