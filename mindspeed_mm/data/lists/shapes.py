"""Shapes of a list's samples as numbers: ten million texts such as "29x480x640" would fill the memory of every process."""

from collections.abc import Iterable, Sequence

import numpy as np

from mindspeed_mm.data.lists.lazy import Lazy


class Shapes(Lazy[str]):
    """The shape of each sample: a name from a few, and its number per sample."""

    def __init__(self, names: Sequence[str], codes: np.ndarray):
        """names: each shape once, in the order of their first samples. codes: [n] whole numbers, places in `names`."""
        self.names, self.codes = tuple(names), codes

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Shapes":
        if isinstance(keys, Shapes):
            return keys
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), dtype=np.int32)
        return cls(tuple(numbers), codes)

    def __len__(self) -> int:
        return len(self.codes)

    def at(self, place: int) -> str:
        return self.names[self.codes[place]]

    @property
    def counts(self) -> dict[str, int]:
        """Shape -> number of its samples, in the order of their first samples."""
        counts = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}

    def among(self, names: Iterable[str]) -> np.ndarray:
        """[n] bool: the samples that have one of these shapes."""
        wanted = set(names)
        return np.array([name in wanted for name in self.names], dtype=bool)[self.codes]

    def peers(self, index: int) -> np.ndarray:
        """The samples of the shape of sample `index`, ascending."""
        return np.flatnonzero(self.codes == self.codes[index])

    def split(self, members: np.ndarray) -> list[np.ndarray]:
        """The samples `members` by shape: a part for each, in the order in which their first members come."""
        codes = self.codes[members]
        order = np.argsort(codes, kind="stable")
        ends = np.flatnonzero(np.diff(codes[order])) + 1
        parts = np.split(order, ends) if len(order) else []
        return [members[part] for part in sorted(parts, key=lambda part: part[0])]
