"""Accepted file suffixes.

A suffix is accepted if the installed libraries read its format: FFmpeg for videos, Pillow for images. A file's content
decides how it is read; the suffix only tells a clip from a picture.
"""

import functools
import os

from av.format import ContainerFormat
from PIL import Image, features

# suffix -> FFmpeg's name of the container
_CONTAINERS = {
    ".mp4": "mov",
    ".m4v": "mov",
    ".mov": "mov",
    ".3gp": "mov",
    ".3g2": "mov",
    ".f4v": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
    ".vob": "mpeg",
    ".ogv": "ogg",
    ".flv": "flv",
    ".wmv": "asf",
    ".asf": "asf",
    ".dv": "dv",
    ".mxf": "mxf",
}
# suffix -> Pillow's name of the format. Formats without a magic number, and formats that run programs, are left out.
_PICTURES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
}
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # optional parts of Pillow
# Pictures that may be animated. They count as clips if a row gives num_frames above 1; Pillow reads them.
_MAY_MOVE = (".gif", ".png", ".webp", ".avif")


@functools.cache
def video_suffixes() -> tuple[str, ...]:
    """Suffixes of clips, in lower case, that the installed FFmpeg reads."""
    return tuple(suffix for suffix, name in _CONTAINERS.items() if _reads(name))


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes of pictures, in lower case, that the installed Pillow reads."""
    return tuple(suffix for suffix, name in _PICTURES.items() if name in image_formats())


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the accepted formats, whatever the suffix."""
    Image.init()
    names = dict.fromkeys(_PICTURES.values())
    return tuple(
        name for name in names if name in Image.OPEN and features.check(_FEATURES.get(name, "pil")) is not False
    )


@functools.lru_cache(maxsize=256)  # the filter's rules ask for one row many times
def kind_of(path: str, num_frames: int | None = None) -> str:
    """'video', 'image' or 'unknown', by the suffix in any case. num_frames: from the row."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in image_suffixes():
        return "video" if num_frames is not None and num_frames > 1 and may_move(path) else "image"
    return "video" if suffix in video_suffixes() else "unknown"


def may_move(path: str) -> bool:
    """True if a file's picture format can hold several frames."""
    return os.path.splitext(path)[1].lower() in _MAY_MOVE


def accepted() -> str:
    """Accepted suffixes, for messages."""
    return f"videos end in {' '.join(video_suffixes())}; images in {' '.join(image_suffixes())}"


def _reads(container: str) -> bool:
    try:
        return ContainerFormat(container, "r").is_input
    except ValueError:
        return False
