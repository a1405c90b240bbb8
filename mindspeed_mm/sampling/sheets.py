"""Pictures of many videos: contact sheets (one row of frames per video) and the original's grid."""

import math
from collections.abc import Generator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK = (24, 24, 27), (228, 228, 231)
_GAP, _LABEL, _FONT = 4, 20, 13  # pixels


def contact_sheet(
    videos: Sequence[np.ndarray], labels: Sequence[str], *, columns: int = 6, thumbnail_width: int = 192
) -> np.ndarray:
    """Contact sheet [H,W,3] uint8: for each video [T,h,w,3] uint8 its label, and below it `columns` frames from first
    to last.

    Shorter videos and images show all their frames. Videos may differ in size and length.
    """
    if len(videos) != len(labels) or not videos:
        raise ValueError(f"{len(videos)} videos and {len(labels)} labels: need as many of both, at least one")
    rows = [_thumbnails(video, columns, thumbnail_width) for video in videos]
    heights = [_LABEL + max(image.height for image in row) + _GAP for row in rows]
    width = columns * (thumbnail_width + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    top = 0
    for row, label, height in zip(rows, labels, heights, strict=True):
        draw.text((_GAP, top + 3), _shortened(label, draw, font, width - 2 * _GAP), fill=_INK, font=font)
        for column, image in enumerate(row):
            sheet.paste(image, (_GAP + column * (thumbnail_width + _GAP), top + _LABEL))
        top += height
    return np.asarray(sheet)


def grid_picture(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Places pictures [h,w,3] uint8 of one size side by side on black, as the original's video grid does.

    The grid has ceil(sqrt(n)) rows of ceil(n / rows) pictures, one pixel between pictures, two at the right and the
    bottom.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
        raise ValueError(f"pictures of a grid must have one size, found {sorted(shapes)}")
    height, width, channels = shapes.pop()
    rows, columns = grid_shape(len(pictures))
    canvas = np.zeros(((height + 1) * rows + 1, (width + 1) * columns + 1, channels), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (height + 1) * (number // columns), (width + 1) * (number % columns)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def grid_shape(count: int) -> tuple[int, int]:
    """(rows, columns) of a grid of `count` pictures."""
    rows = math.ceil(math.sqrt(count))
    return rows, math.ceil(count / rows)


def read_frames(path: Path) -> Generator[np.ndarray, None, None]:
    """Yields frames [h,w,3] uint8 of a written video or image."""
    if path.suffix == ".png":
        yield np.asarray(Image.open(path).convert("RGB"))
        return
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def pick(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count`, evenly spread from the first to the last."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [0]
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]


def _thumbnails(video: np.ndarray, columns: int, width: int) -> list[Image.Image]:
    height = max(1, round(video.shape[1] * width / video.shape[2]))
    frames = [Image.fromarray(video[number]) for number in pick(len(video), columns)]
    return [frame.resize((width, height), Image.Resampling.LANCZOS) for frame in frames]


def _shortened(text: str, draw: ImageDraw.ImageDraw, font, width: int) -> str:
    """Shortens a text to one line of at most `width` pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + " ...", font=font) > width:
        text = text[:-1]
    return text + " ..."
