"""A model card: README.md of a repository on a hub, with the front matter that the hub reads.

https://huggingface.co/docs/hub/model-cards says which keys there are. Values are written as JSON, which is YAML.
"""

import json
from pathlib import Path
from typing import Any

from mindspeed_mm import atomic
from mindspeed_mm.publishing import curves
from mindspeed_mm.publishing.exported import DIFFUSERS, Exported
from mindspeed_mm.publishing.record import Record
from mindspeed_mm.version import __version__

CARD = "README.md"
_PICTURES = "images"  # folder beside the card
_MOST_SHAPES = 10  # rows of the table; a run may have hundreds

_OURS = """import mindspeed_mm as mm

pipeline = mm.T2VPipeline.from_pretrained("{name}")
frames = pipeline("a red circle", seed=0)  # uint8 [T,H,W,3]"""
_WITH_DIFFUSERS = """from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)
frames = pipe("a red circle", seed=0, output_type="np").frames  # [B,T,H,W,3] in [0,1]"""


def write(
    exported: Exported,
    record: Record | None,
    *,
    name: str,
    licence: str | None = None,
    base_model: str | None = None,
) -> Path:
    """Writes README.md and its pictures into the exported folder. An existing README.md is left as it is.

    name: the repository's, org/name. licence: identifier as the hub spells it. base_model: repository that training
    began from; default: the run's record of it. Returns the card's path.
    """
    file = exported.folder / CARD
    if file.exists():
        return file
    began = None if record is None else record.base
    if base_model is None and began is not None:
        base_model = began["repository"]
    revision = began["revision"] if began is not None and began["repository"] == base_model else None
    pictures = _pictures(exported.folder / _PICTURES, record)
    parts = [
        _front_matter(exported, licence, base_model),
        _opening(exported, name, base_model, revision),
        _usage(exported, name),
        _samples(pictures),
        _training(record, pictures),
        _data(record),
        _config(exported),
        _licence(licence),
    ]
    atomic.write_text(file, "\n\n".join(part for part in parts if part) + "\n")
    return file


def _pictures(folder: Path, record: Record | None) -> dict[str, str]:
    """Title -> path relative to the card of each picture that the run has; they are written."""
    found: dict[str, str] = {}
    if record is not None and record.sheet is not None:
        folder.mkdir(exist_ok=True)
        with atomic.replacing(folder / "samples.png") as target:
            target.write(record.sheet.read_bytes())
        found["samples"] = f"{_PICTURES}/samples.png"
    if record is not None and record.curves is not None:
        folder.mkdir(exist_ok=True)
        curves.draw([record.curves], 0.9, False, folder / "curves.png")
        found["curves"] = f"{_PICTURES}/curves.png"
    return found


def _front_matter(exported: Exported, licence: str | None, base_model: str | None) -> str:
    kind = "image-to-video" if exported.takes_images else "text-to-video"
    values: dict[str, Any] = {
        "license": licence,
        "library_name": exported.format,
        "pipeline_tag": kind,
        "base_model": base_model,
        "base_model_relation": base_model and "finetune",
        "tags": [kind, "open-sora-plan", "mindspeed-mm"],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def _opening(exported: Exported, name: str, base_model: str | None, revision: str | None) -> str:
    size = ""
    if exported.size is not None:
        frames, height, width = exported.size
        size = f" It makes {frames} frames of {height} x {width} pixels by default."
    at = f" at {revision}" if revision else ""
    start = f" Training began from [{base_model}](https://huggingface.co/{base_model}){at}." if base_model else ""
    return (
        f"# {name.rpartition('/')[2]}\n\n"
        f"A {'text- and image-to-video' if exported.takes_images else 'text-to-video'} model of Open-Sora Plan v1.5's "
        f"architecture: a denoiser of {_count(exported.parameters)} parameters in {exported.dtype}, its autoencoder and "
        f"settings.{size}{start}"
    )


def _usage(exported: Exported, name: str) -> str:
    code = (_WITH_DIFFUSERS if exported.format == DIFFUSERS else _OURS).format(name=name)
    defaults = [
        f"{value} {what}" for value, what in ((exported.steps, "steps"), (exported.guidance, "guidance scale")) if value
    ]
    note = f"\n\nDefaults: {', '.join(defaults)}." if defaults else ""
    return f"## Use\n\n```python\n{code}\n```{note}"


def _samples(pictures: dict[str, str]) -> str:
    if "samples" not in pictures:
        return ""
    return (
        f"## Samples\n\nThe prompts of the run's own samples; none was picked out.\n\n![samples]({pictures['samples']})"
    )


def _training(record: Record | None, pictures: dict[str, str]) -> str:
    if record is None:
        return "## Training\n\nThe record of the run is not at hand."
    rows = [("steps", f"{record.iteration:,}"), ("samples seen", f"{record.samples:,}")]
    rows += [("samples per step", f"{record.batch:,}")] if record.batch else []
    if record.loss is not None:
        value, steps = record.loss
        rows.append((f"loss, mean of the last {steps:,} steps" if steps > 1 else "loss, last step", f"{value:.4g}"))
    rows += [(name, f"{value:.4g}") for name, value in record.evaluations.items()]
    rows += [(f"`{flag}`", "yes" if value is True else f"{value}") for flag, value in record.settings.items()]
    picture = f"\n\n![curves of the run]({pictures['curves']})" if "curves" in pictures else ""
    return f"## Training\n\n{_table(('what', 'value'), rows)}\n\nFlags that stayed at their defaults are left out.{picture}"


def _data(record: Record | None) -> str:
    if record is None or (record.clips is None and not record.data):
        return ""
    said = record.data
    used = said.get("used", record.clips)
    lines = [f"{used:,} clips" + (f" of a list of {said['rows']:,}." if "rows" in said else ".")]
    dropped = {rule: item["count"] for rule, item in said.get("dropped", {}).items()}
    if dropped:
        lines.append("Left out: " + ", ".join(f"{count:,} by the rule {rule}" for rule, count in dropped.items()) + ".")
    if record.bad_clips:
        lines.append(f"Unreadable while training: {record.bad_clips:,}.")
    shapes = said.get("shapes", {})
    rows = [(shape, f"{count:,}") for shape, count in list(shapes.items())[:_MOST_SHAPES]]
    if len(shapes) > len(rows):
        rows.append((f"{len(shapes) - len(rows)} other shapes", f"{sum(list(shapes.values())[_MOST_SHAPES:]):,}"))
    table = f"\n\n{_table(('frames x height x width', 'clips'), rows)}" if rows else ""
    return f"## Data\n\n{' '.join(lines)}{table}"


def _config(exported: Exported) -> str:
    text = json.dumps(exported.network, indent=1, ensure_ascii=False)
    return f"## Config\n\nOf the denoiser; written by mindspeed_mm {__version__}.\n\n```json\n{text}\n```"


def _licence(licence: str | None) -> str:
    said = (
        f"`{licence}`" if licence else "None was stated. Ask the owners of this repository before you use the weights."
    )
    return f"## Licence\n\n{said}"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in (head, ("---", "--:"), *rows))


def _count(number: int) -> str:
    """8.5 B, 120 M, or all digits below a million."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:,}"
