"""Overview of a finished folder of samples: index.html, contact sheets and a grid, made from its files alone."""

import html
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_mm import atomic, logs
from mindspeed_mm.sampling import record, sheets
from mindspeed_mm.sampling.writer import write_image, write_video

_log = logs.get(__name__)
_SHEET_COLUMNS, _SHEET_ROWS = 6, 12
_GRID_ROWS = 20  # the original refuses more

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ margin: 2rem; background: #18181b; color: #e4e4e7; font: 15px/1.5 system-ui, sans-serif; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }}
article {{ background: #27272a; border-radius: .5rem; overflow: hidden; }}
video, img {{ width: 100%; display: block; background: #000; }}
p, dl {{ margin: .6rem .8rem; }} dl {{ color: #a1a1aa; font-size: 13px; }}
dt, dd {{ display: inline; margin: 0; }} dd::after {{ content: ""; display: block; }}
.failed {{ outline: 2px solid #f87171; }} a {{ color: #93c5fd; }}
</style></head><body><h1>{title}</h1><p>{sheets}</p><main>
{samples}
</main></body></html>
"""
_SAMPLE = """<article id="{name}"{failed}>{media}<p>{prompt}</p><dl>{facts}</dl></article>"""


def write_all(folder: Path) -> None:
    """Writes contact sheets, the grid and the page for all samples in `folder`."""
    records = record.read_all(folder)
    done = [entry for entry in records if entry["status"] == record.DONE]
    names = _write_contact_sheets(folder, done)
    for suffix, kind in ((".mp4", "video"), (".png", "image")):
        files = [folder / entry["file"] for entry in done if entry["file"].endswith(suffix)]
        if len(files) > 1:
            _write_grid(
                folder / f"{kind}_grid{suffix}", files, [entry for entry in done if entry["file"].endswith(suffix)]
            )
    write_page(folder, records, names)


def write_page(folder: Path, records: list[dict[str, Any]], contact_sheets: list[str]) -> None:
    """Writes index.html; it opens from the disk and stays valid when its folder moves."""
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in contact_sheets)
    page = _PAGE.format(
        title=f"{len(records)} samples",
        sheets=f"Contact sheets: {links}" if links else "",
        samples="\n".join(_sample(entry) for entry in records),
    )
    atomic.write_text(folder / "index.html", page)


def _sample(entry: dict[str, Any]) -> str:
    sample = entry["sample"]
    frames, height, width = sample["settings"]["pipeline_config"]["input_size"]
    diffusion = sample["settings"]["diffusion"]
    facts = {
        "sample": f'<a href="{entry["name"]}.json">{entry["name"]}</a>',
        "negative": html.escape(sample["negative_prompt"]),
        "seed": sample["seed"],
        "size": f"{frames} x {height} x {width}",
        "steps": diffusion["num_inference_steps"],
        "guidance": diffusion["guidance_scale"],
    }
    if entry["status"] == record.FAILED:
        media, facts = "", {**facts, "failed": html.escape(entry["error"])}
    elif entry["file"].endswith(".png"):
        media = f'<img src="{entry["file"]}" alt="" loading="lazy">'
    else:
        media = f'<video src="{entry["file"]}" controls loop muted preload="metadata"></video>'
    return _SAMPLE.format(
        name=entry["name"],
        failed=' class="failed"' if entry["status"] == record.FAILED else "",
        media=media,
        prompt=html.escape(sample["prompt"]),
        facts="".join(f"<dt>{key}: </dt><dd>{value}</dd>" for key, value in facts.items() if value != ""),
    )


def _write_contact_sheets(folder: Path, done: list[dict[str, Any]]) -> list[str]:
    names = []
    for first in range(0, len(done), _SHEET_ROWS):
        page = done[first : first + _SHEET_ROWS]
        videos = [_picked(folder / entry["file"], _frames(entry)) for entry in page]
        labels = [f"{entry['name']}  seed {entry['sample']['seed']}  {entry['sample']['prompt']}" for entry in page]
        names.append(f"contact_sheet_{first // _SHEET_ROWS:03d}.png")
        sheet = sheets.contact_sheet(videos, labels, columns=_SHEET_COLUMNS)
        write_image(sheet[None], folder / names[-1])
    return names


def _picked(path: Path, count: int) -> np.ndarray:
    """Frames of a file that a contact sheet shows; other frames are not kept in memory."""
    wanted = set(sheets.pick(count, _SHEET_COLUMNS))
    return np.stack([frame for number, frame in enumerate(sheets.read_frames(path)) if number in wanted])


def _frames(entry: dict[str, Any]) -> int:
    return entry["sample"]["settings"]["pipeline_config"]["input_size"][0]


def _write_grid(path: Path, files: list[Path], entries: list[dict[str, Any]]) -> None:
    sizes = {tuple(entry["sample"]["settings"]["pipeline_config"]["input_size"]) for entry in entries}
    if len(sizes) > 1 or sheets.grid_shape(len(files))[0] > _GRID_ROWS:
        _log.info(f"no {path.name}: {len(files)} samples of {len(sizes)} sizes (need one size, {_GRID_ROWS} rows)")
        return
    settings = entries[0]["sample"]["settings"]
    streams = [sheets.read_frames(file) for file in files]
    frames = (sheets.grid_picture(pictures) for pictures in zip(*streams, strict=True))
    if path.suffix == ".png":
        write_image(next(frames)[None], path)
    else:
        write_video(frames, path, settings["fps"] // settings["frame_interval"])
    for stream in itertools.chain(streams):
        stream.close()
