"""Compares a list's rows with their files, and draws the frames that training sees."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mindspeed_mm.data.decode.facts import Facts, facts_of
from mindspeed_mm.data.lists.filters import Clip

_TILE, _TEXT, _COLUMNS = 300, 78, 4  # pixels of a tile's picture and of the text below it
_SAME_RATE = 0.02  # relative: 24 and 23.976 count as equal


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """Middle frame of a sample, uint8 [H,W,3], as training sees it; facts of the file; differences from its row."""

    middle: np.ndarray
    facts: Facts
    differences: tuple[str, ...]


def look(clip: Clip, video: Tensor) -> Look:
    """video: [3,T,H,W] as in a sample. Raises DataError if the file is unreadable."""
    facts = facts_of(clip.row.path, clip.row.kind)
    frame = video[:, video.shape[1] // 2].permute(1, 2, 0).numpy()
    low = -1.0 if float(video.min()) < 0 else 0.0  # -1 to 1 after ae_norm, else 0 to 1
    pixels = ((frame - low) / (1 - low) * 255).round().clip(0, 255).astype(np.uint8)
    return Look(pixels, facts, tuple(_differences(clip, facts)))


def _differences(clip: Clip, facts: Facts):
    row = clip.row
    height, width = facts.height, facts.width
    if height is None or width is None:
        return
    if row.crop is not None:  # x0, x1, y0, y1, as in slices
        height, width = len(range(height)[row.crop[2] : row.crop[3]]), len(range(width)[row.crop[0] : row.crop[1]])
    if (row.height, row.width) != (height, width):
        turned = ": transposed" if (row.width, row.height) == (height, width) else ""
        yield f"its row says {row.height}x{row.width} (height x width), the file is shown at {height}x{width}{turned}"
    rate = facts.fps
    if row.kind != "video" or facts.num_frames is None or rate is None:
        return
    if abs(clip.fps / rate - 1) > _SAME_RATE:
        yield f"its row says {clip.fps:g} fps, the file has {rate:g}{' on average' if facts.variable else ''}"
    end = row.start + clip.source_frames
    # with a variable rate, a row's frames count time
    have = round(facts.num_frames / rate * clip.fps) if facts.variable else facts.num_frames
    if end > have:
        yield f"its row goes to frame {end}, the file has {have}"
    elif row.start == 0 and have >= 9.5 * clip.source_frames:
        yield f"its row says {clip.source_frames} frames, the file has {have}"


def draw_samples(tiles: Sequence[tuple[Clip, Look, str]], path: Path) -> None:
    """Writes a PNG of middle frames with path, size, rate and caption. tiles: (clip, look, caption after cleaning)."""
    if not tiles:
        return
    font = ImageFont.truetype(_font(), 11)
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, rows * (_TILE + _TEXT + 8) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (clip, one, caption) in enumerate(tiles):
        left, top = 8 + number % columns * (_TILE + 8), 8 + number // columns * (_TILE + _TEXT + 8)
        picture = Image.fromarray(one.middle)
        scale = _TILE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.resize(size), (left + (_TILE - size[0]) // 2, top + _TILE - size[1]))
        special = f" {', '.join(one.facts.traits)}" if one.facts.traits else ""
        said = f"{clip.key} of {one.facts.height}x{one.facts.width}"
        said += f" {clip.fps:g} fps" if clip.row.kind == "video" else ""
        lines = [_fit(clip.row.path, font, tail=True), _fit(said + special, font)]
        lines += _wrapped(caption or "(no caption is left after cleaning)", font, 3)
        colour = "red" if one.differences else "black"
        for place, line in enumerate(lines):
            pen.text((left, top + _TILE + 2 + 14 * place), line, fill=colour if place == 1 else "black", font=font)
    sheet.save(path)


def _font() -> str:
    """A font with more letters than Pillow's own; matplotlib includes it."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")


def _fit(text: str, font, tail: bool = False) -> str:
    """Cuts a line to the width of a tile; `tail` keeps its end."""
    while font.getlength(text) > _TILE and len(text) > 4:
        text = "..." + text[4:] if tail else text[:-1]
    return text


def _wrapped(text: str, font, most: int) -> list[str]:
    """The first lines of a text."""
    lines, rest = [], " ".join(text.split())[:600]
    while rest and len(lines) < most:
        line = _fit(rest, font)
        cut = line.rfind(" ") if len(line) < len(rest) and " " in line else len(line)
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines
