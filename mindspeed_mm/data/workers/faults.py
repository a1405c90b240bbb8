"""An error at one item that no code expects: the item is skipped, and the log shows the traceback."""

import traceback

from mindspeed_mm import logs
from mindspeed_mm.errors import DataError

log = logs.get(__name__)


class Unforeseen(DataError):
    """An unexpected error at one clip. It counts as a bad sample; the first is logged with its traceback."""

    def __init__(self, path: str, error: Exception):
        text = " ".join(str(error).split())
        super().__init__(f"{path}: {type(error).__name__}: {text[:300]}")
        self.traceback = "".join(traceback.format_exception(error))


def unforeseen(path: str, error: Exception) -> str:
    """Reason text for an unexpected error at a sample; logs its traceback."""
    found = Unforeseen(path, error)
    log.error("data: an error that nobody foresaw:\n%s", found.traceback)
    return str(found)
