"""Decodes files into frames. A reader yields red, green and blue byte planes one frame at a time, so no clip is held
whole.

Readers raise DataError for every fault of a file. PyAV is the default because its frames were right on every readable
file: it matches frames by time stamps, counted from the start of the file in display order.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mindspeed_mm.data.decode import media, suffixes
from mindspeed_mm.data.decode.decoding import NOT_READABLE, Decoding, opened, video_stream
from mindspeed_mm.data.decode.frame_index import FrameIndexes
from mindspeed_mm.data.decode.images import moving_stamps, past_the_end, read_moving, reason
from mindspeed_mm.data.decode.pace import Pace, moments, read_stamps
from mindspeed_mm.data.decode.rgb import Planes, RgbConverter, split
from mindspeed_mm.data.decode.shown import OTHER_RATE, SEVERAL, VARIABLE, Screen, Tell, ignore, pixel_aspect
from mindspeed_mm.errors import DataError

_SKIP = 32  # up to this many unneeded frames are decoded instead of seeking

Places = tuple[int, ...]


class VideoReader(Protocol):
    """Interface of a reader. Readers can be pickled for worker processes."""

    def frames(
        self, path: str, indices: Sequence[int], fps: float | None = None, tell: Tell = ignore
    ) -> Iterator[tuple[Places, Planes]]:
        """Frames `indices` of a video, in any order: yields the places in `indices` that hold a frame, and its planes.

        fps: rate at which `indices` count; in a file of variable rate, index i is the frame shown i / fps seconds
        after the first. Without it, frames are counted. A place may come twice; the later one counts. Planes are valid
        until the next frame is requested. tell: called with the clip's special traits that the reader knows. Raises
        DataError for a missing frame, at the latest at the end.
        """
        ...


def build_reader(name: str, index_folder: str | None = None) -> VideoReader:
    """The reader `video_reader_type`. DataError names its package if that is not installed.

    index_folder: stores PyAV's frame indexes from run to run.
    """
    return READERS[name](index_folder)


def read_clip(reader: VideoReader, path: str, indices: Sequence[int], fps: float | None = None) -> np.ndarray:
    """All frames at once, uint8 [T,H,W,3], for callers with enough memory."""
    clip: np.ndarray | None = None
    for places, planes in reader.frames(path, indices, fps):
        pixels = np.stack(planes, axis=-1)
        if clip is None:
            clip = np.empty((len(indices), *pixels.shape), np.uint8)
        if clip.shape[1:] != pixels.shape:
            raise DataError(f"{path}: frames of {pixels.shape[:2]} and of {clip.shape[1:3]} pixels")
        clip[list(places)] = pixels
    if clip is None:
        raise DataError(f"{path}: no frames were asked for")
    return clip


# --------------------------------------------------------------------------------------------------------------- PyAV


class PyavReader:
    """The default: right on every file that FFmpeg reads, with frames as shown. One thread."""

    def __init__(self, indexes: FrameIndexes):
        self._indexes = indexes
        self._rgb = RgbConverter()

    def frames(
        self, path: str, indices: Sequence[int], fps: float | None = None, tell: Tell = ignore
    ) -> Iterator[tuple[Places, Planes]]:
        wanted, pace, short = _Wanted(path, indices, tell), Pace(fps), None
        try:
            yield from self._read(wanted, pace)
        except PastTheEnd as error:
            short = error
        if pace.irregular and fps is not None:  # variable rate, or a rate other than `fps`
            stamps = read_stamps(path, self._indexes)
            tell(OTHER_RATE if stamps is None else VARIABLE)
            timed = None if stamps is None else moments(path, stamps, indices, fps)
            if timed is not None:
                short = None
                if timed != list(indices):
                    yield from self._read(_Wanted(path, timed, tell), Pace(None))
        if short is not None:
            raise short

    def _read(self, wanted: "_Wanted", pace: Pace) -> Iterator[tuple[Places, Planes]]:
        if suffixes.may_move(wanted.path):
            yield from _pictures(wanted, pace)
            return
        if wanted.first > _SKIP:
            with opened(wanted.path) as container:
                yield from self._after_seek(container, wanted, pace)
        if not wanted.complete:  # no seek, or it did not reach all frames
            with opened(wanted.path) as container:
                yield from self._from_start(container, wanted, pace)

    def _from_start(self, container, wanted: "_Wanted", pace: Pace) -> Iterator[tuple[Places, Planes]]:
        """Decodes and counts until all frames are found."""
        wanted.clear()
        decoding = Decoding(wanted.path, container)
        show = self._screen(wanted, decoding)
        index, start, unit = -1, None, float(decoding.stream.time_base or 0)
        for index, (frame, fault) in enumerate(decoding):
            start = frame.pts if index == 0 else start
            pace.see(index, None if frame.pts is None or start is None else (frame.pts - start) * unit)
            yield from wanted.offer(index, frame, fault, show)
            if wanted.complete:
                return
        raise PastTheEnd(wanted.path, index + 1, wanted.last)

    def _after_seek(self, container, wanted: "_Wanted", pace: Pace) -> Iterator[tuple[Places, Planes]]:
        """Decodes from the last key frame at or before the first wanted frame; ends early where the result may be
        wrong.
        """
        stream = video_stream(wanted.path, container)
        try:
            index = self._indexes.find(wanted.path, container, stream, wanted.last)
            if not index.usable or wanted.last >= len(index.stamps):
                return
            key, seek = index.key_before(wanted.first)
            if key == index.stamps[0]:
                return
            container.seek(seek, stream=stream)
            decoding = Decoding(wanted.path, container, sought=key)
            show = self._screen(wanted, decoding)
            reached = False
            for frame, fault in decoding:
                stamp = frame.pts
                place = None if stamp is None else index.place(stamp)
                if stamp is None or place is None:
                    return
                # never true with intra refresh, where decoding starts frames later
                reached = reached or stamp == key
                if not reached and stamp < key:
                    continue  # open GOP: shown before the key frame, refers to skipped frames
                if not reached:
                    return
                pace.see(place, float((stamp - int(index.stamps[0])) * (stream.time_base or 0)))
                yield from wanted.offer(place, frame, fault, show)
                if wanted.complete:
                    return
        except (DataError, *NOT_READABLE):
            return  # decoding from the start will report the file's fault

    def _screen(self, wanted: "_Wanted", decoding: Decoding) -> Screen:
        if decoding.several:
            wanted.tell(SEVERAL)
        return Screen(wanted.path, self._rgb, pixel_aspect(decoding.stream), wanted.tell)


class PastTheEnd(DataError):
    """A requested frame lies beyond the end of the file."""

    def __init__(self, path: str, count: int, index: int):
        super().__init__(str(past_the_end(path, count, index)))


class _Wanted:
    """The requested frames, ticked off as they arrive in any order."""

    def __init__(self, path: str, indices: Sequence[int], tell: Tell):
        self.path, self.tell = path, tell
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

    @property
    def indices(self) -> list[int]:
        return sorted(self._places)

    def offer(self, index: int, frame, fault: str | None, show) -> Iterator[tuple[Places, Planes]]:
        """Yields the frame if it is wanted. fault: reason not to trust it. show: frame -> planes."""
        if index not in self._missing:
            return
        if fault is not None:
            raise DataError(f"{self.path}: frame {index} is damaged, or decoded from a damaged one: {fault}")
        self._missing.discard(index)
        yield tuple(self._places[index]), show(frame)


def _pictures(wanted: _Wanted, pace: Pace) -> Iterator[tuple[Places, Planes]]:
    """Frames of an animated image."""
    if pace.timed:
        for index, seconds in enumerate(moving_stamps(wanted.path)[:-1].tolist()):
            pace.see(index, seconds)
    for index, pixels in read_moving(wanted.path, wanted.indices):
        yield from wanted.offer(index, pixels, None, split)


# ------------------------------------------------------------------------------------------------------------- others


class DecordReader:
    """decord, or its fork decord2: silently wrong frames on open-GOP files, no rotation, no VP9."""

    def __init__(self):
        _import_decord()

    def frames(
        self, path: str, indices: Sequence[int], fps: float | None = None, tell: Tell = ignore
    ) -> Iterator[tuple[Places, Planes]]:
        decord = _import_decord()
        try:
            reader = decord.VideoReader(_source(path), ctx=decord.cpu(0), num_threads=1)
            count = len(reader)
            clip = reader.get_batch([int(index) for index in indices]).asnumpy() if max(indices) < count else None
        except Exception as error:  # decord raises its own error classes; each means a faulty file
            raise DataError(f"{path}: cannot be decoded by decord: {reason(error)}") from None
        if clip is None:
            raise past_the_end(path, count, max(indices))
        for place, pixels in enumerate(clip):
            yield (place,), split(pixels)


class TorchcodecReader:
    """torchcodec, which needs the system's FFmpeg libraries: no rotation."""

    def __init__(self):
        _import_torchcodec()

    def frames(
        self, path: str, indices: Sequence[int], fps: float | None = None, tell: Tell = ignore
    ) -> Iterator[tuple[Places, Planes]]:
        decoders = _import_torchcodec()
        try:
            decoder = decoders.VideoDecoder(
                _source(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
            count = len(decoder)
            wanted = [int(index) for index in indices]
            clip = decoder.get_frames_at(wanted).data.numpy() if max(wanted) < count else None
        except Exception as error:  # torchcodec raises RuntimeError and ValueError for a bad file
            raise DataError(f"{path}: cannot be decoded by torchcodec: {reason(error)}") from None
        if clip is None:
            raise past_the_end(path, count, max(indices))
        for place, pixels in enumerate(clip):
            yield (place,), split(pixels)


def _pyav(index_folder) -> VideoReader:
    return PyavReader(FrameIndexes(index_folder))


READERS = {
    "decoder": _pyav,
    "pyav": _pyav,
    "decord": lambda index_folder: DecordReader(),
    "torchcodec": lambda index_folder: TorchcodecReader(),
}


def _source(path: str):
    """Source that these readers open: a path, or the bytes of a tar member."""
    return path if media.place(path)[2] is None else media.open_bytes(path)


def _import_decord():
    try:
        return importlib.import_module("decord")
    except ImportError:
        raise DataError("video_reader_type decord: pip install decord (decord2 on aarch64)") from None


def _import_torchcodec():
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:  # the last two: FFmpeg libraries are missing
        raise DataError(f"video_reader_type torchcodec: pip install torchcodec, and FFmpeg: {reason(error)}") from None
