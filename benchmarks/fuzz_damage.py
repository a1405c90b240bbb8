"""How `benchmarks/fuzz.py` damages bytes and texts, and its words for what a door made of them."""

import random
from collections.abc import Callable

HARMLESS, UNNOTICED, SILENT = "harmless", "unnoticed", "silent"
# One try: makes an input in the folder from the random numbers, reads it, and says which of the three came of it. Errors of
# ours are refusals, others tracebacks.
Try = Callable[[random.Random], str]


class Undamaged(random.Random):
    """With these random numbers nothing is damaged: a door that refuses that too proves nothing."""


def judged(right: bool) -> str:
    """What came of an input that was read."""
    return HARMLESS if right else SILENT


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes of the kinds that happen: bits, bytes, pieces lost, doubled, moved, cut off."""
    if isinstance(chance, Undamaged):
        return data
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 8, 64))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            other = chance.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        else:
            del data[at:]
    return bytes(data)


_WORDS = (
    '"', "{", "}", "[", "]", ",", ":", "null", "true", "-1", "0", "1e999", "NaN", "1" * 400, "\\ud800", "\u2028", "\ufeff",
    "[" * 2000, "C:\\models", "../", "\x00", "2**64", "\u0663", "1.5", '""',
)  # fmt: skip


def text_mutated(text: str, chance: random.Random) -> bytes:
    """As `mutated`, or with something odd in the place of a word."""
    if isinstance(chance, Undamaged):
        return text.encode()
    if chance.random() < 0.4:
        return mutated(text.encode(), chance)
    at = chance.randrange(len(text))
    return (text[:at] + chance.choice(_WORDS) + text[at + chance.choice((0, 1, 5)) :]).encode("utf-8", "surrogatepass")
