"""How workers make batches: requests, answers, and the work between them."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from mindspeed_mm.data.feed.ledger import Substitution
from mindspeed_mm.data.feed.substitutes import NoneUsable, Substitutes, Taken
from mindspeed_mm.data.workers.buffers import Allocate, SharedBuffers
from mindspeed_mm.data.workers.pool import Announce, Lent
from mindspeed_mm.errors import DataError, MMError
from mindspeed_mm.types import Batch

# (samples, addresses, allocate=...) -> batch
Join = Callable[..., Batch]


@dataclasses.dataclass(frozen=True, slots=True)
class Making:
    """Where batches are made.

    num_workers: processes that decode ahead; with 0, one process decodes on request. timeout_s: seconds that a sample
    may take; None for no limit. pin_memory: copies videos to memory that an accelerator reads directly. start_method:
    of the processes; None is the platform's own.
    """

    num_workers: int = 0
    timeout_s: float | None = None
    pin_memory: bool = False
    start_method: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A micro-batch to make. excluded: samples to skip -> reason. chosen: the exact samples to use."""

    epoch: int
    indices: tuple[int, ...]
    excluded: tuple[tuple[int, str], ...] = ()
    chosen: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A micro-batch, its samples, the files that failed before, and (trait, path) for each special trait of a sample."""

    request: Request
    batch: Batch
    chosen: tuple[int, ...]
    substitutions: tuple[Substitution, ...]
    traits: tuple[tuple[str, str], ...] = ()


class Refused(DataError):
    """A request that failed, and the files that failed before."""

    def __init__(self, message: str, request: Request, substitutions: tuple[Substitution, ...] = ()):
        super().__init__(message, request, substitutions)
        self.request = request
        self.substitutions = substitutions


class BatchSource:
    """Turns Request into Made, in a worker. Data errors are returned as values, since exceptions would carry a page of
    text.
    """

    def __init__(self, substitutes: Substitutes, join: Join, num_workers: int):
        self._substitutes, self._join = substitutes, join
        self._buffers = SharedBuffers(num_workers)

    def __call__(self, request: Request, announce: Announce) -> "Lent[Made | MMError] | Made | MMError":
        made = self._made(request, announce)
        video = made.batch.video if isinstance(made, Made) and isinstance(made.batch.video, torch.Tensor) else None
        number = self._buffers.lend(video)
        return (
            Lent(made, video, number) if isinstance(made, Made) and video is not None and number is not None else made
        )

    def take_back(self, numbers: Sequence[int]) -> None:
        self._buffers.take_back(numbers)

    def _made(self, request: Request, announce: Announce) -> "Made | MMError":
        # A single clip forms a batch without a copy; several are copied into one, which must then be shared.
        alone = len(request.indices) == 1
        try:
            taken = [
                self._taken(request, place, announce, self._buffers.allocate if alone else torch.empty)
                for place in range(len(request.indices))
            ]
            addresses = tuple((request.epoch, index) for index in request.indices)
            batch = self._join([one.sample for one in taken], addresses, allocate=self._buffers.allocate)
        except DataError as error:
            return Refused(str(error), request, error.substitutions if isinstance(error, NoneUsable) else ())
        except MMError as error:
            return error
        substitutions = tuple(item for one in taken for item in one.substitutions)
        traits = tuple((trait, one.sample.path) for one in taken for trait in one.sample.traits)
        return Made(request, batch, tuple(one.index for one in taken), substitutions, traits)

    def _taken(self, request: Request, place: int, announce: Announce, allocate: Allocate) -> Taken:
        index, excluded = request.indices[place], dict(request.excluded)
        if request.chosen is None:
            return self._substitutes.take(index, request.epoch, excluded=excluded, announce=announce, allocate=allocate)
        chosen = request.chosen[place]
        if chosen in excluded:
            raise DataError(f"{excluded[chosen]}; another rank of this sample could read it")
        announce(chosen)
        return Taken(self._substitutes.sample(chosen, request.epoch, allocate), chosen, ())
