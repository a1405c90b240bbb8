"""Facts of a media file as shown: size, frame rate, number of frames, and special traits."""

import dataclasses

import av
import av.container
import numpy as np

from mindspeed_mm.data.decode import suffixes
from mindspeed_mm.data.decode.decoding import Decoding, gives_picture, opened, video_stream
from mindspeed_mm.data.decode.images import moving_stamps, read_image
from mindspeed_mm.data.decode.pace import average_rate, constant_rate
from mindspeed_mm.data.decode.shown import SEVERAL, pixel_aspect, shown_size, traits
from mindspeed_mm.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Pixels, frames and frame rate of a file; or `fault`, the reason why it is unreadable.

    variable: the frame rate varies, and `fps` is the average. traits: see `shown.traits`.
    """

    height: int | None = None
    width: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    fault: str | None = None
    variable: bool = False
    traits: tuple[str, ...] = ()


def facts_of(path: str, kind: str) -> Facts:
    """Facts of a file that is used as `kind`, 'video' or 'image'. Raises DataError if it is unreadable."""
    if kind == "image":
        return Facts(*_size(path))
    return _moving_facts(path) if suffixes.may_move(path) else _video_facts(path)


def _size(path: str) -> tuple[int, int]:
    _, height, width, _ = read_image(path).shape
    return height, width


def _moving_facts(path: str) -> Facts:
    size, stamps = _size(path), moving_stamps(path)  # the last stamp is the end
    if len(stamps) == 2:
        return Facts(*size)
    rate = constant_rate(stamps)
    return Facts(*size, rate or average_rate(stamps), len(stamps) - 1, variable=rate is None)


def _video_facts(path: str) -> Facts:
    """Decodes the first frame and counts the others, from the table of an mp4, else by reading all packets."""
    with opened(path) as container:
        stream = video_stream(path, container)
        nominal = stream.average_rate or stream.guessed_rate
        stamps, count = _stamps(container, stream)
        aspect = pixel_aspect(stream)
    with opened(path) as container:
        decoding = Decoding(path, container)
        frame, fault = next(iter(decoding), (None, None)) if count else (None, None)
        if frame is None:
            raise DataError(f"{path}: holds no frames")
        if fault is not None:
            raise DataError(f"{path}: frame 0 is damaged: {fault}")
        size, special = shown_size(frame, aspect), traits(frame, aspect)
        special += (SEVERAL,) if decoding.several else ()
    if stamps is None or len(stamps) < 2:
        if not nominal:
            raise DataError(f"{path}: says no frame rate")
        return Facts(*size, float(nominal), count, traits=special)
    rate = constant_rate(stamps)
    if rate is None:
        return Facts(*size, average_rate(stamps), count, variable=True, traits=special)
    # The container's rate is exact; it is used if the rounded time stamps agree with it to half a frame.
    if nominal and abs(len(stamps) - 1 - float(nominal) * (stamps[-1] - stamps[0])) <= 0.5:
        rate = float(nominal)
    return Facts(*size, rate, count, traits=special)


def _stamps(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[np.ndarray | None, int]:
    """(seconds of the shown frames, ascending, or None if packets lack them; number of frames)."""
    unit = float(stream.time_base or 0)
    # Without `frames` the table covers only the first fragment. Its times are decoding times, at the same distances.
    if container.format.name.startswith("mov") and stream.frames and len(stream.index_entries) == stream.frames:
        stamps = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
        return np.sort(np.array(stamps, np.float64)) * unit, len(stamps)
    codec = stream.codec_context
    stamps = [packet.pts for packet in container.demux(stream) if gives_picture(packet, codec)]
    if any(stamp is None for stamp in stamps):
        return None, len(stamps)
    return np.sort(np.array(stamps, np.float64)) * unit, len(stamps)
