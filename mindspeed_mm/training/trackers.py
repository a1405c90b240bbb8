"""Trackers: TensorBoard, Weights & Biases and SwanLab. Each gets the numbers of a run and the videos of --mm-sample.

A resumed run continues its record: the number that a service knows it by is kept beside the checkpoints.
"""

import functools
import importlib
import importlib.util
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from mindspeed_mm import atomic, logs
from mindspeed_mm.config.run import TrainingFlags
from mindspeed_mm.training.metrics import StepMetrics

_log = logs.get(__name__)
_NEW_WRITER_S = 60.0
_GIF_FPS = 12
_RECORDS = "trackers.json"  # beside the checkpoints: tracker -> number of the run's record


class Sink(Protocol):
    """A place for the numbers of a run. Its methods may raise; `Reports` then goes on without it."""

    def step(self, metrics: StepMetrics) -> None: ...

    def values(self, iteration: int, values: dict[str, float]) -> None: ...

    def samples(self, iteration: int, folder: Path) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Scalars every `interval` steps, and the contact sheet of the samples, as TensorBoard events."""

    def __init__(self, config: TrainingFlags):
        from torch.utils.tensorboard import SummaryWriter

        self._make = functools.partial(SummaryWriter, config.report.tensorboard_dir)
        self._writer = self._make()
        self._failed = float("-inf")
        self._interval = config.report.tensorboard_interval

    def step(self, metrics: StepMetrics) -> None:
        if metrics.iteration % self._interval == 0:
            self.values(metrics.iteration, metrics.scalars())

    def values(self, iteration: int, values: dict[str, float]) -> None:
        def write(writer) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, iteration)

        self._write(write)

    def samples(self, iteration: int, folder: Path) -> None:
        for sheet in sorted(folder.glob("*.png")):
            picture = np.asarray(Image.open(sheet).convert("RGB"))
            self._write(
                lambda writer, name=f"samples/{sheet.stem}", picture=picture: writer.add_image(
                    name, picture, iteration, dataformats="HWC"
                )
            )

    def _write(self, action: Callable[[Any], None]) -> None:
        if self._writer is None and time.monotonic() - self._failed > _NEW_WRITER_S:
            self._writer = self._make()
        if self._writer is None:
            raise OSError("its writer has failed; a new one is tried every minute")
        try:
            action(self._writer)
        except Exception:  # its thread has ended and does not recover with the disk
            self._writer, self._failed = None, time.monotonic()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Service:
    """A service with runs, `log(values, step)`, pictures and videos: Weights & Biases, SwanLab."""

    def __init__(self, config: TrainingFlags, package: str, **options: str | None):
        """package: the service's, imported by name, since it is no dependency of this project. options: of its `init`."""
        self._module = importlib.import_module(package)
        given = {name: value for name, value in config.flags if value is not None}
        self._run = self._module.init(config=given, **options, **_record(config, package))

    def step(self, metrics: StepMetrics) -> None:
        self.values(metrics.iteration, metrics.scalars())

    def values(self, iteration: int, values: dict[str, float]) -> None:
        self._run.log(values, step=iteration)

    def samples(self, iteration: int, folder: Path) -> None:
        found = {f"samples/{file.stem}": self._module.Image(str(file)) for file in sorted(folder.glob("*.png"))}
        for file in sorted(folder.glob("*.mp4")):
            found[f"samples/{file.stem}"] = self._video(file)
        if found:
            self._run.log(found, step=iteration)

    def _video(self, file: Path):
        raise NotImplementedError

    def close(self) -> None:
        self._run.finish()


class WeightsAndBiases(Service):
    """The key comes from `wandb login` or WANDB_API_KEY; WANDB_MODE=offline writes files to send later."""

    def __init__(self, config: TrainingFlags):
        report = config.report
        names = {"project": report.wandb_project, "name": report.wandb_name, "dir": report.wandb_dir}
        super().__init__(config, "wandb", **names)

    def _video(self, file: Path):
        return self._module.Video(str(file), format="mp4")


class SwanLab(Service):
    """The key comes from `swanlab login` or SWANLAB_API_KEY; SWANLAB_MODE=offline writes files to send later."""

    def __init__(self, config: TrainingFlags):
        report = config.report
        names = {"project": report.swanlab_project, "name": report.swanlab_name, "log_dir": report.swanlab_dir}
        super().__init__(config, "swanlab", **names)

    def _video(self, file: Path):
        return self._module.Video(io.BytesIO(_gif(file)))  # it takes GIF alone


_OPEN: dict[str, tuple[str, Callable[[TrainingFlags], Sink]]] = {  # field of ReportConfig: name, what opens it
    "tensorboard_dir": ("TensorBoard", TensorBoard),
    "wandb_project": ("Weights & Biases", WeightsAndBiases),
    "swanlab_project": ("SwanLab", SwanLab),
}


def opened(config: TrainingFlags) -> Iterator[tuple[str, Sink]]:
    """(name, tracker) of those that are asked for and installed; the flags were refused unless the others may be
    missing.
    """
    for field, package in config.report.trackers().items():
        name, open_tracker = _OPEN[field]
        if importlib.util.find_spec(package) is None:
            _log.warning(f"{name}: the package {package} is not installed; going on without it")
        else:
            yield name, open_tracker(config)


def _record(config: TrainingFlags, service: str) -> dict:
    """Arguments that make a service continue the record of a resumed run. Without --save every start has its own."""
    if config.checkpoint.save is None:
        return {}
    file = Path(config.checkpoint.save, _RECORDS)
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):  # none yet, or damaged: a new record is better than no run
        known = {}
    if not isinstance(known.get(service), str):
        known[service] = uuid.uuid4().hex
        with atomic.replacing(file) as out:
            out.write(json.dumps(known).encode())
    return {"id": known[service], "resume": "allow"}


def _gif(file: Path) -> bytes:
    """The frames of a video as an animated GIF."""
    with av.open(str(file)) as container:
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=1000 // _GIF_FPS, loop=0)
    return out.getvalue()
