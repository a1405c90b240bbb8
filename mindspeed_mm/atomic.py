"""Writes files atomically: under a temporary name, flushed to the disk, then renamed. No other file renames or flushes."""

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

_STRETCH = 2**28  # bytes
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP)  # answers of some network file systems to the flush of a folder


class _Closable(Protocol):
    def flush(self) -> None: ...
    def close(self) -> None: ...


_File = TypeVar("_File", bound=_Closable)


@contextlib.contextmanager
def replacing(path: str | Path, beat: Callable[[str], None] = lambda what: None) -> Iterator[io.BufferedWriter]:
    """Opens a binary file that replaces `path` when the block ends; if the block fails, no file is left.

    beat: called after each part of a large file that is on the disk.
    """
    with _becoming(Path(path)) as temporary, _SteadyFile(temporary, beat) as file:
        yield file
        file.sync()


@contextlib.contextmanager
def replacing_path(path: str | Path) -> Iterator[Path]:
    """A path to write to, for libraries that open the file themselves; otherwise like `replacing`."""
    with _becoming(Path(path)) as temporary:
        yield temporary
        _flush(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Replaces a text file in one step."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


class Together:
    """Several files that appear complete and together, or not at all.

    They are written under temporary names; `commit` flushes all of them to the disk, then renames them. Leaving the
    `with` block without a commit removes them. Files left by a killed process end in .tmp; nothing reads them, and the
    next attempt replaces them.
    """

    def __init__(self, folder: Path | None = None):
        """folder: holds all files and appears as a whole; it must not exist yet. None: files of any folders."""
        self._folder = folder
        self._files: list[tuple[_Closable, Path]] = []
        self._made: list[Path] = []

    def __enter__(self) -> "Together":
        self._remove_folder()
        return self

    def __exit__(self, *_) -> None:
        for file, path in self._files:
            with contextlib.suppress(OSError):  # a full disk: what is still buffered is given up, too
                file.close()
            _unfinished(path).unlink(missing_ok=True)
        self._remove_folder()
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: the folder holds other files
                path.rmdir()

    def open(self, path: Path, opener: Callable[[Path], _File]) -> _File:
        """A new file that will become `path`. opener: opens the temporary path that it is given."""
        if self._folder is not None:
            path = _unfinished(self._folder) / path.relative_to(self._folder)
        for folder in reversed([folder for folder in path.parents if not folder.exists()]):
            folder.mkdir()
            self._made.append(folder)
        file = opener(_unfinished(path))
        self._files.append((file, path))
        return file

    def commit(self) -> None:
        """Raises OSError, and leaves no file renamed, if one of them cannot be written."""
        for file, path in self._files:
            file.flush()
            _flush(_unfinished(path))
            file.close()
        for _, path in self._files:
            rename(_unfinished(path), path)
        if self._folder is not None:
            rename(_unfinished(self._folder), self._folder)
        self._files, self._made = [], []

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(_unfinished(self._folder), ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder, whose content is on the disk, another name; the new name survives a power cut."""
    os.replace(source, target)
    try:
        _flush(target.parent)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


@contextlib.contextmanager
def _becoming(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends.

    It holds the process id, so several processes may write the same file: the last one wins.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _SteadyFile(io.BufferedWriter):
    """A file that is flushed to the disk while it is written; one flush at the end would look like a hang."""

    def __init__(self, path: Path, beat: Callable[[str], None]):
        super().__init__(io.FileIO(path, "wb"))
        self._beat = beat
        self._unflushed = 0

    def write(self, data) -> int:
        written = super().write(data)
        self._unflushed += written
        if self._unflushed >= _STRETCH:
            self.sync()
        return written

    def sync(self) -> None:
        """Waits until all bytes are on the disk."""
        self.flush()
        os.fsync(self.fileno())
        self._unflushed = 0
        self._beat("a part of a file")


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _flush(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
