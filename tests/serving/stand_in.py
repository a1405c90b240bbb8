"""A maker that needs no network: its file depends on the request alone, as a real sample's does."""

import errno
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
        self.is_full = False  # the disk
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, line: dict[str, Any]) -> str | None:
        return f"{name}.mp4" if (self.folder / f"{name}.mp4").exists() else None

    def make(self, name, line, tell, check):
        self._log(f"begun {name}")
        for step in range(self.steps):
            check()
            time.sleep(self.step_s)
            tell(step + 1, self.steps)

        def write() -> str:
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device", f"{name}.mp4")
            with atomic.replacing(self.folder / f"{name}.mp4") as file:
                file.write(content(line))
            self._log(f"written {name}")
            return f"{name}.mp4"

        return write

    def _log(self, line: str) -> None:
        with open(self.folder / "starts.log", "a") as log:
            log.write(f"{line}\n")


def content(line: dict[str, Any]) -> bytes:
    """The file of a request: other prompts and seeds give others."""
    return hashlib.sha256(json.dumps([line["prompt"], line["seed"]]).encode()).digest() * 32
