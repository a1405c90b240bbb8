"""Data of a run: one list for all ranks, loaders that agree, one ledger."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic, logs
from mindspeed_mm.config.data import DataConfig, DatasetConfig
from mindspeed_mm.config.run import TrainingFlags
from mindspeed_mm.data.feed.build import build_loader, joiner
from mindspeed_mm.data.feed.dataset import ClipDataset, filtered_list, load_tokens
from mindspeed_mm.data.feed.ledger import Ledger
from mindspeed_mm.data.feed.loader import Loader, Sharing
from mindspeed_mm.data.feed.sampler import Split
from mindspeed_mm.data.feed.video import VideoSource
from mindspeed_mm.data.lists.filters import Clip, FilterResult
from mindspeed_mm.errors import DataError
from mindspeed_mm.families.base import Grid
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.hosts import Hosts

_log = logs.get(__name__)
_DROPPED, _BAD = "dropped.json", "bad_samples.json"


class RunData:
    """Makes the loaders of a run; every method is collective."""

    def __init__(
        self, config: TrainingFlags, data: DataConfig, parallel: ParallelContext, strides: Grid, patch_size: int = 1
    ):
        """strides: (t, h, w) compression of the autoencoder. patch_size: latent pixels per side of a token."""
        self.config = config
        self.parallel = parallel
        self.hosts = Hosts(parallel)
        self.data = _with_time_limit(config, data)
        self.strides = strides
        self.patch_size = patch_size

    @property
    def shares_encoders(self) -> bool:
        """True if the ranks of one sample share the encoding, each that of other micro-batches."""
        return False

    def train(self) -> Loader:
        """The training loader; its `sharing` follows `shares_encoders`."""
        config, alone = self.config, self.shares_encoders
        sharers = self.hosts.sharers
        turns = (sharers.index(self.parallel.rank), len(sharers)) if alone else None
        folder = config.data_ledger
        dataset = self._dataset(self.data, config.global_batch_size, _DROPPED)
        ledger = Ledger(
            None if folder is None else Path(folder) / _BAD,
            max_bad_fraction=config.max_bad_fraction,
            everyone=self.hosts if self.parallel.world_size > 1 else None,
            counts=alone or self.hosts.is_first_of_samples,
            writes=self.parallel.is_first,
        )
        return self._loader(dataset, ledger, turns, evaluation=False)

    def held_out(self, data_path: str | None) -> Loader:
        """The evaluation loader: reads a held-out list (None: the run's own) once, in order."""
        dataset = self._dataset(self.data.held_out(data_path), None, None)
        return self._loader(dataset, None, None, evaluation=True)

    def _loader(
        self, dataset: ClipDataset, ledger: Ledger | None, turns: tuple[int, int] | None, evaluation: bool
    ) -> Loader:
        config, parallel = self.config, self.parallel
        several = parallel.tensor_size * parallel.context_size > 1 and turns is None
        agree = functools.partial(self.hosts.first_decides, count=config.micro_batch_size) if several else None
        loader = build_loader(
            dataset,
            self.data,
            Split(config.global_batch_size, config.micro_batch_size, parallel.data_rank, parallel.data_size),
            joiner(self.data, config.micro_batch_size, self.strides, self.patch_size),
            seed=config.seed,
            evaluation=evaluation,
            ledger=ledger,
            sharing=Sharing(agree, *(turns or (0, 1))),
        )
        # Each rank reads the list from its own disk; a different list would train on other clips or rows.
        state = loader.state_dict()
        self.must_agree(
            (state["fingerprint"], state["paths"]), dataset.config.basic_parameters.data_path, "list of clips"
        )
        return loader

    def must_agree(self, mine, path: str | Path, what: str) -> None:
        """Raises DataError on every rank if any rank read another value from `path` than the first rank."""
        unlike = self.hosts.unlike_first(mine)
        if unlike is not None:
            raise DataError(
                f"{path}: {unlike} sees another {what} under this path than the first rank; nodes must share it"
            )

    def _dataset(self, data: DataConfig, global_batch_size: int | None, report: str | None) -> ClipDataset:
        config = data.dataset_param
        result = self.listed(data, global_batch_size)
        found = self._findings(config, result.clips)
        if report is not None and self.config.data_ledger is not None and self.parallel.is_first:
            file = Path(self.config.data_ledger) / report
            facts = {**result.report(), **found}
            if logs.Attempts(_log, str(file))(lambda: _write_json(file, facts)) and result.dropped:
                _log.info(f"data: every dropped row is listed in {file}")
        videos, texts = self._sources(config, result.clips)
        return ClipDataset(result.usable, config, videos, texts, seed=self.config.seed)

    def _findings(self, config: DatasetConfig, clips: Sequence[Clip]) -> dict[str, object]:
        """What else is found about a list, for the report of dropped rows. Raises DataError on all ranks if the run
        cannot use the list.
        """
        return {}

    def _sources(self, config: DatasetConfig, clips: Sequence[Clip]) -> tuple[Any, Any]:
        """Sources of videos and texts."""
        return VideoSource(config.preprocess_parameters), load_tokens(config)

    def listed(self, data: DataConfig, global_batch_size: int | None) -> FilterResult:
        """The clips of a config's list; the first rank opens files whose rows lack facts."""
        return filtered_list(
            data.dataset_param,
            global_batch_size=global_batch_size,
            everything=self.config.probe,
            share=self.hosts.from_first,
        )


def _write_json(file: Path, value: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, json.dumps(value, indent=1, ensure_ascii=False))


def _with_time_limit(config: TrainingFlags, data: DataConfig) -> DataConfig:
    """The data config with a time limit per clip that is short enough for ranks waiting in a collective."""
    dataset = data.dataset_param
    preprocess = dataset.preprocess_parameters
    limit = 60 * min(config.launch.timeout_minutes, config.report.hang_minutes) / 4
    if preprocess.timeout <= limit:
        return data
    _log.info(
        f"data: a clip may take {limit:g} s, not the timeout of {preprocess.timeout:g} s in the data JSON: a quarter of "
        f"--distributed-timeout-minutes {config.launch.timeout_minutes:g} or --hang-timeout-minutes "
        f"{config.report.hang_minutes:g}"
    )
    preprocess = dataclasses.replace(preprocess, timeout=limit)
    return dataclasses.replace(data, dataset_param=dataclasses.replace(dataset, preprocess_parameters=preprocess))
