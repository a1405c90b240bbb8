"""Progress bar for long reads and writes; short ones show none."""

import sys

from tqdm import tqdm

_WORTH_A_BAR = 2**28


class Progress:
    """`with Progress(total_bytes, "merging") as bar: bar.add(n)`."""

    def __init__(self, total: int, what: str, shown: bool = True):
        every = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file gets fewer lines than a terminal
        hidden = not shown or total < _WORTH_A_BAR
        self._bar = tqdm(
            total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=hidden, mininterval=every
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def add(self, nbytes: int) -> None:
        self._bar.update(nbytes)
