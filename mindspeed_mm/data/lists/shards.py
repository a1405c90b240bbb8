"""Tar shards in webdataset's layout: members with the same stem form one sample. Only headers are read here.

`000.mp4`, `000.txt` and `000.json` are a clip, its caption and its other facts. Clips stay in the tar (see
`data/decode/media.py`), so shuffling, resuming and one-shape batches work as for any other list.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mindspeed_mm.data.decode.media import member_path
from mindspeed_mm.data.lists.rows import CAPTION_SUFFIXES, Row
from mindspeed_mm.errors import DataError

_MOST_TEXT = 2**24  # bytes of a caption or a .json


def read_shard(path: Path) -> Iterator[tuple[str, object]]:
    """(place, entry) for every clip or image of a tar, in order. Raises DataError for a damaged or compressed tar."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.isreg() and stem and suffix and not member.issparse():
                    samples.setdefault(f"{folder}/{stem}", {}).setdefault(suffix.lower(), member)
            found = [_entry(tar, path, members) for members in samples.values()]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable tar ({' '.join(str(error).split())[:200]}); clips are read in place, so it must not "
            "be compressed"
        ) from None
    yield from (pair for pair in found if pair is not None)


def _entry(tar: tarfile.TarFile, path: Path, members: dict[str, tarfile.TarInfo]) -> tuple[str, object] | None:
    """Entry of a sample's members; None if they hold neither clip nor image."""
    kinds = {Row.kind_of(f"_.{suffix}"): member for suffix, member in reversed(members.items())}
    media = kinds.get("video") or kinds.get("image")
    if media is None:
        return None
    place = f"{path} member {media.name}"
    entry: dict = {}
    if "json" in members:
        try:
            content = json.loads(_text(tar, members["json"], place))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} member {members['json'].name}: not valid JSON: {str(error)[:100]}") from None
        if not isinstance(content, dict):
            raise DataError(f"{path} member {members['json'].name}: expected an object, found {type(content).__name__}")
        entry = content
    texts = [members[suffix[1:]] for suffix in CAPTION_SUFFIXES if suffix[1:] in members]
    if texts:
        entry["cap"] = _text(tar, texts[0], place).strip()
    file = member_path(str(path), media.offset_data, media.size, media.name)
    return place, {**entry, "path": file}


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> str:
    if member.size > _MOST_TEXT:
        raise DataError(
            f"{place}: {member.name} has {member.size:,} bytes; a caption or its facts have at most {_MOST_TEXT:,}"
        )
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content.decode("utf-8-sig")
