"""Turns an entry of an annotation into a Row: defines the keys and their allowed values.

A number may be a text ("29.97", "30000/1001"). A size may be an object, [height, width] or "1280x720". Times are
seconds or "0:01:02.5". Errors name the place, the key as written there, the value and the rule.
"""

import ast
import decimal
import json
import math
import re
from pathlib import Path

from mindspeed_mm.data.lists.keys import facts_of, no_key
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.errors import DataError

_MOST = 2**31 - 1  # limit for frames and pixels, so that no later calculation overflows
_MOST_SECONDS = 10.0**9
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
_NOTHING = ("", "nan", "none", "null", "n/a", "na")
_SIZE = re.compile(r"([0-9]{1,9})\s*[x×*]\s*([0-9]{1,9})", re.IGNORECASE)  # width x height, as people write it
_CLOCK = re.compile(r"(?:([0-9]{1,6}):)?([0-9]{1,2}):([0-9]{1,2}(?:\.[0-9]{1,9})?)")
_PERIOD = re.compile(r"PT(?:([0-9]{1,6})H)?(?:([0-9]{1,6})M)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)S)?")  # ISO 8601
# Parts of a name that no message, ledger or cache could hold in a line of UTF-8.
_UNFIT = re.compile("[\0-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_LONGEST_CELL = 10_000  # characters of a list or object that is written as text

Found = tuple[str, object]  # the key as written, and its value


def missing(value) -> bool:
    """True for JSON null, and for the NaN that pandas writes for a gap in a column."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_row(entry, folder: Path, place: str) -> Row:
    """The row of an entry, with its path below `folder`. Raises DataError for an invalid value."""
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected an object, found {type(entry).__name__}")
    facts = facts_of({key: value for key, value in entry.items() if not missing(value)})
    if "path" not in facts:
        raise no_key(place, "path", "the file", entry)
    height, width = _size(facts, place)
    fps = _number(facts, "fps", place)
    start, num_frames = _extent(facts, fps, place)
    row = Row(
        path=str(folder / _path(*facts["path"], place)),
        captions=_captions(facts.get("cap"), place),
        height=height,
        width=width,
        num_frames=num_frames,
        fps=fps,
        start=start,
        crop=_crop(facts.get("crop"), place),
        aesthetic=_number(facts, "aesthetic", place),
        seconds=_seconds_of(facts, place),
        checksum=_checksum(facts.get("checksum"), place),
    )
    return row if row.seconds is None else row.timed(fps)


def _path(key: str, value, place: str) -> str:
    if isinstance(value, dict) and "path" in value:  # a cell of a Hugging Face table: {"bytes", "path"}
        if value.get("bytes"):
            raise DataError(f"{place}: {key} holds the clip itself; write the clips into files and name them")
        value = value["path"]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: key {key!r} must be the name of a file, found {_short(value)}")
    if _UNFIT.search(value):
        place = place.encode("unicode_escape").decode("ascii")
        raise DataError(
            f"{place}: {key} {_short(value)} cannot be the name of a file here: it holds a line break, a control character "
            "or bytes that are not UTF-8; rename the file"
        )
    return value


def _checksum(found: Found | None, place: str) -> str | None:
    if found is None:
        return None
    key, value = found
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value.strip()):
        raise DataError(f"{place}: {key} must be a SHA-256, 64 hexadecimal digits, found {_short(value)}")
    return value.strip().lower()


def _captions(found: Found | None, place: str) -> tuple[str, ...]:
    if found is None:
        return ()
    key, value = found
    texts = []
    for item in value if isinstance(value, list) else [value]:
        if missing(item):
            continue
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise DataError(f"{place}: {key} must be a text or a list of texts, found {_short(item)}")
        if isinstance(item, int) and abs(item) >= 10**30:
            raise DataError(f"{place}: {key} is a number of more than 30 digits; write it as a text")
        # JSON allows half a surrogate pair, but no tokenizer takes it
        texts.append(str(item).encode("utf-8", "replace").decode("utf-8"))
    return tuple(texts)


def _size(facts: dict[str, Found], place: str) -> tuple[int | None, int | None]:
    """(height, width) from `resolution`, or from two separate keys as in tables."""
    apart = {fact: facts[fact] for fact in ("height", "width") if fact in facts}
    if "resolution" not in facts:
        return _whole(apart, "height", place), _whole(apart, "width", place)
    key, value = facts["resolution"]
    value = _decoded(value)
    if isinstance(value, str) and (text := _SIZE.fullmatch(value.strip())):
        value = [text[2], text[1]]
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif isinstance(value, list) and not value:
        value = {}
    if not isinstance(value, dict):
        if len(apart) == 2:  # Open-Sora's lists give the number of pixels beside height and width
            return _whole(apart, "height", place), _whole(apart, "width", place)
        raise DataError(
            f"{place}: {key} must be {{height, width}}, [height, width] or a text such as '1280x720' (width x height), "
            f"found {_short(value)}"
        )
    inner = facts_of({name: item for name, item in value.items() if not missing(item)})
    return _whole(inner, "height", place), _whole(inner, "width", place)


def _extent(facts: dict[str, Found], fps: float | None, place: str) -> tuple[int, int | None]:
    """First frame and number of frames, as far as the entry gives them in frames."""
    cut = _list(facts.get("cut"), place)
    if cut:
        facts = {**facts, "start_frame": ("cut[0]", cut[0]), "end_frame": ("cut[1]", (cut[1:2] or [None])[0])}
    start, end = _whole(facts, "start_frame", place), _whole(facts, "end_frame", place)
    if start is not None and start < 0:
        raise DataError(f"{place}: {facts['start_frame'][0]} is {start}; frames count from 0")
    num_frames, duration = _whole(facts, "num_frames", place), _seconds(facts.get("duration"), place)
    if num_frames is None and end is not None:
        num_frames = max(0, end - (start or 0))
    elif num_frames is None and duration is not None and fps is not None and fps > 0:
        num_frames = min(round(duration * fps), _MOST)
    return start or 0, num_frames


def _seconds_of(facts: dict[str, Found], place: str) -> tuple[float, float | None] | None:
    """Start and end in seconds, if the entry gives no part in frames."""
    if "cut" in facts or "start_frame" in facts or not {"start", "end"} & set(facts):
        return None
    start, end = _seconds(facts.get("start"), place) or 0.0, _seconds(facts.get("end"), place)
    if start < 0 or (end is not None and end <= start):
        raise DataError(
            f"{place}: start {start:g} s, end {end:g} s: the end must lie behind the start"
            if end is not None
            else f"{place}: start {start:g} s: must be 0 or more"
        )
    return (start, end) if start or end is not None else None


def _crop(found: Found | None, place: str) -> tuple[int, int, int, int] | None:
    if found is None:
        return None
    crop = _list(found, place)
    sides = [side for item in crop if (side := _whole({"crop": (found[0], item)}, "crop", place)) is not None]
    if not sides:
        return None  # published lists hold [] and four nulls for "the whole frame"
    if len(sides) != len(crop) or len(crop) != 4:
        raise DataError(
            f"{place}: {found[0]} {crop}: must be four numbers (left, right, top, bottom), or none for the whole frame"
        )
    left, right, top, bottom = sides
    return left, right, top, bottom


# ------------------------------------------------------------------------------------------------------------- values


def _number(facts: dict[str, Found], fact: str, place: str) -> float | None:
    """A finite number, or a text that is one."""
    if fact not in facts or missing(facts[fact][1]):
        return None
    key, value = facts[fact]
    if isinstance(value, str):
        if value.strip().lower() in _NOTHING:
            return None
        number = _number_of(value.strip())
    else:
        value = float(value) if isinstance(value, decimal.Decimal) else value
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not -1e30 < number < 1e30:
        raise DataError(f"{place}: {key} must be a number, found {_short(value)}")
    return number if isinstance(number, int) else float(number)


def _number_of(text: str) -> float | None:
    over, slash, under = text.partition("/")
    if not all(_NUMBER.fullmatch(part.strip()) for part in (over, under)[: 1 + bool(slash)]):
        return None
    if not slash:
        return float(over)
    return float(over) / float(under) if float(under) else None


def _whole(facts: dict[str, Found], fact: str, place: str) -> int | None:
    value = _number(facts, fact, place)
    if value is None:
        return None
    if value != int(value) or not -_MOST <= value <= _MOST:
        raise DataError(f"{place}: {facts[fact][0]} must be a whole number below 2^31, found {_short(facts[fact][1])}")
    return int(value)


def _seconds(found: Found | None, place: str) -> float | None:
    """Seconds, given as a number or as a text such as '0:01:02.5' or 'PT1M2S'."""
    if found is None:
        return None
    key, value = found
    for pattern in (_CLOCK, _PERIOD):
        parts = pattern.fullmatch(value.strip()) if isinstance(value, str) else None
        if parts and any(parts.groups()):
            hours, minutes, seconds = (float(part or 0) for part in parts.groups())
            return 3600 * hours + 60 * minutes + seconds
    seconds = _number({key: found}, key, place)
    if seconds is not None and not -_MOST_SECONDS < seconds < _MOST_SECONDS:
        raise DataError(f"{place}: {key} must be a time in seconds, found {_short(value)}")
    return seconds


def _list(found: Found | None, place: str) -> list:
    if found is None:
        return []
    key, value = found
    value = _decoded(value)
    if isinstance(value, str) and value.strip().lower() in _NOTHING:
        return []
    if not isinstance(value, list):
        raise DataError(f"{place}: {key} must be a list of numbers, found {_short(value)}")
    return value


def _decoded(value):
    """Decodes a list or object written as text: JSON, or Python's repr, which pandas writes."""
    if not isinstance(value, str) or len(value) > _LONGEST_CELL or value.strip()[:1] not in ("[", "{", "("):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return list(found) if isinstance(found, tuple) else found
    return value


def _short(value) -> str:
    """The value for a message, on one short line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 70 else f"{text[:66]} ..."
