"""Files -> frames. A reader gives planes of red, green and blue bytes one frame at a time, so that no clip is held whole.

Readers raise DataError for everything a file can do wrong. PyAV is the default because its frames were right on every
readable file (docs/data.md): frames are matched by their time stamps, counted from the start of the file in display order.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from mindspeed_mm.data import media
from mindspeed_mm.data.frame_index import FrameIndexes
from mindspeed_mm.data.rgb import Planes, RgbConverter, split
from mindspeed_mm.errors import DataError

_SKIP = 32  # frames in front of the first wanted one that are decoded rather than skipped by a seek
_NOT_READABLE = (av.error.FFmpegError, OSError, ValueError, EOFError)

Places = tuple[int, ...]


class VideoReader(Protocol):
    """What a reader can do. Readers can be pickled, for worker processes."""

    def frames(self, path: str, indices: Sequence[int]) -> Iterator[tuple[Places, Planes]]:
        """The frames `indices` of a video in any order: the places in `indices` that hold a frame, and its planes.

        A place may come twice; the later one counts. The planes are valid until the next frame is asked for. DataError
        if a frame cannot be had.
        """


def build_reader(name: str, index_folder: str | None = None) -> VideoReader:
    """The reader `video_reader_type`; DataError names the package that it needs and that is not installed.

    index_folder: where PyAV's frame indexes are kept from run to run.
    """
    return PyavReader(FrameIndexes(index_folder)) if name in ("decoder", "pyav") else _OTHERS[name]()


def read_clip(reader: VideoReader, path: str, indices: Sequence[int]) -> np.ndarray:
    """All frames at once, uint8 [T,H,W,3], for callers that can hold them."""
    clip: np.ndarray | None = None
    for places, planes in reader.frames(path, indices):
        pixels = np.stack(planes, axis=-1)
        if clip is None:
            clip = np.empty((len(indices), *pixels.shape), np.uint8)
        if clip.shape[1:] != pixels.shape:
            raise DataError(f"{path}: frames of {pixels.shape[:2]} and of {clip.shape[1:3]} pixels")
        clip[list(places)] = pixels
    return clip


# --------------------------------------------------------------------------------------------------------------- PyAV


class PyavReader:
    """The default: right on every file that FFmpeg reads; the rotation of the file's metadata is applied. One thread."""

    def __init__(self, indexes: FrameIndexes):
        self._indexes = indexes
        self._rgb = RgbConverter()

    def frames(self, path: str, indices: Sequence[int]) -> Iterator[tuple[Places, Planes]]:
        wanted = _Wanted(path, indices, self._rgb)
        try:
            with av.open(media.for_ffmpeg(path), metadata_errors="ignore") as container:
                if _stream(container) is None:
                    raise DataError(f"{path}: holds no video stream")
                seeks = wanted.first > _SKIP
                yield from self._after_seek(container, wanted) if seeks else _from_start(container, wanted)
            if not wanted.complete:  # the seek did not lead to all frames
                with av.open(media.for_ffmpeg(path), metadata_errors="ignore") as container:
                    yield from _from_start(container, wanted)
        except _NOT_READABLE as error:
            raise DataError(f"{path}: cannot be decoded: {_reason(error)}") from None

    def _after_seek(self, container, wanted: "_Wanted") -> Iterator[tuple[Places, Planes]]:
        """Decode from the last key frame at or before the first wanted frame; ends early where that may not be right."""
        try:
            index = self._indexes.find(wanted.path, container, _stream(container), wanted.last)
            if not index.usable or wanted.last >= len(index.stamps):
                return
            key, seek = index.key_before(wanted.first)
            if key == index.stamps[0]:
                return
            container.seek(seek, stream=_stream(container))
            reached = False
            for frame in _decode(container):
                reached = reached or frame.pts == key  # never with intra refresh, where decoding starts frames later
                place = None if frame.pts is None else index.place(frame.pts)
                if not reached and place is not None and frame.pts < key:
                    continue  # open GOP: in front of the key frame in display order, refers to what was skipped
                if not reached or place is None:
                    return
                yield from wanted.offer(place, frame)
                if wanted.complete:
                    return
        except (DataError, *_NOT_READABLE):
            return  # decoding from the start has the last word on what is wrong with the file


class _Wanted:
    """The frames asked for, ticked off as they are met in any order."""

    def __init__(self, path: str, indices: Sequence[int], rgb: RgbConverter):
        self.path = path
        self._rgb, self._reformatter = rgb, VideoReformatter()
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            self._places.setdefault(int(index), []).append(place)
        if not self._places or min(self._places) < 0:
            raise DataError(f"{path}: frame indices must be 0 or more, found {list(indices)[:3]}")
        self.first, self.last = min(self._places), max(self._places)
        self.clear()

    def clear(self) -> None:
        self._missing = set(self._places)

    @property
    def complete(self) -> bool:
        return not self._missing

    def offer(self, index: int, frame: av.VideoFrame) -> Iterator[tuple[Places, Planes]]:
        """Nothing for a frame that is not wanted."""
        if index not in self._missing:
            return
        if frame.is_corrupt:
            raise DataError(f"{self.path}: frame {index} is damaged")
        self._missing.discard(index)
        yield tuple(self._places[index]), self._rgb(frame, self._reformatter)


def _from_start(container: av.container.InputContainer, wanted: _Wanted) -> Iterator[tuple[Places, Planes]]:
    """Decode and count until all is found."""
    wanted.clear()
    index = -1
    for index, frame in enumerate(_decode(container)):
        yield from wanted.offer(index, frame)
        if wanted.complete:
            return
    raise _past_the_end(wanted.path, index + 1, wanted.last)


def _stream(container) -> av.VideoStream | None:
    """The first video stream that is not a cover picture. (decord takes the one with the most pixels.)"""
    streams = (item for item in container.streams.video if not item.disposition & Disposition.attached_pic)
    return next(streams, None)


def _decode(container):
    stream = _stream(container)
    stream.codec_context.thread_count = 1  # parallelism comes from the loader's processes
    return container.decode(stream)


def probe_video(path: str) -> tuple[int, int, float, int]:
    """(height, width, frames per second, number of frames) of a file; the first frame is decoded, the others counted."""
    try:
        with av.open(media.for_ffmpeg(path), metadata_errors="ignore") as container:
            stream = _stream(container)
            if stream is None:
                raise DataError(f"{path}: holds no video stream")
            rate = stream.average_rate or stream.guessed_rate
            count = _count(container, stream)
            frame = next(_decode(container), None) if count else None
            if frame is None or not rate:
                raise DataError(f"{path}: holds no frames")
            turned = round(frame.rotation / 90) % 2
            height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
            return height, width, float(rate), count
    except _NOT_READABLE as error:
        raise DataError(f"{path}: cannot be decoded: {_reason(error)}") from None


def _count(container, stream) -> int:
    """Shown frames: by the table of an mp4, else by reading all packets."""
    if container.format.name.startswith("mov") and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries)
    count = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
    container.seek(0)
    return count


# ------------------------------------------------------------------------------------------------------------- others


class DecordReader:
    """decord, or its fork decord2: silently wrong frames on open-GOP files, no rotation, no VP9 (docs/data.md)."""

    def __init__(self):
        _import_decord()

    def frames(self, path: str, indices: Sequence[int]) -> Iterator[tuple[Places, Planes]]:
        decord = _import_decord()
        try:
            reader = decord.VideoReader(_source(path), ctx=decord.cpu(0), num_threads=1)
            count = len(reader)
            clip = reader.get_batch([int(index) for index in indices]).asnumpy() if max(indices) < count else None
        except Exception as error:  # decord raises classes of its own; the file is at fault either way
            raise DataError(f"{path}: cannot be decoded by decord: {_reason(error)}") from None
        if clip is None:
            raise _past_the_end(path, count, max(indices))
        for place, pixels in enumerate(clip):
            yield (place,), split(pixels)


class TorchcodecReader:
    """torchcodec, which needs the system's FFmpeg libraries: no rotation (docs/data.md)."""

    def __init__(self):
        _import_torchcodec()

    def frames(self, path: str, indices: Sequence[int]) -> Iterator[tuple[Places, Planes]]:
        decoders = _import_torchcodec()
        try:
            decoder = decoders.VideoDecoder(
                _source(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            count = len(decoder)
            wanted = [int(index) for index in indices]
            clip = decoder.get_frames_at(wanted).data.numpy() if max(wanted) < count else None
        except Exception as error:  # torchcodec raises RuntimeError and ValueError for a bad file
            raise DataError(f"{path}: cannot be decoded by torchcodec: {_reason(error)}") from None
        if clip is None:
            raise _past_the_end(path, count, max(indices))
        for place, pixels in enumerate(clip):
            yield (place,), split(pixels)


_OTHERS = {"decord": DecordReader, "torchcodec": TorchcodecReader}


def _import_decord():
    try:
        import decord
    except ImportError:
        raise DataError("video_reader_type decord: pip install decord (decord2 on aarch64)") from None
    return decord


def _import_torchcodec():
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as error:  # the last two: FFmpeg libraries are missing
        raise DataError(f"video_reader_type torchcodec: pip install torchcodec, and FFmpeg: {_reason(error)}") from None
    return decoders


def _source(path: str):
    """A file's name, or the bytes of a member of a tar."""
    return path if media.place(path)[2] is None else media.open_bytes(path)


def _past_the_end(path: str, count: int, index: int) -> DataError:
    return DataError(f"{path}: has {count} frames; frame {index} was asked for (see cut, num_frames and fps)")


# ------------------------------------------------------------------------------------------------------------- images


def read_image(path: str) -> np.ndarray:
    """An image as a video of one frame [1,H,W,3], turned as its EXIF orientation says."""
    try:
        with Image.open(media.open_bytes(path)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG
        raise DataError(f"{path}: cannot be read as an image: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The last words of a library's error, on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text[-200:] or type(error).__name__
