"""Folders as sources: an annotation beside the clips, tar shards, `prompts.txt` with `videos.txt`, or a text beside
each clip.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from mindspeed_mm.data.lists.formats import format_of, read_text
from mindspeed_mm.data.lists.rows import CAPTION_SUFFIXES, Row
from mindspeed_mm.errors import DataError

_PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt")
_VIDEOS = ("videos.txt", "video.txt")
_MOST_TEXT = 2**24  # bytes of a caption


def annotation_in(folder: Path) -> Path | None:
    """`metadata.csv`, `metadata.jsonl` ... of a folder, as named by Hugging Face's datasets; None if there is none."""
    found = sorted(path for path in folder.glob("metadata.*") if format_of(path) is not None)
    if len(found) > 1:
        raise DataError(
            f"{folder}: holds {' and '.join(path.name for path in found)}; name the one to read in data.txt"
        )
    return found[0] if found else None


def shards_in(folder: Path) -> list[Path]:
    """The .tar files of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar")


def read_folder(folder: Path) -> Iterator[tuple[str, object]]:
    """(place, entry) for the clips of a folder, with complete paths."""
    prompts = next((folder / name for name in _PROMPTS if (folder / name).is_file()), None)
    videos = next((folder / name for name in _VIDEOS if (folder / name).is_file()), None)
    if prompts is not None and videos is not None:
        yield from _line_by_line(folder, prompts, videos)
    else:
        yield from _side_by_side(folder)


def _line_by_line(folder: Path, prompts: Path, videos: Path) -> Iterator[tuple[str, object]]:
    texts, files = _lines(prompts), _lines(videos)
    if len(texts) != len(files):
        raise DataError(
            f"{prompts} has {len(texts)} lines, {videos} {len(files)}; line n of one belongs to line n of the other"
        )
    for number, (text, file) in enumerate(zip(texts, files, strict=True), start=1):
        if not file:
            raise DataError(f"{videos}:{number}: names no file")
        yield f"{videos}:{number}", {"path": str(folder / file), "cap": text}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).rstrip("\r\n").split("\n")]


def _side_by_side(folder: Path) -> Iterator[tuple[str, object]]:
    """Clips at any depth, each with `clip.txt` beside it; a clip without a text has no caption and is dropped."""
    count = captioned = 0
    for parent, names, files in os.walk(folder):
        names.sort()
        present = set(files)
        for name in sorted(files):
            if Row.kind_of(name) == "unknown":
                continue
            count += 1
            stem = os.path.splitext(name)[0]
            text = next((stem + suffix for suffix in CAPTION_SUFFIXES if stem + suffix in present), None)
            path = os.path.join(parent, name)
            captioned += text is not None
            yield path, {"path": path, "cap": None if text is None else _text(Path(parent, text))}
    if not count:
        raise DataError(f"{folder}: holds no clips, and neither metadata.csv, .jsonl nor .tar files")
    if not captioned:
        raise DataError(f"{folder}: none of {count} clips has a caption beside it; `clip.mp4` wants `clip.txt`")


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_TEXT:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes; a caption has at most {_MOST_TEXT:,}")
    return read_text(path).strip()
