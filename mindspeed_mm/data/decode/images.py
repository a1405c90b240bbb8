"""Reads pictures with Pillow as uint8 RGB, as a viewer would show them.

16-bit values are scaled, not cut. Transparent pixels show WHITE, the usual paper colour, not their hidden colour.
Values without a fixed range (floats, 32-bit integers) are refused.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import av
import av.error
import numpy as np
from PIL import Image

from mindspeed_mm.data.decode import media, suffixes
from mindspeed_mm.data.decode.damage import listening, notice
from mindspeed_mm.errors import DataError
from mindspeed_mm.files.checksum import crc32

WHITE = 255  # colour behind transparent pixels, in images and videos
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)  # 179 million: 16k x 11k. Pillow refuses more

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
_ORIENTATION = 0x0112  # tag of EXIF; each value names the operations to apply to the stored pixels
_TURNS = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def read_image(path: str) -> np.ndarray:
    """An image as a video of one frame [1,H,W,3], turned by its EXIF orientation; the first frame if there are
    several.
    """
    with _opened(path) as image:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION) or 1, lambda pixels: pixels)
        pixels = turn(_pixels(image, path))
        if image.format in ("JPEG", "MPO"):
            _check_jpeg(path)
        return np.ascontiguousarray(pixels)[None]


def read_moving(path: str, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, [H,W,3]) for frames of an animated image, ascending and once each. DataError if there are too
    few.
    """
    wanted = sorted(set(indices))
    with _opened(path) as image:
        count = getattr(image, "n_frames", 1)
        if wanted[-1] >= count:
            raise past_the_end(path, count, wanted[-1])
        for index in wanted:
            image.seek(index)
            yield index, _pixels(image, path)


def moving_stamps(path: str) -> np.ndarray:
    """Times at which the frames of an animated image are shown, in seconds, and the end of the last frame."""
    durations = [0.0]
    with _opened(path) as image:
        count = getattr(image, "n_frames", 1)
        for index in range(count):
            image.seek(index)
            if count > 1:
                image.load()  # WebP knows the duration only then
            durations.append((image.info.get("duration") or 100) / 1000)  # browsers show 100 ms for 0
    return np.cumsum(durations)


def composite(pixels: np.ndarray) -> np.ndarray:
    """Composites RGBA uint8 [...,4] onto WHITE: uint8 [...,3]."""
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)


def past_the_end(path: str, count: int, index: int) -> DataError:
    return DataError(f"{path}: has {count} frames; frame {index} was asked for (see cut, num_frames and fps)")


def reason(error: BaseException) -> str:
    """The end of a library's error message, on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text[-200:] or type(error).__name__


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Opens a file. All of Pillow's errors become DataError, since damaged files raise any kind of error in its
    plugins.
    """
    try:
        media.check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, and sizes from 89 to 179 million pixels
            with Image.open(media.open_bytes(path), formats=suffixes.image_formats()) as image:
                if image.format == "PNG":
                    _check_png(path)
                yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        what = ", ".join(suffixes.image_formats())
        raise DataError(f"{path}: cannot be read as an image: is none of {what}") from None
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image: {reason(error)}") from None


def _pixels(image: Image.Image, path: str) -> np.ndarray:
    """uint8 [H,W,3] of the current frame."""
    if image.mode.startswith("I;16"):
        return _deep_grey(image)
    if image.mode == "I" and image.format == "PPM":  # Pillow stretches every PPM of more than 8 bits to 16
        return _grey(np.asarray(image), 65535)
    if image.mode in ("I", "F"):
        what = "floats" if image.mode == "F" else "32-bit integers"
        raise DataError(
            f"{path}: mode {image.mode}: its pixels are {what}, which say no range; save it with 8 or 16 bits"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return composite(np.asarray(_with_alpha(image)))
    return np.array(image.convert("RGB"))


def _check_png(path: str) -> None:
    """Raises DataError for a damaged PNG: Pillow does not compare the checksums of the pixels' chunks."""
    with media.open_bytes(path) as file:
        file.read(8)
        kind = b""
        while kind != b"IEND":
            header = file.read(8)
            length, kind = int.from_bytes(header[:4], "big"), header[4:]
            data = file.read(length)
            whole = len(header) == 8 and len(data) == length
            if not whole or crc32(data, crc32(kind)) != int.from_bytes(file.read(4), "big"):
                raise DataError(f"{path}: is damaged: a checksum of the PNG is not that of its bytes")


def _check_jpeg(path: str) -> None:
    """Raises DataError for damage in a JPEG, which Pillow fills with grey or another picture's colours in silence.

    FFmpeg decodes it again, with its log open; it takes less time than Pillow. What FFmpeg does not read, such as
    arithmetic coding, is not judged.
    """
    with media.open_bytes(path) as file, listening() as messages:
        decoder = av.VideoCodecContext.create("mjpeg", "r")
        decoder.thread_count = 1
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        try:
            decoder.decode(av.Packet(file.read()))
            fault = notice(messages)
        except av.error.FFmpegError as error:
            fault = notice(messages) or reason(error)
    if fault is not None and not any("unsupported" in text or "not supported" in text for _, _, text in messages):
        raise DataError(f"{path}: is damaged: {fault}")


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied; Pillow converts it only through LA
        image = image.convert("LA")
    return image.convert("RGBA")


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Grey of 9 to 16 bits, with the transparent value that a PNG may name."""
    values = np.asarray(image).astype(np.uint16)
    tags = getattr(image, "tag_v2", {})
    top = 2 ** int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1
    hidden = image.info.get("transparency")
    grey = _grey(top - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values, top)
    if isinstance(hidden, int):
        grey[values == hidden] = WHITE
    return grey


def _grey(values: np.ndarray, top: int) -> np.ndarray:
    """Scales [H,W] of 0 to top to uint8 [H,W,3]."""
    scaled = (values.clip(0, top).astype(np.uint32) * 255 + top // 2) // top
    return scaled.astype(np.uint8)[..., None].repeat(3, axis=-1)
