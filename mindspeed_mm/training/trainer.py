"""The training loop: steps, log lines, checkpoints."""

from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.checkpoint import layout
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.training import metrics
from mindspeed_mm.training.saving import TrainingState
from mindspeed_mm.training.step import StepResult, TrainStep

_log = logs.get(__name__)


class Trainer:
    """Runs `train_iters` steps, from the latest checkpoint if there is one."""

    def __init__(self, config: RunConfig, step: TrainStep, state: TrainingState):
        self.config = config
        self.step = step
        self.state = state

    def fit(self) -> None:
        """Train to the end. Raises TrainingDiverged when too many steps in a row were skipped."""
        self._resume()
        batches = iter(self.state.loader)
        watch = metrics.Stopwatch()
        self.step.engine.network.train()
        while self.state.iteration < self.config.train_iters:
            result = self.step(batches)
            self.state.iteration += 1
            self.state.consumed_samples += self.config.global_batch_size
            self._log(result, watch.read())
            self.step.optimizer.check()
            if self._save_is_due():
                self._save()
                watch.read()  # saving is no part of the next step's time

    def _resume(self) -> None:
        load = self.config.checkpoint.load
        if load is None:
            return
        if not layout.has_checkpoint(Path(load)):
            _log.info(f"{load} holds no checkpoint yet; starting from iteration 0")
            return
        self.state.load(Path(load))
        _log.info(f"resumed from {load} at iteration {self.state.iteration}")

    def _save_is_due(self) -> bool:
        checkpoint = self.config.checkpoint
        if checkpoint.save is None:
            return False
        return self.state.iteration % checkpoint.save_interval == 0 or self.state.iteration == self.config.train_iters

    def _save(self) -> None:
        watch = metrics.Stopwatch()
        directory = self.state.save(Path(self.config.checkpoint.save))
        _log.info(f"saved {directory} in {watch.read():.1f} s")

    def _log(self, result: StepResult, seconds: float) -> None:
        report = result.report
        if report.skipped is not None:
            # Every rank names its own files: any of them may hold the offending sample.
            _log.warning(
                f"iteration {self.state.iteration}: skipped, {report.skipped}; samples: {', '.join(result.paths)}"
            )
        if self.state.iteration % self.config.log_interval and report.skipped is None:
            return
        _log.info(
            metrics.line(
                metrics.StepMetrics(
                    iteration=self.state.iteration,
                    train_iters=self.config.train_iters,
                    consumed_samples=self.state.consumed_samples,
                    global_batch_size=self.config.global_batch_size,
                    loss=result.loss,
                    gradient_norm=report.gradient_norm,
                    clip_threshold=report.threshold,
                    learning_rate=report.learning_rate,
                    loss_scale=report.loss_scale,
                    seconds=seconds,
                    data_seconds=result.data_seconds,
                    skipped=report.skipped,
                )
            )
        )
