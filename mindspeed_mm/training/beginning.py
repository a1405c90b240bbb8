"""Chooses the checkpoint that a run starts from, before any weight is loaded; all ranks must agree with the first."""

import dataclasses
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import choice
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.parallel.context import ParallelContext

_log = logs.get(__name__)


def settle(checkpoint: CheckpointConfig, parallel: ParallelContext, restarts: int = 0) -> CheckpointConfig:
    """Decides which folder to load, the same on every rank; collective. Raises CheckpointError if nodes see different
    folders.

    restarts: number of restarts by torchrun (--max-restarts) so far; above 0 the run's own checkpoints take
    precedence.
    """
    save, load = checkpoint.save, checkpoint.load
    own = choice.Found()
    if save is not None:
        choice.check_shared(Path(save), "--save", parallel)
        own = choice.look(Path(save), parallel)
    if restarts and own.candidates:
        _log.info(f"restart {restarts} by torchrun: continuing from {save}")
        return dataclasses.replace(checkpoint, load=save, load_optimizer=True, load_rng=True, finetune=False)
    if load is None or is_own(checkpoint):
        if load is None and own.candidates:
            _log.warning(f"{_newest(own)} of --save {save} is not continued, as there is no --load; it may be replaced")
        return checkpoint
    if not choice.look(Path(load), parallel).candidates:
        refuse_empty(checkpoint)
    if own.candidates:
        _log.warning(
            f"{_newest(own)} of --save {save} is not continued but --load {load}; to continue it, give --load {save}"
        )
    return checkpoint


def is_own(checkpoint: CheckpointConfig) -> bool:
    """True if a run loads from the folder it saves to, as scripts do that start and restart a run."""
    return (
        checkpoint.save is not None and checkpoint.load is not None and Path(checkpoint.load) == Path(checkpoint.save)
    )


def refuse_empty(checkpoint: CheckpointConfig) -> None:
    """Handles a --load without a checkpoint: raises CheckpointError unless it is the run's own folder, which may be new."""
    if checkpoint.load is not None and Path(checkpoint.load).is_file():
        raise CheckpointError(
            f"--load {checkpoint.load}: is a file; --load continues a run and takes its folder. To begin from the weights in "
            "this file, leave --load out and name it in predictor.from_pretrained of --mm-model (train_wfvae.py: --weights)"
        )
    if not is_own(checkpoint):
        raise CheckpointError(
            f"--load {checkpoint.load}: holds no checkpoint; leave --load out to start from iteration 0"
        )
    _log.info(f"{checkpoint.load} holds no checkpoint yet; starting from iteration 0")


def _newest(found: choice.Found) -> str:
    return found.candidates[0].directory.name
