"""Files -> frames: `VIDEO_READERS[name](path, indices)` and `read_image(path)` give RGB uint8 [T,H,W,3].

Readers are plain functions of a path and a list of indices that raise DataError for everything a file can do wrong, so
that they can be run in another process. PyAV is the default because its frames were right on every readable file
(DEPS.md): frames are matched by their time stamps, counted from the start of the file in display order.
"""

from collections.abc import Callable, Sequence

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from mindspeed_mm.errors import DataError

# Containers whose packets say when a frame is shown (in .avi they do not), and
_TIMED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
# codecs of which one packet is one shown frame (in VP8 it is not), so that frames can be counted without decoding.
_COUNTABLE = frozenset({"h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mpeg2video", "mjpeg", "prores"})
_SKIP = 32  # frames in front of the first wanted one that are decoded rather than skipped by a seek
_REORDER = 32  # a packet lies at most this far behind its place in display order; H.264 and H.265 allow 16

_NOT_READABLE = (av.error.FFmpegError, OSError, ValueError, EOFError)


def read_pyav(path: str, indices: Sequence[int]) -> np.ndarray:
    """Frames of a video by index; rotation of the file's metadata is applied. One thread."""
    wanted = _Wanted(path, indices)
    try:
        with av.open(path, metadata_errors="ignore") as container:
            if _stream(container) is None:
                raise DataError(f"{path}: holds no video stream")
            if wanted.first > _SKIP and _found_after_seek(container, wanted):
                return wanted.frames
        with av.open(path, metadata_errors="ignore") as container:
            decoded = _read_from_start(container, wanted)
    except _NOT_READABLE as error:
        raise DataError(f"{path}: cannot be decoded: {_reason(error)}") from None
    if not wanted.complete:
        raise _past_the_end(path, decoded, wanted.last)
    return wanted.frames


class _Wanted:
    """The frames asked for, filled in as they are met in any order."""

    def __init__(self, path: str, indices: Sequence[int]):
        self.path = path
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            self._places.setdefault(int(index), []).append(place)
        if not self._places or min(self._places) < 0:
            raise DataError(f"{path}: frame indices must be 0 or more, found {list(indices)[:3]}")
        self.first, self.last = min(self._places), max(self._places)
        self.clear()

    def clear(self) -> None:
        self._missing = set(self._places)
        self.frames: np.ndarray | None = None

    @property
    def complete(self) -> bool:
        return not self._missing

    def offer(self, index: int, frame: av.VideoFrame) -> None:
        if index not in self._missing:
            return
        if frame.is_corrupt:
            raise DataError(f"{self.path}: frame {index} is damaged")
        pixels = _upright(frame)
        if self.frames is None:
            self.frames = np.empty((sum(map(len, self._places.values())), *pixels.shape), np.uint8)
        if self.frames.shape[1:] != pixels.shape:
            raise DataError(f"{self.path}: frame {index} is {pixels.shape[:2]}, earlier ones {self.frames.shape[1:3]}")
        self.frames[self._places[index]] = pixels
        self._missing.discard(index)


def _read_from_start(container: av.container.InputContainer, wanted: _Wanted) -> int:
    """Decode and count until all is found; the number of frames decoded."""
    wanted.clear()
    index = -1
    for index, frame in enumerate(_decode(container)):
        wanted.offer(index, frame)
        if wanted.complete:
            break
    return index + 1


def _found_after_seek(container, wanted: _Wanted) -> bool:
    try:
        return _read_after_seek(container, wanted)
    except (DataError, *_NOT_READABLE):
        return False  # decoding from the start has the last word on what is wrong with the file


def _read_after_seek(container: av.container.InputContainer, wanted: _Wanted) -> bool:
    """Decode from the last key frame at or before the first wanted frame. False where that is not sure to be right."""
    stream = _stream(container)
    if container.format.name not in _TIMED or stream.codec_context.name not in _COUNTABLE:
        return False
    stamps, keys = _time_stamps(container, stream, wanted.last + 1 + _REORDER)
    index_of = {stamp: index for index, stamp in enumerate(stamps)}
    if len(index_of) != len(stamps) or wanted.last >= len(stamps):
        return False
    key = max((stamp for stamp in keys if stamp <= stamps[wanted.first]), default=stamps[0])
    if key == stamps[0]:
        return False
    container.seek(keys[key], stream=stream)
    reached = False
    for frame in _decode(container):
        reached = reached or frame.pts == key  # never with intra refresh, where decoding starts some frames later
        if not reached and frame.pts in index_of and frame.pts < key:
            continue  # open GOP: in front of the key frame in display order, refers to what was skipped
        if not reached or frame.pts not in index_of:
            return False
        wanted.offer(index_of[frame.pts], frame)
        if wanted.complete:
            return True
    return False


def _time_stamps(container, stream, limit: int) -> tuple[list[int], dict[int, int]]:
    """pts of the first `limit` frames in display order, and key frames as {pts: time stamp to seek to}."""
    stamps, keys = [], {}
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:  # the flush packet; frames that an edit list hides
            continue
        if packet.pts is None or packet.is_corrupt:
            return [], {}
        stamps.append(packet.pts)
        if packet.is_keyframe:
            keys[packet.pts] = packet.pts if packet.dts is None else packet.dts  # mp4 seeks by dts
        if len(stamps) == limit:
            break
    return sorted(stamps), keys


def _stream(container) -> av.VideoStream | None:
    """The first video stream that is not a cover picture. (decord takes the one with the most pixels.)"""
    streams = (item for item in container.streams.video if not item.disposition & Disposition.attached_pic)
    return next(streams, None)


def _decode(container):
    stream = _stream(container)
    stream.codec_context.thread_count = 1  # parallelism comes from the loader's processes
    return container.decode(stream)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB [H,W,3], turned as the file's display matrix says (multiples of 90 degrees, counter-clockwise)."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def read_decord(path: str, indices: Sequence[int]) -> np.ndarray:
    """As `read_pyav`, with decord: silently wrong frames on open-GOP files, no rotation, no AV1 or VP9 (DEPS.md)."""
    decord = _import_decord()
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        if max(indices) < len(reader):
            return reader.get_batch([int(index) for index in indices]).asnumpy()
    except Exception as error:  # decord raises classes of its own; the file is at fault either way
        raise DataError(f"{path}: cannot be decoded by decord: {_reason(error)}") from None
    raise _past_the_end(path, len(reader), max(indices))


def read_torchcodec(path: str, indices: Sequence[int]) -> np.ndarray:
    """As `read_pyav`, with torchcodec, which needs the system's FFmpeg libraries: no rotation (DEPS.md)."""
    decoders = _import_torchcodec()
    try:
        decoder = decoders.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if max(indices) < len(decoder):
            return decoder.get_frames_at([int(index) for index in indices]).data.numpy()
    except Exception as error:  # torchcodec raises RuntimeError and ValueError for a bad file
        raise DataError(f"{path}: cannot be decoded by torchcodec: {_reason(error)}") from None
    raise _past_the_end(path, len(decoder), max(indices))


def require_reader(name: str) -> None:
    """Raise a DataError that names the package if the reader `name` cannot be used here."""
    if name == "decord":
        _import_decord()
    elif name == "torchcodec":
        _import_torchcodec()


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


def _past_the_end(path: str, count: int, index: int) -> DataError:
    return DataError(f"{path}: has {count} frames; frame {index} was asked for (see cut, num_frames and fps)")


VIDEO_READERS: dict[str, Callable[[str, Sequence[int]], np.ndarray]] = {
    "decoder": read_pyav,  # the published name of the default
    "pyav": read_pyav,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
}


def read_image(path: str) -> np.ndarray:
    """An image as a video of one frame [1,H,W,3], turned as its EXIF orientation says."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG
        raise DataError(f"{path}: cannot be read as an image: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The last words of a library's error, on one line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text[-200:] or type(error).__name__
