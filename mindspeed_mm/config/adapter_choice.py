"""An adapter to sample with or to merge, as a flag names it."""

import dataclasses
import os

from mindspeed_mm.config import hub
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema.text import read_float


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter to sample with. path: PEFT's folder, or the directory of a run. scale: of its own size."""

    path: str
    scale: float = 1.0

    @classmethod
    def read(cls, text: str) -> "AdapterChoice":
        """Reads DIR or DIR=SCALE, DIR a folder or a hub's repository. Raises ConfigError if there is none, or SCALE is no
        number.
        """
        path, equals, number = text.rpartition("=")
        if not equals or os.path.isdir(text):
            path, number = text, "1"
        path = hub.local(path)
        if not os.path.isdir(path):
            raise ConfigError(f"--adapter {path}: no such directory")
        try:
            scale = read_float(number)
        except ValueError as error:
            raise ConfigError(f"--adapter {text}: the scale {number!r} {error}") from None
        if not abs(scale) <= 1000:
            raise ConfigError(f"--adapter {text}: the scale must be from -1000 to 1000")
        return cls(path, scale)
