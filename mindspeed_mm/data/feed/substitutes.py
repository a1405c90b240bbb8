"""Replaces an unusable sample by another of its shape, in an order that depends on (seed, epoch, index) alone."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping

import torch

from mindspeed_mm.data.feed.ledger import Substitution
from mindspeed_mm.data.feed.samples import Dataset, Sample
from mindspeed_mm.data.lists.shapes import Shapes
from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.data.workers.faults import Unforeseen
from mindspeed_mm.errors import DataError, MMError


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """A sample, its index, and the files that were tried before it."""

    sample: Sample
    index: int
    substitutions: tuple[Substitution, ...]


class NoneUsable(DataError):
    """No sample of a shape was usable; lists the files that were tried and the reasons."""

    def __init__(self, message: str, substitutions: tuple[Substitution, ...]):
        super().__init__(message, substitutions)
        self.substitutions = substitutions


class Substitutes:
    """Takes samples of a dataset, or others of their shape."""

    def __init__(self, dataset: Dataset, seed: int, max_tries: int = 10):
        """max_tries: number of unusable files in a row after which `take` fails."""
        self._dataset, self._seed, self._max_tries = dataset, seed, max_tries
        self._shapes = Shapes.of(dataset.keys)

    def take(
        self,
        index: int,
        epoch: int,
        *,
        excluded: Mapping[int, str] | None = None,
        announce: Callable[[int], None] = lambda index: None,
        allocate: Allocate = torch.empty,
    ) -> Taken:
        """Sample `index` in `epoch`, or another of its shape if that one is unusable. Raises NoneUsable.

        excluded: samples to skip -> reason. announce: called with each index before it is tried.
        """
        missed: list[Substitution] = []
        for candidate in self.candidates(index, epoch):
            try:
                if excluded and candidate in excluded:
                    raise DataError(excluded[candidate])
                announce(candidate)
                return Taken(self.sample(candidate, epoch, allocate), candidate, tuple(missed))
            except DataError as error:
                traced = error.traceback if isinstance(error, Unforeseen) else ""
                missed.append(Substitution(self._dataset.paths[candidate], str(error), traced))
        raise NoneUsable(
            f"{len(missed)} files of shape {self._dataset.keys[index]} in a row cannot be used; the last reason: "
            f"{missed[-1].reason}",
            tuple(missed),
        )

    def sample(self, index: int, epoch: int, allocate: Allocate = torch.empty) -> Sample:
        """Exactly this sample. Raises DataError for any error at it."""
        try:
            return self._dataset.sample(index, epoch, allocate)
        except MMError:
            raise
        except Exception as error:
            raise Unforeseen(self._dataset.paths[index], error) from error

    def candidates(self, index: int, epoch: int) -> Iterator[int]:
        """`index`, then other samples of its shape in an order seeded by it; `max_tries` in all."""
        yield index
        peers = self._shapes.peers(index)
        # A text seed is hashed with SHA-512, which is the same in every process.
        rng = random.Random(f"{self._seed}:{epoch}:{index}:substitutes")
        places = rng.sample(range(len(peers)), min(self._max_tries, len(peers)))
        others = [int(peers[place]) for place in places if peers[place] != index]
        yield from others[: self._max_tries - 1]
