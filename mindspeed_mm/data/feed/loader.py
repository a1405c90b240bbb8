"""Batches for the trainer: dataset, sampler and collate in worker processes, with a position that can be saved."""

import collections
import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from mindspeed_mm import logs
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.data.feed.collate import collate
from mindspeed_mm.data.feed.dataset import ClipDataset, NoneUsable, build_dataset
from mindspeed_mm.data.feed.identity import Identity
from mindspeed_mm.data.feed.ledger import BadSample, Ledger, Substitution
from mindspeed_mm.data.feed.sampler import GroupedSampler, Position
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.data.workers.buffers import SharedBuffers
from mindspeed_mm.data.workers.pool import Announce, Lent, WorkerPool
from mindspeed_mm.errors import DataError, MMError
from mindspeed_mm.types import Batch

log = logs.get(__name__)

Join = Callable[..., Batch]
# Agreement of ranks that share samples: takes this process's choice (None if it failed), returns the common choice.
Agree = Callable[[tuple[int, ...] | None], tuple[int, ...] | None]


class Loader:
    """Yields micro-batches of this rank without end; epochs follow each other.

    The position counts used batches, not prefetched ones. `ledger` records faulty files.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: GroupedSampler,
        join: Join,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
        ledger: Ledger | None = None,
        agree: Agree | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        """join: (samples, allocate=...) -> batch. num_workers: processes that decode ahead; with 0, one process
        decodes on request. start_method: of the processes; None is the platform's own.

        agree: for ranks that share their samples. Each decodes a copy, and a file may be too slow for one of them
        alone, so they agree on the clips to take. share: (i, n) yields micro-batches i, i + n, i + 2 n ... of this
        rank's stream, counted from the start of the iteration. It yields each n times in a row: once for itself, and
        once in place of each other micro-batch of the round, which other ranks make.
        """
        self.dataset = dataset
        self.ledger = ledger or Ledger()
        self._sampler = sampler
        self._position = Position()
        self._ahead: collections.deque[Position] = collections.deque()
        self._work = _BatchSource(dataset, join, num_workers)
        self._hung: dict[int, str] = {}  # clips at which a worker was killed; each costs `timeout` seconds, once
        self._agree = agree
        self._share = share
        self._identity = Identity(dataset, sampler)
        self._num_workers = num_workers
        self._pin_memory = pin_memory and torch.accelerator.is_available()
        self._start_method = start_method

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

    def __iter__(self) -> Iterator[Batch]:
        ahead = self._ahead = collections.deque()
        pool = self._pool(self._num_workers)
        made = pool.run(self._requests(ahead))
        if self._pin_memory:
            made = _in_a_thread(made, _pinned)
        try:
            for one in made:
                if self._agree is not None and isinstance(one, (Made, Refused)):
                    one = self._agreed(one)
                if isinstance(one, Refused):
                    self.ledger.close(one.substitutions)
                if isinstance(one, MMError):
                    raise one
                mine, ranks = self._share
                for turn in range(ranks):
                    if turn == mine:
                        self.ledger.note(one.substitutions, len(one.batch.paths))
                    if ahead is self._ahead:
                        self._position = ahead.popleft()
                    yield one.batch
        finally:
            made.close()
            pool.close()

    def _requests(self, ahead: collections.deque) -> Iterator["Request"]:
        steps = self._sampler.steps(self._position)
        mine, ranks = self._share
        while True:
            turn = list(itertools.islice(steps, ranks))
            ahead.extend(step.after for step in turn)
            yield Request(turn[mine].epoch, turn[mine].indices, tuple(self._hung.items()))

    def _pool(self, num_workers: int) -> WorkerPool:
        timeout_s = self.dataset.config.preprocess_parameters.timeout
        return WorkerPool(
            self._work, num_workers, lost=self._lost, timeout_s=timeout_s, start_method=self._start_method
        )

    def _lost(self, request: "Request", clip: int, reason: str) -> "Request":
        """The request without the clip at which a worker was killed."""
        self._hung[clip] = f"{self.dataset.clips[clip].row.path}: {reason}"
        return dataclasses.replace(request, excluded=(*request.excluded, (clip, self._hung[clip])))

    def _agreed(self, mine: "Made | Refused") -> "Made | MMError":
        """The batch of the clips that all ranks of these samples agree on."""
        own = mine.chosen if isinstance(mine, Made) else None
        chosen = self._agree(own)
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


def build_loader(
    config: DataConfig,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    seed: int,
    autoencoder_strides: tuple[int, int, int],
    patch_size: int,
    patch_size_t: int = 1,
    data_path: str | None = None,
    evaluation: bool = False,
    start_method: str | None = None,
    rows: Sequence[Row] | None = None,
    dataset: ClipDataset | None = None,
    ledger: Ledger | None = None,
    agree: Agree | None = None,
    share: tuple[int, int] = (0, 1),
) -> Loader:
    """The loader of one data-parallel rank. Logs the rows that the filter dropped and the remaining shapes.

    autoencoder_strides: (t, h, w); like the patch sizes they come from the models. data_path: a list that replaces the
    config's. evaluation: all clips in the order of the list, no rare_shape rule, no dropped captions, and equal
    epochs, so that losses compare; take a fixed number of batches and `rewind`. rows: the list's rows, if they are
    read already. dataset: replaces the config's. ledger, agree, share: see `Loader`.
    """
    if evaluation:
        config = _with(config, "dataset_param.preprocess_parameters.cfg", 0.0)
    if data_path is not None:
        config = _with(config, "dataset_param.basic_parameters.data_path", data_path)
    options = config.dataloader_param
    if dataset is None:
        rare = None if evaluation else global_batch_size
        dataset = build_dataset(config.dataset_param, global_batch_size=rare, seed=seed, rows=rows)
    sampler = GroupedSampler(
        dataset.keys,
        seed=seed,
        group_size=dp_size * micro_batch_size if evaluation else global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=dp_rank,
        world_size=dp_size,
        grouped=options.group_data,
        shuffle=not evaluation and (options.shuffle or options.group_data),
        drop_last=options.drop_last and not evaluation,
        repeat=evaluation,
        drop_rare=not evaluation,
    )
    log.info("data: an epoch has %d samples in groups of %d of one shape", sampler.epoch_size, sampler.group_size)
    return Loader(
        dataset,
        sampler,
        joiner(config, micro_batch_size, autoencoder_strides, patch_size, patch_size_t),
        num_workers=options.num_workers,
        pin_memory=options.pin_memory,
        start_method=start_method,
        ledger=ledger,
        agree=agree,
        share=share,
    )


def joiner(
    config: DataConfig, micro_batch_size: int, strides: tuple[int, int, int], patch_size: int, patch_size_t: int = 1
) -> Join:
    """The collate of a config: to one shape, or padded to a target if batches mix shapes."""
    target = config.dataloader_param.collate_param
    one_shape = config.dataloader_param.group_data or micro_batch_size == 1
    return functools.partial(
        collate,
        strides=strides,
        patch_size=patch_size,
        patch_size_t=patch_size_t,
        target=None if one_shape else (target.num_frames, target.max_height, target.max_width),
    )


def _with(config, path: str, value):
    """The config with the value at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})


# ---------------------------------------------------------------------------- between the main process and the workers


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A micro-batch to make. excluded: clips to skip -> reason. chosen: the exact clips to use."""

    epoch: int
    indices: tuple[int, ...]
    excluded: tuple[tuple[int, str], ...] = ()
    chosen: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A micro-batch, its clips, and the files that failed before."""

    request: Request
    batch: Batch
    chosen: tuple[int, ...]
    substitutions: tuple[Substitution, ...]


class Refused(DataError):
    """A request that failed, and the files that failed before."""

    def __init__(self, message: str, request: Request, substitutions: tuple[Substitution, ...] = ()):
        super().__init__(message, request, substitutions)
        self.request = request
        self.substitutions = substitutions

    def __str__(self) -> str:
        return self.args[0]


class _BatchSource:
    """Turns Request into Made, in a worker. Data errors are returned as values, since exceptions would carry a page of
    text.
    """

    def __init__(self, dataset: ClipDataset, join: Join, num_workers: int):
        self._dataset, self._join = dataset, join
        self._buffers = SharedBuffers(num_workers)

    def __call__(self, request: Request, announce: Announce) -> "Lent | Made | MMError":
        made = self._made(request, announce)
        video = made.batch.video if isinstance(made, Made) else None
        number = self._buffers.lend(video if isinstance(video, torch.Tensor) else None)
        return made if number is None else Lent(made, video, number)

    def take_back(self, numbers: Sequence[int]) -> None:
        self._buffers.take_back(numbers)

    def _made(self, request: Request, announce: Announce) -> "Made | MMError":
        # A single clip forms a batch without a copy; several are copied into one, which must then be shared.
        alone = len(request.indices) == 1
        try:
            samples = [
                self._sample(request, place, announce, self._buffers.allocate if alone else torch.empty)
                for place in range(len(request.indices))
            ]
            batch = self._join(samples, allocate=self._buffers.allocate)
        except DataError as error:
            return Refused(str(error), request, error.substitutions if isinstance(error, NoneUsable) else ())
        except MMError as error:
            return error
        substitutions = tuple(item for sample in samples for item in sample.substitutions)
        return Made(request, batch, tuple(sample.chosen for sample in samples), substitutions)

    def _sample(self, request: Request, place: int, announce: Announce, allocate):
        index = request.indices[place]
        if request.chosen is None:
            excluded = dict(request.excluded)
            return self._dataset.item(index, request.epoch, excluded=excluded, announce=announce, allocate=allocate)
        chosen = request.chosen[place]
        if chosen in dict(request.excluded):
            raise DataError(f"{dict(request.excluded)[chosen]}; another rank of this sample could read it")
        announce(chosen)
        return self._dataset.sample(chosen, (request.epoch, index), allocate=allocate)


def _pinned(made: "Made | MMError") -> "Made | MMError":
    if isinstance(made, MMError) or not isinstance(made.batch.video, torch.Tensor):
        return made
    return dataclasses.replace(made, batch=dataclasses.replace(made.batch, video=made.batch.video.pin_memory()))


def _in_a_thread(items: Iterator, change: Callable) -> Iterator:
    """Yields changed items; a thread changes one item ahead."""
    done, stop = queue.Queue(maxsize=1), threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return done.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((change(item), None))
                if stop.is_set():
                    return
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = done.get()
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join(timeout=5)
