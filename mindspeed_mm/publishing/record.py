"""The record of a training run, for a model card: numbers of steps and clips, settings, losses, sheet of samples.

Only figures and names are taken, never a path of the machine that trained.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mindspeed_mm.checkpoint import origin
from mindspeed_mm.config import hub
from mindspeed_mm.config.run import RunFlags
from mindspeed_mm.errors import DataError
from mindspeed_mm.files import layout, torch_state
from mindspeed_mm.publishing.curves import METRICS_FILE, Run
from mindspeed_mm.schema import flags_of

_SHEET = "contact_sheet.png"
_LAST = 100  # steps over which the loss at the end is averaged
_SECTIONS = ("", "batches", "precision", "optimizer", "adapters", "partial training")
_LEFT_OUT = ("train_iters", "micro_batch_size", "global_batch_size", "num_workers")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What a run says of itself. Values that it does not say are None or empty.

    settings: flags that differ from their defaults. data: the report of its list. curves: None without metrics.jsonl.
    base: repository and revision of the weights that training began from, if they were a hub's.
    """

    iteration: int
    samples: int
    clips: int | None
    bad_clips: int
    settings: dict[str, Any]
    data: dict[str, Any]
    curves: Run | None
    sheet: Path | None
    base: dict[str, str] | None

    @property
    def batch(self) -> int | None:
        """Samples per step at the end."""
        rows = self._rows()
        return rows[-1].get("global_batch_size") if rows else None

    @property
    def loss(self) -> tuple[float, int] | None:
        """Mean of the last losses, and the number of steps that it is taken over."""
        found = [row["loss"] for row in self._rows()[-_LAST:] if row.get("loss") is not None]
        return (sum(found) / len(found), len(found)) if found else None

    @property
    def evaluations(self) -> dict[str, float]:
        """Name -> last value of each evaluation."""
        found: dict[str, float] = {}
        for _, row in sorted((self.curves.values if self.curves else {}).items()):
            found |= {name: value for name, value in row.items() if "loss" in name and isinstance(value, float)}
        return found

    def _rows(self) -> list[dict]:
        steps = self.curves.steps if self.curves else {}
        return [steps[iteration] for iteration in sorted(steps) if iteration <= self.iteration]


def read(run: str | Path) -> Record | None:
    """The record of the run at `run`, its --save; None if that holds no checkpoint of a run of this program."""
    root = Path(run)
    if not layout.has_checkpoint(root):
        return None
    location = layout.find(root)
    if location.directory == root:
        root = root.parent  # one iter_XXXXXXX of it
    state, _ = torch_state.open_mapped(layout.state_files(location.directory)[0])
    if not origin.is_ours(state):
        return None
    ledger = state["data"].get("ledger") or {}
    return Record(
        iteration=state["iteration"],
        samples=state["consumed_train_samples"],
        clips=state["data"].get("clips"),
        bad_clips=len(ledger.get("bad_samples", {})),
        settings=_settings(vars(state["args"])),
        data=_data(root),
        curves=_curves(root),
        sheet=_sheet(root / "samples", state["iteration"]),
        base=hub.recorded(root).get(".", {}).get("predictor"),
    )


def _settings(said: dict[str, Any]) -> dict[str, Any]:
    """Numbers, switches and choices that differ from their defaults and have a part in the result; no free text."""
    found = {}
    for flag in flags_of(RunFlags):
        is_text = flag.kind is str and not flag.facts.choices and not flag.is_switch
        section = flag.section.partition(":")[0]
        if flag.key not in said or is_text or section not in _SECTIONS or flag.key in _LEFT_OUT:
            continue
        value = said[flag.key]
        if value not in (None, False) if flag.is_switch else value != flag.default:
            found[flag.name] = value
    return found


def _data(root: Path) -> dict[str, Any]:
    try:
        found = json.loads((root / "data" / "dropped.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _curves(root: Path) -> Run | None:
    try:
        return Run(root) if (root / METRICS_FILE).is_file() else None
    except DataError:  # no step was finished
        return None


def _sheet(samples: Path, iteration: int) -> Path | None:
    """The latest sheet of --mm-sample that is not of a later iteration than the weights."""
    found = [path for path in samples.glob(f"iter_*/{_SHEET}") if path.parent.name <= f"iter_{iteration:07d}"]
    return max(found, default=None)
