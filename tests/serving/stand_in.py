"""A maker that needs no network: its file depends on the request alone, as a real sample's does."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic
from mindspeed_mm.config import resolve
from mindspeed_mm.serving.maker import SampleMaker


class StandIn(SampleMaker):
    """Checks requests as the real one, and takes `steps` steps of `step_s` for a small file."""

    def __init__(self, sample_json: Path, folder: Path, step_s: float = 0.0, steps: int = 4):
        flags = ["--device", "cpu", "--mm-model", str(sample_json), "--save-path", str(folder), "--api"]
        config = resolve.serve_config([*flags, "--max-pixels", "40000"], world_size=1).sample
        super().__init__(config, None, None, {})
        self.step_s, self.steps = step_s, steps

    def made(self, name: str, line: dict[str, Any]) -> str | None:
        return f"{name}.mp4" if (self.folder / f"{name}.mp4").exists() else None

    def make(self, name, line, tell, check):
        with open(self.folder / "starts.log", "a") as log:  # who was made, and how often
            log.write(f"{name}\n")
        for step in range(self.steps):
            check()
            time.sleep(self.step_s)
            tell(step + 1, self.steps)

        def write() -> str:
            with atomic.replacing(self.folder / f"{name}.mp4") as file:
                file.write(content(line))
            return f"{name}.mp4"

        return write


def content(line: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).digest() * 32
