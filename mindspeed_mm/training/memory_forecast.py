"""Memory of a run on its device, as planned and as seen: a warning before the first step, a comparison after the second."""

import dataclasses

from mindspeed_mm import logs
from mindspeed_mm.config.run import RunConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.planning import job
from mindspeed_mm.planning.memory import GIB, USABLE, Layout, parts, rank_parameters
from mindspeed_mm.platforms.base import Platform

_log = logs.get(__name__)
_COMPARED_AFTER = 2  # steps; the first one may still allocate workspaces


class MemoryForecast:
    """Compares the plan of a run with its device. Says nothing on a CPU, whose memory other processes share."""

    def __init__(self, planned: dict[str, int], platform: Platform):
        """planned: bytes of this rank by part, see `planning.memory.parts`."""
        self.planned = planned
        self._platform = platform
        self._steps = 0

    @classmethod
    def of_run(cls, config: RunConfig, parallel: ParallelContext, platform: Platform) -> "MemoryForecast | None":
        """The forecast of a run on its first rank; None on the others, on a CPU, and where no plan is known: a family
        without formulas, sizes that data.json leaves open, partial training.
        """
        if platform.name == "cpu" or not parallel.is_first or config.trained.only or config.trained.frozen:
            return None
        try:
            return cls(planned_parts(config, parallel), platform)
        except ConfigError as error:
            _log.debug(f"memory: no plan of this run: {error}")
            return None

    def warn_if_too_large(self) -> None:
        """Warns if the plan does not fit this rank's device."""
        total, limit = sum(self.planned.values()), self._platform.total_memory()
        if total > USABLE * limit:
            largest = sorted(self.planned, key=self.planned.__getitem__, reverse=True)[:3]
            named = ", ".join(f"{name} {self.planned[name] / GIB:.1f}" for name in largest)
            _log.warning(
                f"memory: the plan of this run needs {total / GIB:.1f} GiB on each device ({named}), of {limit / GIB:.1f} GiB "
                f"about {USABLE:.0%} can be used; it may run out of memory. `mindspeed-mm plan` prints layouts that fit"
            )

    def after_step(self) -> None:
        """Counts a step; after the second one logs the plan beside the peak of this rank."""
        self._steps += 1
        if self._steps == _COMPARED_AFTER:
            planned, seen = sum(self.planned.values()), self._platform.peak_memory()
            _log.info(
                f"memory: planned {planned / GIB:.2f} GiB, seen {seen / GIB:.2f} GiB at the peak of {self._steps} steps "
                f"({seen / planned - 1:+.0%})"
            )


def planned_parts(config: RunConfig, parallel: ParallelContext) -> dict[str, int]:
    """Bytes of a run on one rank by part. Raises ConfigError where the planner knows no formulas or no size."""
    model, optimizer, recompute = config.model, config.optimizer, config.recompute
    adapter = config.adapter if config.adapter.kind is not None else None
    run = dataclasses.replace(
        job.made_of(model, config.data, None, config.micro_batch_size, adapter),
        dtype=config.precision.denoiser,
        ema=optimizer.use_ema,
        distributed_optimizer=optimizer.use_distributed_optimizer,
        cpu_offload=optimizer.cpu_offload,
        offloaded_blocks=recompute.num_offloaded,
    )
    kind, blocks = "none", 0
    if recompute.num_layers:
        kind, blocks = "blocks", recompute.num_layers
    elif recompute.feed_forwards:
        kind, blocks = "feed-forwards", recompute.feed_forwards
    layout = Layout(
        parallel.tensor_size, parallel.context_size, parallel.data_size, kind, blocks, parallel.sequence_parallel
    )
    found = parts(run, layout)
    if config.distill.method is not None:
        found["teacher"] = rank_parameters(run, parallel.tensor_size) * job.ITEMSIZE[run.dtype]
    return found
