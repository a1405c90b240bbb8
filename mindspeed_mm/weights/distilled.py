"""What weights and adapters say of their distillation, and the settings of sampling that follow."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm import logs
from mindspeed_mm.config.distillation import Distilled, read_record
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.weights import sources
from mindspeed_mm.weights.adapters import open_adapter

_log = logs.get(__name__)


def distilled_of(source: str | Path, adapters: Sequence[str | Path] = ()) -> Distilled | None:
    """The record of the weights at `source`, or of the last adapter that has one; None: they are not distilled."""
    for path in reversed(adapters):
        found = read_record(open_adapter(path).record.distilled, str(path))
        if found is not None:
            return found
    return read_record(sources.open_checkpoint(source).distilled, str(source))


def suited(diffusion: DiffusionConfig, record: Distilled | None, fixed: Sequence[str] = ()) -> DiffusionConfig:
    """The diffusion block of a sample with the values that distilled weights were made for, and a line about it.

    fixed: keys that stay, as a flag gave them. Keys of a prompt count later, and so more.
    """
    if record is None:
        return diffusion
    wanted = {key: value for key, value in record.defaults().items() if key not in fixed}
    changed = [f"{key} {value}" for key, value in wanted.items() if getattr(diffusion, key) != value]
    if changed:
        _log.info(
            f"the weights are distilled to sample {record}: {', '.join(changed)} instead of the JSON's; --steps, --guidance and "
            "keys of a prompt count more"
        )
    return dataclasses.replace(diffusion, **wanted)
