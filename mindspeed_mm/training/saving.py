"""Saves and resumes a run in both checkpoint formats, through the crash-safe store."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import choice, origin, torch_dist
from mindspeed_mm.checkpoint.store import CheckpointStore, Writing
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.files import integrity, layout, reshard, torch_state
from mindspeed_mm.parallel import schedule
from mindspeed_mm.training.state import Named, Snapshot, TrainingState

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
        snapshot = self.store.collected(self.state.iteration, self.state.collect)
        prepare = {"torch": self._prepare_rank, "torch_dist": self._prepare_torch_dist}[self.format]
        self.store.save(self.state.iteration, lambda directory: prepare(snapshot, directory))

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
        location = choice.choose(root, self.parallel)
        if location is None:
            return False
        held, _ = torch_state.open_mapped(layout.state_files(location.directory)[0])
        if self.state.settings.finetune or not origin.is_ours(held):
            self._adopt(location, held)
        else:
            torch_dist_format = layout.is_torch_dist(location.directory)
            read = self._read_torch_dist if torch_dist_format else self._read_ranks
            self.state.restore(read(location.directory))
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

    def _prepare_rank(self, snapshot: Snapshot | None, building: Path) -> Writing:
        return Writing(lambda: {} if snapshot is None else self._write_rank(snapshot, building))

    def _write_rank(self, snapshot: Snapshot, building: Path) -> integrity.Checksums:
        directory, beat = layout.rank_directory(building, self.parallel.tensor_rank), self.parallel.pulse.beat
        directory.mkdir()
        model = {**snapshot.common, "model": self._with_empty_states(snapshot.model)}
        optimizer = dict(snapshot.optimizer or {})
        if "ema_params" in optimizer:
            ema = optimizer["ema_params"]  # untrained parameters, such as WFVAE's Haar kernels, are not in it
            averages = {name: ema.get(name, value).to(value.dtype) for name, value in snapshot.model.items()}
            model["ema_model"] = self._with_empty_states(averages)
        torch_state.save(model, directory / layout.MODEL_FILE, beat)
        if optimizer:
            torch_state.save(optimizer, directory / layout.OPTIMIZER_FILE, beat)
        return integrity.measure(sorted(directory.iterdir()), building, beat)

    def _with_empty_states(self, model: Named) -> dict:
        """Adds the empty `_extra_state` entries of Megatron's layers, in its order of names."""
        if self.state.adapter is not None:
            return model
        return {name: model.get(name) for name in self.state.engine.network.state_dict()}

    def _read_ranks(self, directory: Path) -> Snapshot:
        paths = layout.rank_files(directory)
        same = len(paths) == self.parallel.tensor_size
        if same:
            paths = [paths[self.parallel.tensor_rank]]
        else:
            _log.info(f"resharding from {len(paths)} to {self.parallel.tensor_size} TP ranks")
        models = [torch_state.load(path, record_is_checked=True) for path in paths]
        optimizer = None
        # Only ranks that scatter the optimizer's tensors need them.
        if self.parallel.data_and_context.rank() == 0 and paths[0].with_name(layout.OPTIMIZER_FILE).is_file():
            groups = [torch_state.load(path.with_name(layout.OPTIMIZER_FILE), record_is_checked=True) for path in paths]
            optimizer = {key: [group[key] for group in groups] for key in groups[0]}
            optimizer = {key: parts[0] if same else self._resharded(parts) for key, parts in optimizer.items()}
        model = models[0]["model"] if same else self._resharded([model["model"] for model in models])
        return Snapshot(models[0], model, optimizer)

    def _resharded(self, parts: list[Named]) -> Named:
        """Cuts this TP rank's tensors from those of all TP ranks in the checkpoint."""
        tensors = [{name: value for name, value in part.items() if isinstance(value, Tensor)} for part in parts]
        whole = reshard.Weights(tensors, self.state.dims.get, "the checkpoint")
        mine = {name: whole.part(name, self.parallel.tensor_rank, self.parallel.tensor_size) for name in whole}
        whole.report()
        return mine

    # ------------------------------------------------------------------------------------------------------- torch_dist

    def _prepare_torch_dist(self, snapshot: Snapshot | None, building: Path) -> Writing:
        dims, tensors = self.state.dims, {}
        if snapshot is not None:
            tensors = {f"model.{name}": (value, dims[name]) for name, value in snapshot.model.items()}
            for key, group in (snapshot.optimizer or {}).items():
                tensors |= {f"{key}.{name}": (value, dims[name]) for name, value in group.items()}
        return torch_dist.prepare(tensors, snapshot.common if snapshot else {}, building, self.parallel)

    def _read_torch_dist(self, directory: Path) -> Snapshot:
        common = torch_dist.load_common(directory)
        parameters = self.state.saved_parameters()
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        # the optimizer has no state of constants, such as WFVAE's Haar kernels
        trained = {name: shapes[name] for name, parameter in parameters.items() if parameter.requires_grad}
        dtype = next(iter(parameters.values())).dtype
        keys = [*_GROUPS] if common["optimizer"] is not None else []
        keys += ["ema_params"] if common["ema_updates"] is not None else []
        wanted = torch_dist.like(shapes, self.state.dims, "model.", dtype)
        for key in keys:
            wanted |= torch_dist.like(trained, self.state.dims, f"{key}.", torch.float32)
        found = torch_dist.load(wanted, directory, self.parallel)

        def group(key: str, names: Iterable[str]) -> Named:
            return {name: found[f"{key}.{name}"] for name in names}

        return Snapshot(common, group("model", shapes), {key: group(key, trained) for key in keys} or None)
