"""The training loop: steps, log lines, checkpoints, evaluation, and an orderly end on request."""

from collections.abc import Callable
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.run import TrainingFlags
from mindspeed_mm.errors import CheckpointError, TrainingDiverged
from mindspeed_mm.stopping import Reason, StopRequest
from mindspeed_mm.training import beginning, metrics, signals
from mindspeed_mm.training.heartbeat import Heartbeat
from mindspeed_mm.training.memory_forecast import MemoryForecast
from mindspeed_mm.training.profiling import Profiler
from mindspeed_mm.training.reports import Reports
from mindspeed_mm.training.saving import Saver
from mindspeed_mm.training.step import Step, StepResult
from mindspeed_mm.training.stragglers import Stragglers
from mindspeed_mm.training.watchdog import Watchdog

_log = logs.get(__name__)
_LEDGER_INTERVAL = 10  # steps between collective additions to the ledger of bad samples
# The watchdog's report of a hang says more than the error of a waiting rank, so it goes first.
_AFTER_THE_WATCHDOG_S = 30.0
Evaluation = Callable[[], dict[str, float]]  # measures the current weights on held-out clips: name -> value
Sampler = Callable[[int], Path]  # makes videos with the current weights; takes the iteration, returns their folder
Export = Callable[[], None]  # writes the final weights as a file


class Trainer:
    """Runs `train_iters` steps, from the latest checkpoint if there is one, whatever a step trains."""

    def __init__(
        self,
        config: TrainingFlags,
        step: Step,
        saver: Saver,
        *,
        evaluation: Evaluation | None = None,
        sampler: Sampler | None = None,
        export: Export | None = None,
        forecast: MemoryForecast | None = None,
    ):
        """evaluation, sampler: run at their intervals. export: runs at the end, also an early one if a step was done.
        All are collective; None disables them. forecast: of the memory on this rank's device.
        """
        self.config = config
        self.step = step
        self.saver = saver
        self.state = saver.state
        self.evaluation = evaluation
        self.sampler = sampler
        self.export = export
        self.forecast = forecast
        self.parallel = step.engine.parallel
        self.platform = step.engine.platform
        self.ending: Reason | None = None  # reason of an early end
        self.reports = Reports(config, self.parallel.is_first)
        self.stragglers = Stragglers(self.parallel)
        pulse = self.parallel.pulse
        pulse.patience_s = 60 * config.report.hang_minutes + _AFTER_THE_WATCHDOG_S
        self.heartbeat = Heartbeat(pulse)
        self.watchdog = Watchdog(pulse, config.report.hang_minutes)

    def fit(self, request: StopRequest | None = None) -> Reason | None:
        """Trains to the end, or until a signal or an --exit flag asks to stop. Returns the reason of an early end,
        else None.

        request: receives this process's signals; None ignores signals. Raises TrainingDiverged, without saving, after
        too many skipped steps in a row, and RankLost when another process has died.
        """
        request = request or StopRequest()
        request.ahead_s = self.config.exit.signal_ahead_s
        with self.heartbeat, self.watchdog:
            self._resume()
            self._train(request)
        return self.ending

    def _train(self, request: StopRequest) -> None:
        profiler = Profiler(self.config.tools.profile, self.platform, self.parallel.rank, self.state.iteration)
        with self.reports.open(), profiler:
            batches = iter(self.state.loader)
            self.step.engine.network.train()
            first = self.state.iteration
            self._evaluate_again()
            self.ending = signals.agreed(request.signal() or self._out_of_patience())
            while self.ending is None and self.state.iteration < self.config.train_iters:
                self._one_step(batches)
                self.ending = self._evaluate_unless_ending(request)
                profiler.step()
            trained = self.state.iteration > first
            if self.ending is not None:
                self._end_early(self.ending, request, trained)
            self.state.loader.ledger.sync()
            self._note_saved(self.saver.complete)
            if self.export is not None and (trained or self.ending is None):
                self.export()

    def _evaluate_unless_ending(self, request: StopRequest) -> Reason | None:
        """Evaluates if an evaluation is due and no signal has come, since a signal leaves little time. Returns the
        reason to end now, or None.
        """
        ending = signals.agreed(request.signal())
        if ending is not None:
            return ending
        evaluated, settings, iteration = self._evaluate_if_due(), self.config.exit, self.state.iteration
        if iteration == self.config.train_iters or not (evaluated or settings.is_planned):
            return None
        return signals.agreed(
            request.signal() or signals.planned(settings, request, iteration) or self._out_of_patience()
        )

    def _out_of_patience(self) -> str | None:
        """Name of the flag that ends the run because held-out losses no longer fall, or None."""
        return "--patience" if self.state.held_out.is_exhausted(self.config.evaluation.patience) else None

    def _end_early(self, ending: Reason, request: StopRequest, trained: bool) -> None:
        saves = self.config.checkpoint.save is not None and trained
        if not (request.said and ending.name == "Ctrl-C"):
            _log.info(signals.announcement(ending, self.state.iteration, saves, trained))
        self.state.loader.ledger.sync()
        if saves and not self._save_is_due():  # else this step has saved already
            self._save()

    def _one_step(self, batches) -> None:
        watch = metrics.Stopwatch()
        # The update may still run: its time counts in the next step, whose read waits for it.
        result = self.step(batches)
        self.state.iteration += 1
        self.state.consumed_samples += self.config.global_batch_size
        self.state.skipped_steps += result.report.skipped is not None
        self._report(result, watch.read())
        if self.forecast is not None:
            self.forecast.after_step()
        self.watchdog.beat("the step", self.state.iteration)
        self._note_saved(self.saver.poll)
        self._stop_if_diverged()
        if self.state.iteration % _LEDGER_INTERVAL == 0 or self._save_is_due():
            self.state.loader.ledger.sync(write_now=self._save_is_due())
        if self._save_is_due():
            self._save()

    def _stop_if_diverged(self) -> None:
        try:
            self.step.optimizer.check()
        except TrainingDiverged:
            self._note_saved(self.saver.complete)
            raise

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def _resume(self) -> None:
        checkpoint, state = self.config.checkpoint, self.state
        if checkpoint.load is not None and not self.saver.resume(Path(checkpoint.load)):
            beginning.refuse_empty(checkpoint)
        if state.iteration >= self.config.train_iters:
            _log.warning(
                f"iteration {state.iteration}: --train-iters {self.config.train_iters} is reached; nothing to do"
            )

    def _save_is_due(self) -> bool:
        checkpoint = self.config.checkpoint
        if checkpoint.save is None:
            return False
        return self.state.iteration % checkpoint.save_interval == 0 or self.state.iteration == self.config.train_iters

    def _save(self) -> None:
        self._note_saved(self.saver.complete)
        watch = metrics.Stopwatch()
        self._note_saved(self._save_now)
        _log.debug(f"saving iteration {self.state.iteration} held up the training for {watch.read():.1f} s")
        self.watchdog.beat("saving", self.state.iteration)

    def _save_now(self) -> int | None:
        self.saver.save()
        return None if self.config.checkpoint.in_background else self.state.iteration

    def _note_saved(self, action: Callable[[], int | None]) -> None:
        """Logs a completed save. An error such as a full disk ends the run only if no later save is planned."""
        try:
            iteration = action()
        except CheckpointError as error:
            if self.ending is not None or self.state.iteration == self.config.train_iters:
                raise
            _log.error(f"{error}; training goes on, the next save is at its interval")
            return
        if iteration is not None:
            _log.info(f"saved iteration {iteration} to {self.config.checkpoint.save}")

    # ------------------------------------------------------------------------------------------------------ evaluation

    def _evaluate_if_due(self) -> bool:
        """Runs evaluation and sampler if they are due. Returns True if one ran, which may take long."""
        settings, iteration = self.config.evaluation, self.state.iteration
        last = iteration == self.config.train_iters
        evaluation = self.evaluation if last or iteration % settings.interval == 0 else None
        sampler = self.sampler if last or iteration % settings.sample_interval == 0 else None
        if evaluation is not None:
            self._evaluate(evaluation)
        if sampler is not None:
            self.step.engine.publish()
            self.reports.samples(iteration, sampler(iteration))
            self.step.engine.network.train()
            self.watchdog.beat("sampling", iteration)
        return evaluation is not None or sampler is not None

    def _evaluate(self, evaluation: Evaluation) -> None:
        found, iteration = evaluation(), self.state.iteration
        _log.info(f"iteration {iteration} | " + " | ".join(f"{name}: {value:.6f}" for name, value in found.items()))
        self.reports.values(iteration, found)
        for warning in self.state.held_out.add(iteration, found):
            _log.warning(f"iteration {iteration}: {warning}")
        self.watchdog.beat("evaluation", iteration)

    def _evaluate_again(self) -> None:
        """Repeats the evaluation of a resumed iteration if its checkpoint was saved before it, so that no evaluation is
        missing from the patience and the warnings.
        """
        settings, iteration = self.config.evaluation, self.state.iteration
        wanted = settings.patience is not None or settings.overfit_check
        if self.evaluation is None or not wanted or iteration == 0 or iteration == self.state.held_out.iteration:
            return
        if iteration % settings.interval == 0:
            self._evaluate(self.evaluation)

    # --------------------------------------------------------------------------------------------------------- reports

    def _report(self, result: StepResult, seconds: float) -> None:
        step = self._metrics(result, seconds)
        self.reports.step(step)
        self.stragglers.add(result.own_seconds, result.data_seconds)
        if step.skipped is not None:
            _log.warning(f"iteration {step.iteration}: skipped, {step.skipped}; samples: {', '.join(result.suspects)}")
        if step.iteration % self.config.report.log_interval == 0 or step.skipped is not None:
            _log.info(metrics.line(step))
        if step.iteration % self.config.report.log_interval == 0:
            slowest = self.stragglers.line(step.memory_gib)
            if slowest is not None:
                _log.info(slowest)

    def _metrics(self, result: StepResult, seconds: float) -> metrics.StepMetrics:
        report, engine, work = result.report, self.step.engine, result.work
        replicas = self.parallel.data_size
        sharers = self.parallel.tensor_size * self.parallel.context_size  # they share one sample's work
        tflops = work.flops / sharers / seconds / 1e12 if work.flops else None
        peak = self.config.report.peak_tflops or self.platform.peak_tflops(next(engine.network.parameters()).dtype)
        return metrics.StepMetrics(
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
            data_share=result.data_seconds / seconds,
            samples_per_second=work.samples * replicas / seconds,
            tokens_per_second=work.tokens * replicas / seconds if work.tokens else None,
            tflops=tflops,
            mfu=None if peak is None or tflops is None else tflops / peak,
            memory_gib=self.platform.peak_memory() / 2**30,
            skipped=report.skipped,
            skipped_steps=self.state.skipped_steps,
            parts=result.parts,
        )
