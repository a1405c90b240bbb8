"""Clips that stand for real ones: other codecs, sizes, rates and colours, and files that are broken in a known way.

Made anew in each test session, so that the repository holds no video and every property is visible here.
"""

import contextlib
import fractions
import json
import os
import struct
from pathlib import Path

import av
import numpy as np

_X264 = {"preset": "veryfast", "x264-params": "keyint=60:bframes=3:b-pyramid=normal"}

# name -> caption, frames, fps, height, width: what annotations.json says of the clips that are listed
LISTED = {
    "lift.mp4": (
        ["a bright disc rises slowly over a dark blue field", "a light disc moves upwards, the ground is dark blue"],
        325,
        25,
        90,
        160,
    ),
    "summit.mp4": ("a warm disc stands above layered bands in evening light", 49, 8, 120, 180),
    "press.mp4": (
        "A grey disc is seen sinking into coloured bands, demonstrating how slowly it moves.",
        114,
        16,
        96,
        160,
    ),
    "sweets.mp4": ("A grey disc is seen crossing a row of colourful bands, as if it were pushed.", 146, 16, 96, 160),
    "full_range.mp4": ("colour bars of a television test pattern", 30, 30, 144, 256),
    "ten_bits.mp4": ("a ten bit test pattern", 30, 30, 200, 200),
}


def make_clips(folder: Path) -> Path:
    """Write annotations.json, the listed clips, two of other codecs, and `broken/` into `folder`."""
    for name, (_, count, fps, height, width) in LISTED.items():
        more = {}
        if name == "full_range.mp4":
            more = {"pix_fmt": "yuvj420p", "colorspace": 1, "color_range": 2}  # BT.709, full range
        if name == "ten_bits.mp4":
            more = {"pix_fmt": "yuv420p10le"}
        _write(folder / name, count, fps, height, width, options=_X264, **more)
    with ordinary_priority():
        _write(
            folder / "av1.mkv", 125, 25, 90, 160, codec="libsvtav1", options={"preset": "12", "svtav1-params": "log=0"}
        )
    h265 = {"x265-params": "keyint=4:bframes=2:log-level=none"}
    _write(folder / "h265.mp4", 10, 10, 128, 128, codec="libx265", options=h265)
    rows = [
        {
            "path": name,
            "cap": caption,
            "num_frames": count,
            "fps": fps,
            "resolution": {"height": height, "width": width},
        }
        for name, (caption, count, fps, height, width) in LISTED.items()
    ]
    (folder / "annotations.json").write_text(json.dumps(rows, indent=1))
    (folder / "broken").mkdir()
    _make_broken(folder / "broken")
    return folder


@contextlib.contextmanager
def ordinary_priority():
    """Surrounds SVT-AV1, which, run by root, gives this process a real-time priority that starves all others."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    try:
        yield
    finally:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def _make_broken(folder: Path) -> None:
    _write(
        folder / "unordered.mov", 4, 32, 50, 50, options={"x264-params": "bframes=2"}
    )  # packets not in display order
    _write(folder / "rotated_90.mov", 3, 30, 64, 112, options=_X264)
    _turn(folder / "rotated_90.mov")
    _write(folder / "corrupted.mp4", 50, 10, 144, 256, options=_X264)
    _blank_packets(folder / "corrupted.mp4", 30)
    whole = (folder / "corrupted.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])  # the index at the end of the file is gone
    (folder / "not_a_video.mp4").write_bytes(b"This is a text, whatever its name says.\n" * 200)
    (folder / "zero_byte.mp4").write_bytes(b"")


def _frames(count: int, height: int, width: int):
    """RGB uint8 [H,W,3]: a disc that crosses coloured bands, with some texture."""
    y, x = np.mgrid[:height, :width]
    bands = np.stack([60 + x * 120 // width, 40 + (y * 6 // height) * 30, 90 + (x + y) % 64], -1)
    for number in range(count):
        place = number / max(1, count - 1)
        inside = (x - width * (0.2 + 0.6 * place)) ** 2 + (y - height * (0.8 - 0.6 * place)) ** 2 < (height / 6) ** 2
        yield np.where(inside[..., None], (230, 200, 90), bands).astype(np.uint8)


def _write(
    path, count, fps, height, width, *, codec="libx264", pix_fmt="yuv420p", options, colorspace=None, color_range=None
):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = fractions.Fraction(1, fps)
        if colorspace is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        for number, pixels in enumerate(_frames(count, height, width)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if colorspace is not None:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range)
            frame.pts, frame.time_base = number, fractions.Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _turn(path: Path) -> None:
    """Make the file's metadata say that its pictures are shown turned by 90 degrees clockwise."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0  # version 0: 40 bytes of other fields stand in front of the matrix
    one = 1 << 16
    struct.pack_into(">9i", data, header + 40, 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


def _blank_packets(path: Path, first: int) -> None:
    """Overwrite every packet from number `first` on, in file order, with zeros."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for start, size in packets[first:]:
        data[start : start + size] = bytes(size)
    path.write_bytes(bytes(data))
