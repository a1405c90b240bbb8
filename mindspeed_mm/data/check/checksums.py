"""SHA-256 of the files of a list: a checksum finds damage that no decoder notices."""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.data.decode import media
from mindspeed_mm.data.lists.rows import Row

_BLOCK = 2**22
_THREADS = 4  # hashing releases the interpreter lock


@dataclasses.dataclass(frozen=True, slots=True)
class Sums:
    """sums: path -> checksum, None for unreadable files. wrong: one line for each file that has changed."""

    sums: dict[str, str | None]
    verified: int
    wrong: tuple[str, ...]


def compare(rows: Sequence[Row]) -> Sums:
    """Reads every file of a list once, and compares it with the checksum of its row, if there is one."""
    paths = list(dict.fromkeys(row.path for row in rows))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = dict(zip(paths, pool.map(checksum, paths), strict=True))
    known = {row.path: row.checksum for row in rows if row.checksum is not None}
    wrong = tuple(
        f"{path}: {'cannot be read' if sums[path] is None else 'is not the file it was'}; its checksum was {said}"
        for path, said in known.items()
        if sums[path] != said
    )
    return Sums(sums, len(known) - len(wrong), wrong)


def checksum(path: str) -> str | None:
    """SHA-256 of a file in hexadecimal digits, as `sha256sum` prints it; None if it is unreadable."""
    digest = hashlib.sha256()
    try:
        media.check_file(path)
        with media.open_bytes(path) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except (OSError, media.DataError):
        return None
    return digest.hexdigest()


def write_list(rows: Sequence[Row], sums: Sums, path: Path) -> None:
    """Writes the list as one .jsonl with a key `checksum`; keeps all facts of the rows."""
    lines = []
    for row in rows:
        entry = {
            "path": str(Path(row.path).absolute()),
            "cap": list(row.captions),
            "checksum": row.checksum or sums.sums[row.path],
        }
        entry |= {"num_frames": row.num_frames, "fps": row.fps, "aesthetic": row.aesthetic}
        entry["resolution"] = {"height": row.height, "width": row.width} if row.height and row.width else None
        entry["cut"] = [row.start, row.start + row.num_frames] if row.start and row.num_frames else None
        entry["crop"] = list(row.crop) if row.crop else None
        entry = {key: value for key, value in entry.items() if value is not None}
        lines.append(json.dumps(entry, ensure_ascii=False))
    atomic.write_text(path, "\n".join(lines) + "\n")
