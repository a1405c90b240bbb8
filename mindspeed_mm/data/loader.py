"""Batches for the trainer: dataset, sampler and collate behind worker processes, with a position that can be saved."""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator

import torch

from mindspeed_mm import logs
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.data.collate import collate
from mindspeed_mm.data.dataset import ClipDataset, Sample, Substitution, build_dataset
from mindspeed_mm.data.sampler import GroupedSampler, Position, Step
from mindspeed_mm.errors import MMError
from mindspeed_mm.types import Batch, TokenIds

log = logs.get(__name__)


@dataclasses.dataclass(slots=True)
class BadSample:
    """A file that could not be used: the last reason, and how often it was met."""

    reason: str
    count: int = 0


class Loader:
    """Iterating gives micro-batches of this rank without end; epochs follow each other.

    The position counts what the iteration has handed out, not what workers have prefetched. `bad_samples` maps paths to
    what was wrong with them; each is logged once, by the process that iterates.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: GroupedSampler,
        join: Callable[[list[Sample]], Batch],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
    ):
        """join: samples -> batch. start_method: of the workers; None is the platform's own.

        Everything a worker needs can be pickled, so 'forkserver' works where forking a process with threads is a worry.
        ('spawn' works too, but with torch 2.13 such workers sometimes abort while they exit, with or without our code.)
        """
        self.dataset = dataset
        self.bad_samples: dict[str, BadSample] = {}
        self._sampler = sampler
        self._position = Position()
        self._join = join
        self._fingerprint = _fingerprint(dataset)
        self._num_workers = num_workers
        self._pin_memory = pin_memory and torch.accelerator.is_available()
        self._start_method = start_method if num_workers else None

    @property
    def epoch(self) -> int:
        return self._position.epoch

    @property
    def epoch_size(self) -> int:
        """Samples of an epoch, all ranks together."""
        return self._sampler.epoch_size

    def __iter__(self) -> Iterator[Batch]:
        requests = _Requests(self._sampler.steps(self._position))
        batches = torch.utils.data.DataLoader(
            _BatchSource(self.dataset, self._join),
            sampler=requests,
            batch_size=None,  # a request is a whole batch
            collate_fn=_unchanged,
            num_workers=self._num_workers,  # torch gives each worker one thread
            pin_memory=self._pin_memory,
            multiprocessing_context=self._start_method,
            generator=torch.Generator(),  # or it would draw from the global one, which a resume must find unchanged
        )
        for packed in batches:
            if isinstance(packed, MMError):
                raise packed
            batch, substitutions = _unpack(packed)
            self._note(substitutions)
            self._position = requests.handed_out()
            yield batch

    def _note(self, substitutions: tuple[Substitution, ...]) -> None:
        for path, reason in ((item.path, item.reason) for item in substitutions):
            if path not in self.bad_samples:
                log.warning("data: bad sample, replaced by another of its shape: %s", reason)
            entry = self.bad_samples.setdefault(path, BadSample(reason))
            entry.reason, entry.count = reason, entry.count + 1

    def rewind(self) -> None:
        """Make the next iteration start at the very first batch."""
        self._position = Position()

    def state_dict(self) -> dict:
        """Position after the last batch handed out: plain numbers, the same on every rank."""
        return {**self._sampler.state(self._position), "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved position, at any number of ranks. Takes effect with the next iteration.

        If the list of clips or the seed is another one, the position means nothing: the next epoch starts.
        """
        if state["fingerprint"] == self._fingerprint:
            self._position = self._sampler.position(state)
        else:
            self._position = Position(int(state["epoch"]) + 1)
            log.warning(
                "data: the checkpoint was written with another list of clips or seed; starting epoch %d", self.epoch
            )


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
) -> Loader:
    """The loader of one data-parallel rank. The log says what the filter dropped and which shapes are left.

    autoencoder_strides (t, h, w) and patch sizes are the models'. data_path: another list than the config's.
    evaluation: all clips in the order of the list, no rare_shape rule, no dropped captions, and every epoch the same,
    so that losses can be compared; take a fixed number of batches and `rewind`.
    """
    if evaluation:
        config = _with(config, "dataset_param.preprocess_parameters.cfg", 0.0)
    if data_path is not None:
        config = _with(config, "dataset_param.basic_parameters.data_path", data_path)
    options, target = config.dataloader_param, config.dataloader_param.collate_param
    dataset = build_dataset(
        config.dataset_param, global_batch_size=None if evaluation else global_batch_size, seed=seed
    )
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
    )
    log.info("data: an epoch has %d samples in groups of %d of one shape", sampler.epoch_size, sampler.group_size)
    one_shape = options.group_data or micro_batch_size == 1
    join = functools.partial(
        collate,
        strides=autoencoder_strides,
        patch_size=patch_size,
        patch_size_t=patch_size_t,
        target=None if one_shape else (target.num_frames, target.max_height, target.max_width),
    )
    workers, pin_memory = options.num_workers, options.pin_memory
    return Loader(dataset, sampler, join, num_workers=workers, pin_memory=pin_memory, start_method=start_method)


def _fingerprint(dataset: ClipDataset) -> int:
    """Checksum of what the order of samples is made from."""
    checksum = zlib.crc32(str(dataset.seed).encode())
    for clip in dataset.clips:
        checksum = zlib.crc32(f"{clip.row.path} {clip.key}\n".encode(), checksum)
    return checksum


def _with(config, path: str, value):
    """The config with one value, at a dotted path, replaced."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})


# ---------------------------------------------------------------------------- between the main process and the workers


class _Requests:
    """The sampler of torch's loader: hands requests to the workers and remembers the position after each."""

    def __init__(self, steps: Iterator[Step]):
        self._steps = steps
        self._pending: collections.deque[Position] = collections.deque()

    def __iter__(self):
        for step in self._steps:
            self._pending.append(step.after)
            yield step.epoch, step.indices

    def handed_out(self) -> Position:
        """The position after the oldest request; batches come back in the order of the requests."""
        return self._pending.popleft()


class _BatchSource(torch.utils.data.Dataset):
    """Request -> batch as plain tensors, which torch can pin and send; an error of ours travels as a value, because
    torch would wrap a raised one into a page of text."""

    def __init__(self, dataset: ClipDataset, join: Callable[[list[Sample]], Batch]):
        self._dataset, self._join = dataset, join

    def __getitem__(self, request: tuple[int, tuple[int, ...]]):
        epoch, indices = request
        try:
            samples = [self._dataset.item(index, epoch) for index in indices]
            batch = self._join(samples)
        except MMError as error:
            return error
        return _pack(batch, tuple(item for sample in samples for item in sample.substitutions))


def _pack(batch: Batch, substitutions: tuple[Substitution, ...]) -> dict:
    pooled = batch.pooled_text
    return {
        "video": batch.video,
        "keep": batch.keep,
        "text": (batch.text.ids, batch.text.keep),
        "pooled_text": () if pooled is None else (pooled.ids, pooled.keep),
        "paths": batch.paths,
        "addresses": batch.addresses,
        "substitutions": tuple((item.path, item.reason) for item in substitutions),
    }


def _unpack(packed: dict) -> tuple[Batch, tuple[Substitution, ...]]:
    pooled = packed["pooled_text"]
    batch = Batch(
        video=packed["video"],
        keep=packed["keep"],
        text=TokenIds(*packed["text"]),
        pooled_text=TokenIds(*pooled) if pooled else None,
        paths=tuple(packed["paths"]),
        addresses=tuple(tuple(address) for address in packed["addresses"]),
    )
    return batch, tuple(Substitution(*item) for item in packed["substitutions"])


def _unchanged(item):
    return item
