"""Decodes an open video file: yields its frames in display order, each with its fault or None.

Packets are decoded one by one with FFmpeg's log open, so that damage is known per packet (see `data/decode/damage.py`).
"""

import contextlib
from collections.abc import Iterator

import av
import av.container
import av.error
import av.logging
from av.stream import Disposition
from av.video.frame import PictureType

from mindspeed_mm.data.decode import media
from mindspeed_mm.data.decode.damage import Damage, listening, notice
from mindspeed_mm.data.decode.images import MAX_PIXELS, reason
from mindspeed_mm.errors import DataError

# errors of FFmpeg and PyAV for unreadable files
NOT_READABLE = (av.error.FFmpegError, OSError, ValueError, EOFError, ArithmeticError, MemoryError)
_REPEATS = frozenset({"theora", "vp8", "libvpx"})  # codecs in which an empty packet repeats the previous frame
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these codecs omit the alpha channel


@contextlib.contextmanager
def opened(path: str) -> Iterator[av.container.InputContainer]:
    """Opens a file. Raises DataError for FFmpeg's errors while it is open."""
    try:
        media.check_file(path)
        options = {"protocol_whitelist": "file,subfile"}  # blocks network access by a playlist that poses as a clip
        with listening() as messages:
            container = av.open(media.for_ffmpeg(path), metadata_errors="ignore", container_options=options)
        with container:
            # FFmpeg reads ahead while it opens a file, so the place of this damage is unknown.
            said = notice([one for one in messages if one[0] <= av.logging.ERROR and one[1] in container.format.name])
            if said is not None:
                raise DataError(f"{path}: is damaged: {said}")
            yield container
    except NOT_READABLE as error:
        raise DataError(f"{path}: cannot be decoded: {reason(error)}") from None


def shown_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams that are no cover pictures."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    return [item for item in container.streams.video if not item.disposition & covers]


def video_stream(path: str, container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is not a cover picture. (decord takes the one with the most pixels.)"""
    stream = next(iter(shown_streams(container)), None)
    if stream is None:
        raise DataError(f"{path}: holds no video stream")
    if stream.codec_context is None:
        raise DataError(f"{path}: FFmpeg has no decoder for its video stream")
    return stream


class Decoding:
    """One reading of a file from its current position. Yields (frame, fault); fault is None for a good frame."""

    def __init__(self, path: str, container: av.container.InputContainer, *, sought: int | None = None):
        """sought: after a seek, the time stamp of the key frame. Frames shown before it are not judged, since they may
        refer to skipped ones, and frame numbers come from time stamps.
        """
        self._path, self._container, self._sought = path, container, sought
        self.stream = video_stream(path, container)
        self.several = len(shown_streams(container)) > 1
        self._codec = _decoder(self.stream)
        self._damage = Damage()
        self._last: av.VideoFrame | None = None
        self._stamp: int | None = None  # time stamp of the last packet, for codecs whose stamps have no gaps

    def __iter__(self) -> Iterator[tuple[av.VideoFrame, str | None]]:
        packets = self._container.demux(self.stream)
        number = -1
        while True:
            number += 1
            with listening() as messages:
                packet = next(packets, None)
            if packet is None:
                return
            self._note_packet(number, packet, notice(messages))
            for frame in self._frames(number, packet):
                yield frame, self._fault(number, frame)

    def _note_packet(self, number: int, packet: av.Packet, said: str | None) -> None:
        if said is not None:
            self._damage.found(number, said)
            self._damage.lose_count(said)  # a damaged container may have lost packets
        # theora's stamps count frames, so a gap means a lost one
        if self._codec.name == "theora" and packet.pts is not None:
            if self._stamp is not None and packet.pts != self._stamp + 1:
                self._damage.found(number, "packets are missing")
                self._damage.lose_count("packets are missing")
            self._stamp = packet.pts
        if packet.is_corrupt:
            self._damage.found(number, "its packet is damaged")
        if gives_picture(packet, self._codec):
            self._damage.sent(number, key=packet.is_keyframe)

    def _frames(self, number: int, packet: av.Packet) -> list[av.VideoFrame]:
        # not the last packet, which flushes
        if packet.size == 0 and (packet.pts is not None or packet.dts is not None):
            if self._last is None or not _repeats(packet, self._codec):
                return []
            self._last.pts, self._last.opaque = packet.pts, number
            return [self._last]
        packet.opaque = number
        with listening() as messages:
            frames = self._codec.decode(packet)
        said = notice(messages)
        if said is not None and not self._leads(packet.pts):
            self._damage.found(number, said)
            if self._damage.late:
                raise DataError(f"{self._path}: is damaged: {said}")
        return frames

    def _fault(self, number: int, frame: av.VideoFrame) -> str | None:
        """number: of the packet that was sent last."""
        if frame.width * frame.height > MAX_PIXELS:
            raise DataError(f"{self._path}: frames of {frame.width}x{frame.height} pixels; {MAX_PIXELS} are the limit")
        self._last = frame
        if self._leads(frame.pts):
            return None
        own = frame.opaque if isinstance(frame.opaque, int) else number
        key = frame.key_frame and frame.pict_type == PictureType.I
        fault = self._damage.fault(own, key=key, corrupt=frame.is_corrupt, counted=self._sought is None)
        if self._damage.late:
            raise DataError(f"{self._path}: is damaged: {self._damage.late}")
        return fault

    def _leads(self, stamp: int | None) -> bool:
        return self._sought is not None and stamp is not None and stamp < self._sought


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """The stream's decoder, set up but not open."""
    codec = stream.codec_context
    name = _WITH_ALPHA.get(codec.name)
    if name is not None and stream.metadata.get("alpha_mode") == "1" and name in av.codecs_available:
        codec = av.CodecContext.create(name, "r")
        assert isinstance(codec, av.VideoCodecContext), "both names are those of video codecs"
        codec.extradata = stream.codec_context.extradata
    codec.thread_count = 1  # the loader's processes provide the parallelism
    codec.copy_opaque = True
    codec.options = {**codec.options, "err_detect": "crccheck", "max_pixels": str(MAX_PIXELS)}
    return codec


def gives_picture(packet: av.Packet, codec: av.VideoCodecContext) -> bool:
    """True if a packet makes a shown frame, as far as can be told without decoding."""
    if packet.size == 0 or packet.is_discard:  # the last packet, which flushes; packets that an edit list hides
        return _repeats(packet, codec) and not packet.is_discard
    return codec.name not in ("vp8", "libvpx") or bool(bytes(packet)[0] & 0x10)  # RFC 6386, 9.1: show_frame


def _repeats(packet: av.Packet, codec: av.VideoCodecContext) -> bool:
    """True if an empty packet repeats the previous frame."""
    return packet.size == 0 and packet.pts is not None and codec.name in _REPEATS
