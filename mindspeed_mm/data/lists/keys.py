"""Keys under which lists of other tools give the facts of a clip, in one table. Case, blanks, dots and dashes are
ignored.
"""

import functools
import re

from mindspeed_mm.errors import DataError

# fact -> its keys; the first that a row has counts
ALIASES: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "file_name", "video", "video_path", "video_file", "file_path", "filepath", "filename", "file"),
        *("clip", "clip_path", "media", "media_path", "image", "image_path", "image_file"),
    ),
    "cap": ("cap", "caption", "captions", "text", "prompt", "description", "name"),
    "resolution": ("resolution",),
    "height": ("height", "resolution_height"),  # the second is pandas' flattened name
    "width": ("width", "resolution_width"),
    "num_frames": ("num_frames", "frames", "frame", "num_frame", "frame_count", "n_frames"),
    "fps": ("fps", "frame_rate", "framerate", "video_fps"),
    "cut": ("cut",),
    "start_frame": ("start_frame", "frame_start"),
    "end_frame": ("end_frame", "frame_end"),
    "start": ("start", "start_time", "start_s", "start_sec", "start_seconds", "begin"),  # seconds
    "end": ("end", "end_time", "end_s", "end_sec", "end_seconds"),
    "duration": ("duration", "seconds", "duration_s", "duration_sec"),
    "crop": ("crop",),
    "checksum": ("checksum", "sha256"),
    "aesthetic": ("aesthetic", "aes", "aesthetic_score"),
}
_RANKED = {key: (fact, rank) for fact, keys in ALIASES.items() for rank, key in enumerate(keys)}
_MARKS = re.compile(r"[\s.\-]+")


@functools.lru_cache(maxsize=4096)
def _ranked(key: str) -> tuple[str, int] | None:
    return _RANKED.get(_MARKS.sub("_", key.strip().lower()))


def fact_of(key: str) -> str | None:
    """The fact that a key names, or None."""
    known = _ranked(key) if len(key) < 100 else None
    return None if known is None else known[0]


def facts_of(entry: dict) -> dict[str, tuple[str, object]]:
    """fact -> (key as written, value), for an entry without its missing values."""
    found: dict[str, tuple[str, object]] = {}
    ranks: dict[str, int] = {}
    for key, value in entry.items():
        known = _ranked(key) if isinstance(key, str) and len(key) < 100 else None
        if known is not None and known[1] < ranks.get(known[0], 99):
            ranks[known[0]] = known[1]
            found[known[0]] = key, value
    return found


def no_key(place: str, fact: str, what: str, keys) -> DataError:
    """Error for entries in which no key names a fact; lists the keys found and the keys wanted."""
    found = [repr(str(key)[:40]) for key in keys]
    listed = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
    wanted = ", ".join(repr(key) for key in ALIASES[fact][:6])
    return DataError(f"{place}: no key names {what}; found {listed or 'no keys'}; wanted one of {wanted}")
