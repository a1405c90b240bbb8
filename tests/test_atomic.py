"""A file is whole or not there, and one file of the package knows how."""

import ast
import errno
import io
import os
from pathlib import Path

import pytest

from mindspeed_mm import atomic

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("mindspeed_mm", "tools", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
# Files that rename or flush by themselves, and why.
EXCEPTIONS = {
    "mindspeed_mm/atomic.py": {"replace", "fsync"},
    # Takes the lock file of a dead run away from its name: nothing is written, and nothing has to last.
    "mindspeed_mm/checkpoint/lock.py": {"rename"},
    # Measures the speed of a disk with a file that it throws away.
    "mindspeed_mm/cli/doctor.py": {"fsync"},
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_replaces_the_one_before(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "one")
    atomic.write_text(tmp_path / "a.txt", "zwei, \u4e8c")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zwei, \u4e8c"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("write", [atomic.replacing, atomic.replacing_path])
def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path, write):
    atomic.write_text(tmp_path / "a.txt", "whole")
    with pytest.raises(ZeroDivisionError), write(tmp_path / "a.txt") as target:
        if isinstance(target, Path):
            target.write_bytes(b"half")
        else:
            target.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert names(tmp_path) == ["a.txt"]


def test_a_library_may_write_under_the_temporary_name(tmp_path):
    with atomic.replacing_path(tmp_path / "a.mp4") as temporary:
        temporary.write_bytes(b"frames")
        assert names(tmp_path) == [temporary.name] and temporary.suffix == ".tmp"
    assert (tmp_path / "a.mp4").read_bytes() == b"frames"
    assert names(tmp_path) == ["a.mp4"]


def test_a_large_file_goes_to_the_disk_while_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_STRETCH", 100)
    said = []
    with atomic.replacing(tmp_path / "a", said.append) as file:
        for _ in range(5):
            file.write(bytes(60))
        assert len(said) == 2 and os.stat(file.fileno()).st_size >= 240
    assert len(said) == 3 and (tmp_path / "a").stat().st_size == 300


@pytest.mark.parametrize("reason, passes", [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_a_folder_is_enough(tmp_path, monkeypatch, reason, passes):
    flush = os.fsync

    def refuse(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(reason, os.strerror(reason))
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    if passes:
        atomic.write_text(tmp_path / "a.txt", "text")
        assert (tmp_path / "a.txt").read_text() == "text"
    else:
        with pytest.raises(OSError, match=os.strerror(reason)):
            atomic.write_text(tmp_path / "a.txt", "text")


def opened(path: Path):
    return open(path, "wb")


@pytest.mark.parametrize("folder", [None, "all"])
def test_several_files_appear_together(tmp_path, folder):
    place = tmp_path / "all"
    with atomic.Together(place if folder else None) as together:
        for name in ("a", "below/b"):
            together.open(place / name, opened).write(name.encode())
        assert not (place / "a").exists() and not (place / "below" / "b").exists()
        together.commit()
    assert (place / "a").read_bytes() == b"a" and (place / "below" / "b").read_bytes() == b"below/b"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "all", "b", "below"]


@pytest.mark.parametrize("folder", [None, "all"])
def test_without_a_commit_nothing_of_several_files_is_left(tmp_path, folder):
    place = tmp_path / "all"
    with pytest.raises(ZeroDivisionError), atomic.Together(place if folder else None) as together:
        together.open(place / "below" / "a", opened).write(b"half")
        raise ZeroDivisionError
    assert names(tmp_path) == []


class OnAFullDisk(io.BufferedWriter):
    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_of_several_files(tmp_path):
    with pytest.raises(OSError, match="No space left"), atomic.Together() as together:
        for name in "ab":
            together.open(tmp_path / name, lambda path: OnAFullDisk(io.FileIO(path, "wb"))).write(b"bytes")
        together.commit()
    assert names(tmp_path) == []


def own_ways(path: Path) -> set[str]:
    """Calls of a file that rename or flush: os.replace, os.rename, os.fsync, and Path.replace, Path.rename."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, of_os = node.func.attr, isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
        # A string's `replace` has two arguments, that of dataclasses has keywords.
        of_path = name in ("replace", "rename") and len(node.args) == 1 and not node.keywords
        if of_path or (of_os and name in ("replace", "rename", "renames", "fsync", "fdatasync")):
            found.add(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_atomic_renames_and_flushes(path):
    allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
    assert own_ways(path) == allowed
