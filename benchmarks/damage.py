#!/usr/bin/env python
"""What the clip reader hands out from damaged files: compares each accepted frame of mutated clips, in six codecs, with the
same frame of the undamaged file.

    python benchmarks/damage.py [--clips 500] [--seed 0] [--output result.json]

Every clip is made from the seed and its number alone. Columns: `refused` with a DataError; `right`: every frame differs by
no more than the codec's own noise (the mean difference of undamaged frames from what was encoded); `wrong, noticed`: some
frame is further off although FFmpeg's log, in a plain decode of the file up to there, holds an error (the goal is 0);
`wrong, unnoticed`: nothing in the log, which no decoder can tell from a good file (a checksum can); `traceback`: anything
else than a DataError. Exit code 1 if a clip is wrong and noticed, or there is a traceback.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import av
import numpy as np
from made_clips import ordinary_priority

from mindspeed_mm.data.decode.readers import build_reader, read_clip
from mindspeed_mm.errors import DataError

FRAMES, HEIGHT, WIDTH = 72, 96, 160
# FFmpeg has no encoder of Theora: this file of 45 frames, a third of them repeats, was made with libtheora once.
THEORA = Path(__file__).resolve().parents[1] / "tests" / "data" / "decode" / "theora.ogv"
CODECS = {
    "H.264": ("libx264", "mp4", {"x264-params": "keyint=24:bframes=3:open-gop=1:scenecut=0"}),
    "HEVC": ("libx265", "mkv", {"x265-params": "keyint=24:bframes=3:log-level=none"}),
    "MPEG-4": ("mpeg4", "avi", {"g": "12", "bf": "2"}),
    "VP9": ("libvpx-vp9", "webm", {"g": "24", "cpu-used": "8", "deadline": "realtime"}),
    "AV1": ("libsvtav1", "mkv", {"g": "24", "preset": "12", "svtav1-params": "lp=1"}),
    "Theora": (None, "ogv", {}),
}
OUTCOMES = ("refused", "right", "wrong, noticed", "wrong, unnoticed", "traceback")


@dataclasses.dataclass(frozen=True)
class Source:
    """An undamaged file: its bytes, its frames [T,H,W,3], and how far they are from what was encoded."""

    codec: str
    suffix: str
    content: bytes
    frames: np.ndarray
    noise: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ["SVT_LOG"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.clips, options.seed)
    print(table(found))
    for line in found["wrong"][:40]:
        print(line)
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1))
    total = collections.Counter()
    for counts in found["counts"].values():
        total.update(counts)
    return int(total["wrong, noticed"] + total["traceback"] > 0)


def run(folder: Path, clips: int, seed: int, codecs=tuple(CODECS)) -> dict:
    """{"counts": {codec: {outcome: number}}, "wrong": lines about those that are not refused and not right}."""
    sources = [make(folder, codec) for codec in codecs if CODECS[codec][0] in (None, *av.codecs_available)]
    reader = build_reader("decoder")
    counts = {source.codec: collections.Counter() for source in sources}
    wrong = []
    for number in range(clips):
        source = sources[number % len(sources)]
        draw = random.Random(f"{seed}:{number}")
        what, content = mutated(source.content, draw)
        path = folder / f"{number}.{source.suffix}"
        path.write_bytes(content)
        indices = some_indices(len(source.frames), draw)
        outcome, text = judge(reader, path, indices, source)
        counts[source.codec][outcome] += 1
        if outcome not in ("refused", "right"):
            wrong.append(f"clip {number} {source.codec} {what}, frames {indices[0]}..{indices[-1]}: {outcome}: {text}")
        path.unlink()
    return {"counts": {codec: dict(counter) for codec, counter in counts.items()}, "wrong": wrong}


def table(found: dict) -> str:
    lines = [f"{'codec':8}" + "".join(f"{name:>18}" for name in OUTCOMES)]
    for codec, counts in found["counts"].items():
        lines.append(f"{codec:8}" + "".join(f"{counts.get(name, 0):18}" for name in OUTCOMES))
    return "\n".join(lines)


def judge(reader, path: Path, indices: list[int], source: Source) -> tuple[str, str]:
    """(outcome, what to say about it) of reading `indices` of a damaged file."""
    try:
        frames = read_clip(reader, str(path), indices)
    except DataError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", repr(error)
    wanted = source.frames[indices]
    if frames.shape != wanted.shape:
        return (
            "wrong, noticed" if noticed(path, max(indices)) else "wrong, unnoticed"
        ), f"frames of {frames.shape[1:3]}"
    errors = np.abs(frames.astype(np.int16) - wanted).mean(axis=(1, 2, 3))
    if errors.max() <= source.noise:
        return "right", ""
    said = noticed(path, max(indices))
    bad = sum(errors > source.noise)
    return ("wrong, noticed" if said else "wrong, unnoticed"), f"{bad} frames off by up to {errors.max():.1f}; {said}"


def noticed(path: Path, last: int) -> str | None:
    """The first error in FFmpeg's log, or what it raised, in a plain decode of the frames up to `last`."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as messages:
            try:
                with av.open(str(path)) as container:
                    container.streams.video[0].codec_context.thread_count = 1
                    packets = container.demux(video=0)  # an empty packet with a time repeats a frame
                    frames = (
                        frame for packet in packets if packet.size or packet.pts is None for frame in packet.decode()
                    )
                    for number, frame in enumerate(frames):
                        if frame.is_corrupt:
                            return f"frame {number} is flagged as corrupt"
                        if number == last:
                            break
            except (av.error.FFmpegError, EOFError) as error:
                return str(error)
        return messages[0][2].strip() if messages else None
    finally:
        av.logging.set_level(None)


def mutated(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes): one of the ways in which disks, networks and programs damage files."""
    data, at = bytearray(content), draw.randrange(len(content))
    kind = draw.choice(("bit", "bit", "bytes", "bytes", "zeros", "lost", "cut", "twice"))
    size = draw.choice((4, 16, 64, 512))
    if kind == "bit":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        data[at : at + size] = draw.randbytes(len(data[at : at + size]))
    elif kind == "zeros":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == "lost":
        del data[at : at + size]
    elif kind == "cut":
        del data[at:]
    else:
        data[at:at] = data[at : at + size]
    return f"{kind} at {at} of {len(content)}", bytes(data)


def some_indices(count: int, draw: random.Random) -> list[int]:
    """The ways in which training reads: from the start or after a seek, every frame or every second one."""
    length, step = draw.randint(1, count // 2), draw.choice((1, 1, 2, 3))
    first = draw.choice((0, draw.randrange(count)))
    return list(range(first, min(count, first + length * step), step))


def make(folder: Path, codec: str) -> Source:
    encoder, suffix, options = CODECS[codec]
    path = folder / f"source.{suffix}"
    if encoder is None:
        path.write_bytes(THEORA.read_bytes())
        frames = decoded(path)
        # What was encoded is not kept. 2.6 is an assumption, as large as the noise of the other codecs.
        return Source(codec, suffix, path.read_bytes(), frames, 2.6)
    pictures = list(moving_pictures(FRAMES, HEIGHT, WIDTH))
    with ordinary_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    frames = decoded(path)
    noise = np.abs(frames.astype(np.int16) - np.stack(pictures)).mean(axis=(1, 2, 3)).max()
    return Source(codec, suffix, path.read_bytes(), frames, float(noise))


def decoded(path: Path) -> np.ndarray:
    reader = build_reader("decoder")
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 or packet.pts is not None for packet in container.demux(video=0))
    return read_clip(reader, str(path), range(packets))


def moving_pictures(count: int, height: int, width: int):
    """A smooth picture that drifts and turns brighter, with an object that moves across: RGB uint8 [H,W,3]."""
    y, x = np.mgrid[:height, :width]
    for number in range(count):
        drift = np.stack([x + 2 * number, y + number, x + y], -1) / 16
        frame = 110 + 60 * np.sin(drift) + number
        frame[number % (height - 24) :, 2 * number % (width - 24) :][:24, :24] = (250, 220, 30)
        yield frame.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
