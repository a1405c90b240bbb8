"""Megatron's layout of a checkpoint: `iter_0000100/mp_rank_00/model_optim_rng.pt` and the tracker file beside the
directory.
"""

import dataclasses
import re
from pathlib import Path

from mindspeed_mm.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
MODEL_FILE = "model_optim_rng.pt"
OPTIMIZER_FILE = "distrib_optim.pt"
EXTRA_STATE = "_extra_state"  # Megatron's linears save this key beside their weights; its value is None
DIST_FILE = "metadata.json"  # a directory with it is in the format of dist_checkpointing
STATE_FILE = "state.pt"  # in torch_dist: all state that is not a tensor
_RANK = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?")


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """A checkpoint on disk: its directory, and its iteration (None for a `release`)."""

    directory: Path
    iteration: int | None


def iteration_directory(root: Path, iteration: int) -> Path:
    return root / f"iter_{iteration:07d}"


def rank_directory(directory: Path, tensor_rank: int) -> Path:
    return directory / f"mp_rank_{tensor_rank:02d}"


def has_checkpoint(root: Path) -> bool:
    """True if `root` is a run's directory with a checkpoint, or one checkpoint; it may be damaged."""
    if not root.is_dir():
        return False
    return (root / TRACKER).is_file() or bool(iterations(root)) or is_torch_dist(root) or _has_ranks(root)


def find(root: Path) -> Location:
    """The latest checkpoint under `root`, or `root` itself if it holds the mp_rank directories."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such directory")
    tracker = root / TRACKER
    if tracker.is_file():
        word = _word(tracker)
        is_number = re.fullmatch("[0-9]{1,18}", word) is not None
        if not is_number and word != "release":
            raise CheckpointError(f"{tracker}: holds {word[:40]!r}; expected an iteration or 'release'")
        location = Location(iteration_directory(root, int(word)), int(word)) if is_number else None
        location = location or Location(root / "release", None)
        if not location.directory.is_dir():
            raise CheckpointError(f"{tracker} names {location.directory.name}, but {location.directory} does not exist")
        return location
    if _has_ranks(root) or is_torch_dist(root):
        named = re.fullmatch(r"iter_(\d{7})", root.name)
        return Location(root, int(named.group(1)) if named else None)
    raise CheckpointError(f"{root}: holds neither {TRACKER} nor mp_rank_XX directories; is it a checkpoint directory?")


def _word(tracker: Path) -> str:
    try:
        return tracker.read_bytes().decode("utf-8", "replace").strip()
    except OSError as error:
        raise CheckpointError(f"{tracker}: cannot be read ({error})") from None


def iterations(root: Path) -> list[int]:
    """Iterations with a complete directory, latest first."""
    found = [re.fullmatch(r"iter_(\d{7,})", item.name) for item in root.iterdir() if item.is_dir()]
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def candidates(root: Path) -> tuple[list[Location], str | None]:
    """Checkpoints to load from, best first: the tracker's, then older ones; and a line for the log, or None.

    The tracker decides, as in Megatron: writing an older iteration into it returns to that one. If the tracker is
    missing or wrong, the latest directory counts.
    """
    numbers = iterations(root)
    every = [Location(iteration_directory(root, number), number) for number in numbers]
    try:
        first = find(root)
    except CheckpointError as error:
        if not every:
            raise
        return every, f"{error}; taking the latest directory, {every[0].directory.name}"
    latest = first.iteration
    if latest is None or first.directory == root:
        return [first], None
    newer = [number for number in numbers if number > latest]
    note = None
    if newer:
        note = (
            f"{root / TRACKER} names iteration {latest}, and {iteration_directory(root, newer[0]).name} is newer: continuing "
            f"from {first.directory.name}; write {newer[0]} into that file to continue from the newer one"
        )
    return [first, *(location for number, location in zip(numbers, every, strict=True) if number < latest)], note


def state_files(directory: Path) -> list[Path]:
    """Files of a checkpoint that state its iteration."""
    return [directory / STATE_FILE] if is_torch_dist(directory) else rank_files(directory)


def is_torch_dist(directory: Path) -> bool:
    """True if a checkpoint is in the format of megatron-core's dist_checkpointing."""
    return (directory / DIST_FILE).is_file()


def _has_ranks(directory: Path) -> bool:
    return any(_RANK.fullmatch(item.name) for item in directory.iterdir())


def check(directory: Path) -> None:
    """Raises CheckpointError unless the names in a directory are those of a complete checkpoint."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    if not is_torch_dist(directory):
        rank_files(directory)


def rank_files(directory: Path) -> list[Path]:
    """Model files of all TP ranks, in order. Raises CheckpointError for a gap in the ranks or a missing file."""
    ranks = {}
    for item in directory.iterdir():
        match = _RANK.fullmatch(item.name)
        if match and match.group(2) not in (None, "000"):
            raise CheckpointError(f"{item}: a pipeline-parallel checkpoint; only pipeline size 1 is supported")
        if match:
            ranks[int(match.group(1))] = item / MODEL_FILE
    if not ranks:
        raise CheckpointError(f"{directory}: holds no mp_rank_XX directory")
    for rank in range(max(ranks) + 1):
        if rank not in ranks or not ranks[rank].is_file():
            raise CheckpointError(
                f"{rank_directory(directory, rank) / MODEL_FILE}: missing; the other shards are useless without it"
            )
    return [ranks[rank] for rank in sorted(ranks)]
