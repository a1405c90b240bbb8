"""Batches for the trainer: dataset, sampler and collate in worker processes, with a position that can be saved."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator

import torch

from mindspeed_mm import logs
from mindspeed_mm.data.feed.identity import Identity
from mindspeed_mm.data.feed.ledger import BadSample, Ledger
from mindspeed_mm.data.feed.making import BatchSource, Join, Made, Making, Refused, Request
from mindspeed_mm.data.feed.sampler import GroupedSampler, Position
from mindspeed_mm.data.feed.samples import Dataset
from mindspeed_mm.data.feed.substitutes import Substitutes
from mindspeed_mm.data.workers.pool import WorkerPool
from mindspeed_mm.data.workers.threads import in_a_thread
from mindspeed_mm.errors import MMError
from mindspeed_mm.types import Batch

log = logs.get(__name__)

# Agreement of ranks that share samples: takes this process's choice (None if it failed), returns the common choice.
Agree = Callable[[tuple[int, ...] | None], tuple[int, ...] | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Sharing:
    """How ranks that share their samples go together.

    agree: each such rank decodes a copy, and a file may be too slow for one of them alone, so they agree on the samples
    to take. turn, turns: yields micro-batches turn, turn + turns, turn + 2 turns ... of this rank's stream, counted
    from the start of the iteration. It yields each `turns` times in a row: once for itself, and once in place of each
    other micro-batch of the round, which other ranks make.
    """

    agree: Agree | None = None
    turn: int = 0
    turns: int = 1


ALONE = Sharing()


class Loader:
    """Yields micro-batches of this rank without end; epochs follow each other.

    The position counts used batches, not prefetched ones. `ledger` records faulty files.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: GroupedSampler,
        join: Join,
        making: Making,
        *,
        ledger: Ledger | None = None,
        sharing: Sharing = ALONE,
    ):
        """join: (samples, addresses, allocate=...) -> batch; `joiner` gives one."""
        self.dataset = dataset
        self.ledger = ledger or Ledger()
        self._sampler = sampler
        self._position = Position()
        self._ahead: collections.deque[Position] = collections.deque()
        self._work = BatchSource(Substitutes(dataset, sampler.order.seed), join, making.num_workers)
        self._hung: dict[int, str] = {}  # samples at which a worker was killed; each costs `timeout_s`, once
        self._making, self._sharing = making, sharing
        self._identity = Identity(dataset, sampler)

    @property
    def bad_samples(self) -> dict[str, BadSample]:
        return self.ledger.bad_samples

    @property
    def epoch(self) -> int:
        return self._position.epoch

    @property
    def epoch_size(self) -> int:
        """Samples per epoch, over all ranks."""
        return self._sampler.epoch_size

    def __iter__(self) -> Generator[Batch, None, None]:
        ahead = self._ahead = collections.deque()
        pool = self._pool(self._making.num_workers)
        made = pool.run(self._requests(ahead))
        if self._making.pin_memory and torch.accelerator.is_available():
            made = in_a_thread(made, _pinned)
        try:
            for one in made:
                if self._sharing.agree is not None and isinstance(one, (Made, Refused)):
                    one = self._agreed(one, self._sharing.agree)
                if isinstance(one, Refused):
                    self.ledger.close(one.substitutions)
                if isinstance(one, MMError):
                    raise one
                for turn in range(self._sharing.turns):
                    if turn == self._sharing.turn:
                        self.ledger.note(one.substitutions, len(one.batch.paths), one.traits)
                    if ahead is self._ahead:
                        self._position = ahead.popleft()
                    yield one.batch
        finally:
            made.close()
            pool.close()

    def _requests(self, ahead: collections.deque) -> Iterator[Request]:
        steps = self._sampler.steps(self._position)
        while True:
            turns = list(itertools.islice(steps, self._sharing.turns))
            ahead.extend(step.after for step in turns)
            mine = turns[self._sharing.turn]
            yield Request(mine.epoch, mine.indices, tuple(self._hung.items()))

    def _pool(self, num_workers: int) -> WorkerPool[Request, Made | MMError]:
        making = self._making
        return WorkerPool[Request, Made | MMError](
            self._work, num_workers, lost=self._lost, timeout_s=making.timeout_s, start_method=making.start_method
        )

    def _lost(self, request: Request, sample: int, reason: str) -> Request:
        """The request without the sample at which a worker was killed."""
        self._hung[sample] = f"{self.dataset.paths[sample]}: {reason}"
        return dataclasses.replace(request, excluded=(*request.excluded, (sample, self._hung[sample])))

    def _agreed(self, mine: Made | Refused, agree: Agree) -> Made | MMError:
        """The batch of the clips that all ranks of these samples agree on."""
        own = mine.chosen if isinstance(mine, Made) else None
        chosen = agree(own)
        if chosen is None or chosen == own:
            return mine
        log.info("data: taking the clips that the first rank of these samples took: %s", chosen)
        pool = self._pool(0)
        try:
            return next(pool.run([dataclasses.replace(mine.request, chosen=chosen, excluded=())]))
        finally:
            pool.close()

    def rewind(self) -> None:
        """Makes the next iteration start at the first batch."""
        self._position = Position()

    def seek(self, samples: int) -> None:
        """Makes the next iteration start after this many samples of all ranks, at a whole global batch."""
        epoch, consumed = divmod(samples, self.epoch_size)
        self._position = Position(epoch, consumed - consumed % self._sampler.group_size)

    def state_dict(self) -> dict:
        """Position after the last used batch, and the ledger: plain values, the same on every rank after a `sync`."""
        return {
            **self._sampler.state(self._position),
            **self._identity.state_dict(),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues from a saved position, at any number of ranks and any global batch, from the next iteration on.

        If the list of clips, the seed or the rules of the order differ, the position is invalid: the next epoch
        starts, and the log names the difference.
        """
        if "ledger" in state:  # absent in the first checkpoints
            self.ledger.load_state_dict(state["ledger"])
        changed = self._identity.changed_since(state)
        if changed:
            self._position = Position(int(state["epoch"]) + 1)
            log.warning(
                "data: the place in epoch %s is lost, as the checkpoint was written with other data: %s; starting epoch %d",
                state["epoch"],
                ", ".join(changed),
                self.epoch,
            )
            return
        self._position = self._sampler.position(state)
        before, now = int(state["group_size"]), self._sampler.group_size
        if before != now:
            log.info("data: %s", self._regrouped(before, now))

    def _regrouped(self, before: int, now: int) -> str:
        """Log line about the effect of another global batch size on the running epoch."""
        then, left = self._sampler.shapes(before), self._sampler.shapes(now)
        parts = [f"global batch size {before} -> {now}: epoch {self.epoch} goes on"]
        parts[0] += f" with {self._sampler.left(self._position)} samples that it has not seen"
        for shapes, words in ((then.keys() - left.keys(), "now too rare"), (left.keys() - then.keys(), "used again")):
            if shapes:
                counts = {**then, **left}
                parts.append(f"shapes {words}: " + " ".join(f"{key}={counts[key]}" for key in sorted(shapes)))
        return "; ".join(parts)


def _pinned(made: Made | MMError) -> Made | MMError:
    if isinstance(made, MMError) or not isinstance(made.batch.video, torch.Tensor):
        return made
    return dataclasses.replace(made, batch=dataclasses.replace(made.batch, video=made.batch.video.pin_memory()))
