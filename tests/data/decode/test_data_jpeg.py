"""Damage in a JPEG is noticed where FFmpeg notices it, in a PNG always; undamaged ones of every kind are read."""

import numpy as np
import pytest
from PIL import Image

import mindspeed_mm as mm
from mindspeed_mm.errors import DataError

KINDS = {
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "all chroma": {"subsampling": 0},
    "optimized": {"optimize": True},
    "rgb": {"keep_rgb": True},
    "comment": {"comment": b"text" * 100},
}


def picture(height: int = 96, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    return (np.stack([x, 2 * y, (x + y) % 200], -1) % 200 + noise).astype(np.uint8)


def write(path, mode: str = "RGB", **options):
    Image.fromarray(picture()).convert(mode).save(path, **{"quality": 90, **options})
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_kinds_are_read(tmp_path, kind):
    path = write(tmp_path / "a.jpg", **KINDS[kind])
    assert np.array_equal(mm.read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes_are_read(tmp_path, mode):
    path = write(tmp_path / "a.jpg", mode)
    assert np.array_equal(mm.read_image(path), np.asarray(Image.open(path).convert("RGB")))


def test_what_follows_the_picture_does_not_matter(tmp_path):
    """Phones append a clip, a depth map or padding."""
    path = write(tmp_path / "a.jpg")
    wanted = mm.read_image(path)
    path.write_bytes(path.read_bytes() + path.read_bytes() + bytes(1000))
    assert np.array_equal(mm.read_image(path), wanted)


@pytest.mark.parametrize("kind", ["progressive", "restarts", "all chroma"])
def test_lost_bytes_are_noticed(tmp_path, kind):
    """Pillow reads such a file without a word, and makes grey or another picture's colours of the rest."""
    path = write(tmp_path / "a.jpg", **KINDS[kind])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 200 :])
    assert Image.open(path).convert("RGB").size == (160, 96)
    with pytest.raises(DataError, match=r"a.jpg: is damaged: mjpeg"):
        mm.read_image(path)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_flipped_bit_of_a_png_is_noticed(tmp_path, part):
    """Pillow does not compare the checksums of pixels."""
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    assert np.array_equal(mm.read_image(path), picture())
    data = bytearray(path.read_bytes())
    data[int(part * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="a.png: "):
        mm.read_image(path)
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(DataError, match="a.png: "):
        mm.read_image(path)
