"""Applies the profiler of tools.json to the steps of a run."""

from mindspeed_mm import logs
from mindspeed_mm.config.tool import ProfileConfig
from mindspeed_mm.platforms.base import Platform

_log = logs.get(__name__)


class Profiler:
    """Profiles the configured steps on the configured ranks; otherwise does nothing."""

    def __init__(self, config: ProfileConfig, platform: Platform, rank: int, steps_before: int):
        """steps_before: steps made before a resume; the window counts steps of the whole run."""
        self._profiler = None
        if not config.includes(rank):
            return
        self._skip = 0
        if config.profile_type == "dynamic":
            self._profiler = platform.dynamic_profiler(config.dynamic_param.config_path)
            return
        if config.static_param.end_step <= steps_before + 1:
            _log.warning(f"the profiled steps up to {config.static_param.end_step} are over; nothing is profiled")
            return
        window = config.static_param
        self._profiler = platform.profiler(window)
        self._skip = steps_before
        _log.info(f"steps {window.start_step} to {window.end_step - 1} are profiled into {window.save_path}")

    def __enter__(self) -> "Profiler":
        if self._profiler is not None:
            self._profiler.start()
            for _ in range(self._skip):
                self._profiler.step()
        return self

    def __exit__(self, *error) -> None:
        if self._profiler is not None:
            self._profiler.stop()

    def step(self) -> None:
        """Marks the end of a step."""
        if self._profiler is not None:
            self._profiler.step()
