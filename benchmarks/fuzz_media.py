"""Doors of `benchmarks/fuzz.py` for media: clips, images, and what is kept of them on disk."""

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from fuzz_damage import HARMLESS, UNNOTICED, Try, judged, mutated

_FRAMES, _HEIGHT, _WIDTH = 12, 48, 64
_CODECS = {"mp4": "libx264", "mkv": "libx264", "ts": "mpeg2video", "avi": "mpeg4"}
_NOISE = 4  # mean difference of 255 that a decoder's own rounding may make


def clips_door(folder: Path) -> Try:
    import av

    from mindspeed_mm.data.decode.readers import build_reader, read_clip

    whole, wanted = {}, {}
    for suffix, codec in _CODECS.items():
        path = folder / f"whole.{suffix}"
        _write_clip(path, codec, keys=_FRAMES)
        whole[suffix] = path.read_bytes()
        wanted[suffix] = read_clip(build_reader("decoder"), str(path), range(0, _FRAMES, 2))
    av.logging.set_level(av.logging.PANIC)

    def attempt(chance: random.Random) -> str:
        suffix = chance.choice(list(whole))
        path = folder / f"clip.{suffix}"
        path.write_bytes(mutated(whole[suffix], chance))
        frames = read_clip(build_reader("decoder"), str(path), range(0, _FRAMES, 2))
        return _compared(frames, wanted[suffix])

    return attempt


def _write_clip(path: Path, codec: str, keys: int) -> None:
    """A clip whose frames get brighter; keys: frames between two key frames."""
    import av
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={"g": str(keys)})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        for number in range(_FRAMES):
            pixels = np.full((_HEIGHT, _WIDTH, 3), 20 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def _compared(found, wanted) -> str:
    """Nothing in these formats tells of other sizes or turns; training counts those that differ from their row."""
    if found.dtype != wanted.dtype or found.ndim != wanted.ndim:
        return judged(False)
    if found.shape != wanted.shape:
        return UNNOTICED
    far = abs(found.astype(int) - wanted.astype(int)).reshape(len(wanted), -1).mean(1).max()
    return HARMLESS if far <= _NOISE else UNNOTICED


# format -> what Pillow is told when it writes; the first has checksums
_PICTURES = {
    "png": {},
    "jpg": {"quality": 90},
    "progressive.jpg": {"quality": 90, "progressive": True},
    "restarts.jpg": {"quality": 90, "restart_marker_blocks": 2},
    "webp": {"lossless": True},
    "gif": {},
    "tif": {"compression": "tiff_lzw"},
    "bmp": {},
}


def images_door(folder: Path) -> Try:
    import numpy as np
    from PIL import Image

    from mindspeed_mm.data.decode.images import read_image

    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    pixels = np.stack([2 * x, 3 * y, (x * y) % 200], -1).astype(np.uint8)
    whole, wanted = {}, {}
    for suffix, options in _PICTURES.items():
        path = folder / f"whole.{suffix}"
        Image.fromarray(pixels).save(path, **options)
        whole[suffix], wanted[suffix] = path.read_bytes(), read_image(str(path))

    def attempt(chance: random.Random) -> str:
        suffix = chance.choice(list(whole))
        path = folder / f"image.{suffix}"
        path.write_bytes(mutated(whole[suffix], chance))
        found = read_image(str(path))
        return judged(np.array_equal(found, wanted[suffix])) if suffix == "png" else _compared(found, wanted[suffix])

    return attempt


def indexes_door(folder: Path) -> Try:
    """Stored frame indexes (.npy): whatever they say, frames are those of the clip."""
    import numpy as np

    from mindspeed_mm.data.decode.readers import build_reader, read_clip

    clip, indexes = folder / "clip.mp4", folder / "indexes"
    _write_long(clip)
    wanted = read_clip(build_reader("decoder"), str(clip), range(80, 90))
    read_clip(build_reader("decoder", str(indexes)), str(clip), range(80, 120))  # to the end, so that it is stored
    (path,) = indexes.rglob("*.index")
    whole = path.read_bytes()

    def attempt(chance: random.Random) -> str:
        path.write_bytes(mutated(whole, chance))
        found = read_clip(build_reader("decoder", str(indexes)), str(clip), range(80, 90))
        return judged(np.array_equal(found, wanted))

    return attempt


def _write_long(path: Path) -> None:
    from data_helpers import write_clip

    write_clip(path, 120, g="12", bf="2")


def features_door(folder: Path) -> Try:
    """Stored features: settings, index and shard."""
    from mindspeed_mm.data.stored import features

    generator = torch.Generator().manual_seed(0)
    wanted = {f"clip {number}.mp4": torch.randn(40, generator=generator) for number in range(6)}
    settings = {"fps": 24.0, "weights": "abc", "size": [9, 32, 32]}
    features.write_settings(folder, features.VIDEO, settings)
    writer = features.PartWriter(folder, features.VIDEO, 0, 0)
    for name, tensor in wanted.items():
        writer.add(features.Entry(features.digest(name), name, features.Stamp(1, 2)), {"mean": tensor})
    writer.flush()
    whole = {path: path.read_bytes() for path in folder.iterdir()}

    def attempt(chance: random.Random) -> str:
        path = chance.choice(sorted(whole))
        path.write_bytes(mutated(whole[path], chance))
        try:
            features.check_settings(folder, features.VIDEO, settings)
            return judged(_all_equal(features.PartReader(folder, features.VIDEO), features.digest, wanted))
        finally:
            path.write_bytes(whole[path])

    return attempt


def _all_equal(part, key_of, wanted: Mapping[str, torch.Tensor]) -> bool:
    found = {name: part.load(key_of(name), ("mean",), name)[0] for name in wanted}
    return all(torch.equal(found[name], wanted[name]) for name in wanted)
