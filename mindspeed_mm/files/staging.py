"""Makes several files appear complete and together, or not at all."""

import contextlib
import shutil
from pathlib import Path

from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files.torch_state import flush_directory
from mindspeed_mm.files.write_behind import WriteBehind

_MARK = ".tmp"


class Staging:
    """Writes files under temporary names; `commit` flushes all of them to the disk, then renames them.

    Leaving the `with` block without a commit removes the temporary files. Files left by a killed process end in .tmp;
    nothing reads them, and the next attempt replaces them.
    """

    def __init__(self, directory: Path | None = None):
        """directory: holds the files and appears as a whole; it must not exist yet."""
        if directory is not None and directory.exists():
            raise CheckpointError(f"{directory}: exists already; remove it, or write elsewhere")
        self._directory = directory
        self._files: list[tuple[WriteBehind, Path]] = []
        self._made: list[Path] = []
        self._committed = False

    def __enter__(self) -> "Staging":
        if self._directory is not None:
            shutil.rmtree(_temporary(self._directory), ignore_errors=True)
        return self

    def __exit__(self, *_) -> None:
        if self._committed:
            return
        for file, path in self._files:
            file.close()
            _temporary(path).unlink(missing_ok=True)
        if self._directory is not None:
            shutil.rmtree(_temporary(self._directory), ignore_errors=True)
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: the folder holds other files
                path.rmdir()

    def open(self, path: Path) -> WriteBehind:
        """Opens a new file that will become `path`."""
        if self._directory is not None:
            path = _temporary(self._directory) / path.relative_to(self._directory)
        self._make(path.parent)
        file = WriteBehind(_temporary(path))
        self._files.append((file, path))
        return file

    def commit(self) -> None:
        for file, _ in self._files:
            file.sync()
            file.close()
        for _, path in self._files:
            _temporary(path).replace(path)
        for folder in {path.parent for _, path in self._files}:
            flush_directory(folder)
        if self._directory is not None:
            _temporary(self._directory).rename(self._directory)
            flush_directory(self._directory.parent)
        self._committed = True

    def _make(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            self._made.append(path)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + _MARK)
