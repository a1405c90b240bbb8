"""Limits of requests. The form of the page has the same ones; a request need not come from the page.

This file knows no web.
"""

import dataclasses
import math
from typing import Any

from mindspeed_mm.errors import ConfigError

MAX_CHARACTERS = 4000  # length of a prompt; T5 reads 512 tokens of it


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """A number of a request. whole: integers only."""

    name: str
    least: int
    most: int
    whole: bool = True

    def check(self, value: object) -> Any:
        """The number, an int if it is whole. Raises ConfigError for any other value that a program may send."""
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not self.least <= number <= self.most or (self.whole and number != int(number)):
            kind = "a whole number" if self.whole else "a number"
            raise ConfigError(f"{self.name} {_short(value)}: give {kind} from {self.least} to {self.most}")
        return int(number) if self.whole else float(number)


STEPS = Range("steps", 1, 200)
GUIDANCE = Range("guidance", 1, 50, whole=False)
SEED = Range("seed", 0, 2**31 - 1)
FRAMES = Range("frames", 1, 4096)
HEIGHT = Range("height", 1, 8192)
WIDTH = Range("width", 1, 8192)


def text(name: str, value: object) -> str:
    """A text that is short enough to be cleaned and that a file can hold."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} {_short(value)}: give a text")
    if len(value) > MAX_CHARACTERS:
        raise ConfigError(f"{name}: {len(value)} characters; at most {MAX_CHARACTERS} are read, shorten it")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{name}: holds a half of a character (a lone surrogate); remove it")
    return value.strip()


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, (str, float, bool, type(None))) else type(value).__name__
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if abs(value) < 10**20 else "with more than 20 digits"
    return text if len(text) <= 40 else f"{text[:40]}..."
