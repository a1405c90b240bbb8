"""Saves and resumes a run in both checkpoint formats, through the crash-safe store."""

import functools
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import choice, origin, rank_files, torch_dist
from mindspeed_mm.checkpoint.rank_files import Contents
from mindspeed_mm.checkpoint.store import CheckpointStore, Writing
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, layout, torch_state
from mindspeed_mm.files.mapped import MappedFiles
from mindspeed_mm.files.reshard import Weights
from mindspeed_mm.parallel import schedule
from mindspeed_mm.training.state import Named, Saved, Tensors, TrainingState

_log = logs.get(__name__)
_GROUPS = ("param", "exp_avg", "exp_avg_sq")


class Saver:
    """Writes and reads a run's checkpoints; every method is collective."""

    def __init__(self, state: TrainingState, read_weights: Callable[[Path, bool], None] | None = None):
        """read_weights(directory, average): loads a checkpoint of any program into the network; None if not supported."""
        self.state = state
        self.read_weights = read_weights
        self.parallel = state.engine.parallel
        settings = state.settings
        self.format = settings.format
        self.store = None
        if settings.save is not None:
            self.store = CheckpointStore(
                Path(settings.save),
                self.parallel,
                in_background=settings.in_background,
                keep_last=settings.keep_last,
                keep_every=settings.keep_every,
            )

    def save(self) -> None:
        """Saves the current iteration, or starts to in the background. Raises CheckpointError if it cannot be written."""
        assert self.store is not None, "a run without --save saves nothing"
        iteration, state = self.state.iteration, self.state
        if self.format == "torch_dist":
            common, parts = self.store.collected(iteration, lambda: state.parts(state.settings.in_background))
            self.store.save(iteration, lambda directory: torch_dist.prepare(parts, common, directory, self.parallel))
        else:
            contents, tensors = self.store.collected(iteration, lambda: state.contents(state.settings.in_background))
            self.store.save(
                iteration, lambda directory: Writing(lambda: self._write_rank(contents, tensors, directory))
            )

    def poll(self) -> int | None:
        """Iteration of a background checkpoint that has just completed, or None."""
        return None if self.store is None else self.store.poll()

    def complete(self) -> int | None:
        """Waits for the background checkpoint. Returns its iteration, or None if there was none."""
        return None if self.store is None else self.store.complete()

    def resume(self, root: Path) -> bool:
        """Continues from the latest complete checkpoint under `root`, at any TP and DP size. Returns False if there is
        none.

        Weights without training state, and any checkpoint with --finetune, start at iteration 0. A checkpoint of
        another program continues with the state that it holds.
        """
        opened = functools.cache(torch_state.open_mapped)  # each file is opened once, and closed after the resume
        location = choice.choose(root, self.parallel, opened)
        if location is None:
            return False
        held, _ = opened(layout.state_files(location.directory)[0])
        if self.state.settings.finetune or not origin.is_ours(held):
            self._adopt(location, held)
        else:
            torch_dist_format = layout.is_torch_dist(location.directory)
            read = self._read_torch_dist if torch_dist_format else self._read_ranks
            self.state.restore(read(location.directory, opened))
            _log.info(f"resumed from {location.directory} at iteration {self.state.iteration}")
        return True

    def _adopt(self, location: layout.Location, held: dict) -> None:
        """Takes weights, and further state if present, from a checkpoint that this program cannot continue in full."""
        if self.read_weights is None:
            raise CheckpointError(
                f"{location.directory}: holds weights without the state of a run of this program, or --finetune was given; "
                "weights to start from are given with --weights"
            )
        finetune, ema = self.state.settings.finetune, self.state.optimizer.ema
        found = origin.Origin(None, 0, False) if finetune else origin.of(held, location)
        with_average = found.iteration is not None and found.has_average and ema is not None
        if with_average:
            self.read_weights(location.directory, True)
            self.state.take_weights(into_average=True)
        self.read_weights(location.directory, False)
        self.state.take_weights(into_average=not with_average)
        if found.iteration is None:
            _log.info(
                f"began from {location.directory}{' (--finetune)' if finetune else ''}: took the weights; iteration, AdamW's "
                "moments, averages, learning rate, random numbers and place in the data start anew"
            )
            return
        position = schedule.position_of({**held, "iteration": found.iteration})
        self.state.continue_at(found.iteration, found.samples, position)
        average = "" if ema is None else ", averages" if with_average else ""
        missing = "" if ema is None or with_average else "; averages start from the weights"
        _log.info(
            f"continues at iteration {found.iteration} from {location.directory}, a checkpoint of another program: took "
            f"weights{average}, iteration, {found.samples} samples, learning rate after {position.updates} updates; not "
            f"there: AdamW's moments, clipping, random numbers, order of the data{missing}"
        )

    # -------------------------------------------------------------------------------------------------- Megatron layout

    def _write_rank(self, contents: Contents, tensors: Tensors, building: Path) -> integrity.Checksums:
        directory, beat = layout.rank_directory(building, self.parallel.tensor_rank), self.parallel.pulse.beat
        try:
            if self.parallel.data_and_context.rank() != 0:
                return {}
            directory.mkdir()
            rank_files.write(contents, tensors, directory, beat)
        finally:
            for _ in tensors:  # the other data ranks send theirs, whatever has happened here
                beat("a part of a checkpoint")
        return integrity.measure(sorted(directory.iterdir()), building, beat)

    def _read_ranks(self, directory: Path, open_state: torch_state.OpenState) -> Saved:
        paths, mine = layout.rank_files(directory), self.parallel.tensor_rank
        if len(paths) != self.parallel.tensor_size:
            _log.info(f"resharding from {len(paths)} to {self.parallel.tensor_size} TP ranks")
            mine = 0
        opened = [open_state(path) for path in paths]
        common = opened[mine][0]
        model = self._weights(directory, paths, opened, ["model"])["model"]
        files = [path.with_name(layout.OPTIMIZER_FILE) for path in paths]
        if not files[0].is_file():
            return Saved(common, model, {})
        opened = [torch_state.open_mapped(path) for path in files]
        return Saved(common, model, self._weights(directory, files, opened, list(opened[0][0])))

    def _weights(self, directory: Path, paths: list[Path], opened: list, groups: list[str]) -> dict[str, Weights]:
        """Groups of the tensors in the files of all TP ranks; read when they are used."""
        shards: dict[str, list[Named]] = {
            group: [
                {name: value for name, value in content[group].items() if isinstance(value, Tensor)}
                for content, _ in opened
            ]
            for group in groups
        }
        proof = integrity.Proof(paths, [record for _, found in opened for record in found], record_is_checked=True)
        every = [value for group in shards.values() for shard in group for value in shard.values()]
        mapped = MappedFiles(paths, every, proof)
        return {group: Weights(found, self.state.dims.get, str(directory), mapped) for group, found in shards.items()}

    # ------------------------------------------------------------------------------------------------------- torch_dist

    def _read_torch_dist(self, directory: Path, open_state: torch_state.OpenState) -> Saved:
        common = torch_state.load(directory / layout.STATE_FILE, record_is_checked=True, open_state=open_state)
        keys = [*_GROUPS] if common["optimizer"] is not None else []
        keys += ["ema_params"] if common["ema_updates"] is not None else []
        found = torch_dist.opened(directory, ["model", *keys], self.state.dims.get)
        return Saved(common, found["model"], {key: found[key] for key in keys})
