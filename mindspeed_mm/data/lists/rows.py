"""data.txt and annotation files -> rows. What is missing in a file stays missing here; whether a row can be used is
decided in `data/lists/filters.py`.

A line of data.txt is `folder,annotation file`. A relative annotation file or folder is looked for in the working
directory first, as the published scripts do, and then beside data.txt. A row's path is relative to its folder.
"""

import dataclasses
import math
from pathlib import Path

from mindspeed_mm.data.lists.formats import missing, read_entries, read_text
from mindspeed_mm.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One clip or image of a list, as its annotation describes it; None is what the annotation does not say."""

    path: str
    captions: tuple[str, ...]  # one is drawn per access; empty when there is none
    height: int | None  # pixels, after `crop`
    width: int | None
    num_frames: int | None  # length of the clip, in frames of the file
    fps: float | None
    start: int  # first frame of the clip in the file
    crop: tuple[int, int, int, int] | None  # x0, x1, y0, y1 in pixels of the decoded frame
    aesthetic: float | None
    fault: str | None = None  # why the file could not be probed, if that was asked for

    @property
    def kind(self) -> str:
        """'video', 'image' or 'unknown'."""
        return self.kind_of(self.path)

    @staticmethod
    def kind_of(path: str) -> str:
        """By the suffix, in any case."""
        suffix = Path(path).suffix.lower()
        return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else "unknown"


def read_list(data_path: str | Path) -> tuple[Row, ...]:
    """The rows of all sources of a data.txt, in order. DataError names the file and the line or row that is wrong."""
    data_path = Path(data_path)
    rows: list[Row] = []
    for number, line in enumerate(read_text(data_path).split("\n"), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 2 or not parts[1]:
            raise DataError(
                f"{data_path}:{number}: expected `folder,annotation file`, found {len(parts)} fields in "
                f"{line.strip()!r} (a comma cannot be part of a path here)"
            )
        folder = _beside(data_path, parts[0]) if parts[0] else ""
        annotation = _beside(data_path, parts[1])
        if not annotation.is_file():
            raise DataError(f"{data_path}:{number}: annotation file {parts[1]} does not exist")
        found = read_annotation(annotation, folder)
        if folder and not folder.is_dir() and any(not Path(row.path).is_absolute() for row in found):
            raise DataError(f"{data_path}:{number}: folder {parts[0]} does not exist")
        rows.extend(found)
    if not rows:
        raise DataError(f"{data_path}: names no clips; a line is `folder,annotation file`")
    return tuple(rows)


def read_annotation(path: str | Path, folder: str | Path = "") -> tuple[Row, ...]:
    """The rows of one annotation file (.json, .jsonl, .parquet, .csv), paths under `folder`."""
    return tuple(_read_row(entry, str(folder), place) for place, entry in read_entries(Path(path)))


def _beside(data_path: Path, name: str) -> Path:
    """`name` as it stands if that exists (or is absolute), else beside data.txt if that exists, else as it stands."""
    stated, beside = Path(name), data_path.parent / name
    return beside if not stated.exists() and beside.exists() else stated


# ------------------------------------------------------------------------------------------------------------- fields


def _read_row(entry, folder: str, place: str) -> Row:
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected an object, found {type(entry).__name__}")
    entry = {key: value for key, value in entry.items() if not missing(value)}
    path = entry.get("path")
    if not isinstance(path, str) or not path:
        raise DataError(f"{place}: key 'path' must be the name of a file, found {path!r}")
    # {"height": ..., "width": ...}, or the two as keys of their own, as tables have them
    resolution = entry.get("resolution", {key: entry[key] for key in ("height", "width") if key in entry})
    if not isinstance(resolution, dict):
        raise DataError(f"{place}: resolution must be {{height, width}}, found {resolution!r}")
    cut = _list(entry, "cut", place)
    return Row(
        path=str(Path(folder) / path),
        captions=_captions(entry.get("cap"), place),
        height=_whole(resolution, "height", place),
        width=_whole(resolution, "width", place),
        num_frames=_whole(entry, "num_frames", place),
        fps=_number(entry, "fps", place),
        start=_start(cut, place),
        crop=_crop(_list(entry, "crop", place), place),
        aesthetic=_number(entry, "aesthetic" if "aesthetic" in entry else "aes", place),
    )


def _captions(value, place: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    values = [item for item in values if not missing(item)]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise DataError(f"{place}: cap must be a text or a list of texts, found {item!r}")
    # half a surrogate pair is legal in JSON, but no tokenizer takes it
    return tuple(str(item).encode("utf-8", "replace").decode("utf-8") for item in values)


def _number(entry: dict, key: str, place: str) -> float | None:
    value = entry.get(key)
    if missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise DataError(f"{place}: {key} must be a number, found {value!r}")
    return value


def _whole(entry: dict, key: str, place: str) -> int | None:
    value = _number(entry, key, place)
    if value is not None and value != int(value):
        raise DataError(f"{place}: {key} must be a whole number, found {value!r}")
    return None if value is None else int(value)


def _list(entry: dict, key: str, place: str) -> list:
    value = entry.get(key, [])
    if not isinstance(value, list):
        raise DataError(f"{place}: {key} must be a list of numbers, found {value!r}")
    return value


def _start(cut: list, place: str) -> int:
    start = _whole({"cut[0]": cut[0]}, "cut[0]", place) if cut else None
    if start is not None and start < 0:
        raise DataError(f"{place}: cut[0] is {start}; frames count from 0")
    return start or 0


def _crop(crop: list, place: str) -> tuple[int, int, int, int] | None:
    if len(crop) != 4 or any(missing(item) for item in crop):
        return None  # published lists hold [] and four nulls for "the whole frame"
    return tuple(_whole({"crop": item}, "crop", place) for item in crop)
