"""What the tests of the data folder share: synthetic clips whose frames say their number, configs, a tiny tokenizer."""

import dataclasses
import fractions
import json
from pathlib import Path

import av
import numpy as np
import torch

from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.data.feed.sampler import GroupedSampler, Order, Split
from mindspeed_mm.schema import build, node_from_python
from mindspeed_mm.types import TokenIds

# Pixels of several shapes, and the published steps for them.
MULTI = {"force_resolution": False, "max_hxw": 64 * 128, "min_hxw": 0, "hw_stride": 16}
STEPS = [
    {"trans_type": "ToTensorVideo"},
    {"trans_type": "MaxHWStrideResizeVideo", "param": {"max_hxw": 64 * 128, "force_5_ratio": False}},
    {"trans_type": "SpatialStrideCropVideo", "param": {"stride": 16, "force_5_ratio": False}},
    {"trans_type": "ae_norm"},
]
_BITS, _BLOCK = 8, 16  # a frame shows its number as black and white squares of 16 px in its first row of squares


def numbered_frames(count: int, height: int, width: int, first: int = 0):
    """RGB uint8 [H,W,3] frames; `frame_number` reads their number, from `first` on, back after lossy compression."""
    y, x = np.mgrid[:height, :width]
    for number in range(first, first + count):
        frame = np.stack([(2 * x + 7 * number) % 256, (2 * y + 3 * number) % 256, (x + y) % 256], -1).astype(np.uint8)
        for bit in range(_BITS):
            frame[:_BLOCK, _BLOCK * bit : _BLOCK * (bit + 1)] = 255 * (number >> bit & 1)
        yield frame


def frame_number(frame: np.ndarray) -> int:
    """The number that a decoded frame [H,W,3] shows."""
    middle = _BLOCK // 2
    return sum(int(frame[middle, _BLOCK * bit + middle].mean() > 127) << bit for bit in range(_BITS))


def write_clip(
    path: Path,
    count: int,
    height: int = 64,
    width: int = 128,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 24,
    variable: bool = False,
    first: int = 0,
    **options: str,
) -> Path:
    """Encode `count` frames numbered from `first` on; `variable` gives each frame a duration of its own."""
    unit = fractions.Fraction(1, 1000) if variable else fractions.Fraction(1, fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = unit
        time = 0
        for number, pixels in enumerate(numbered_frames(count, height, width, first)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (time if variable else number), unit
            time += 20 + number * 37 % 60
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def row(path: str, *, height: int = 64, width: int = 128, num_frames: int = 9, **more) -> dict:
    """An annotation of a clip as `write_clip` makes them."""
    entry = {"path": path, "cap": f"caption of {path}", "num_frames": num_frames, "fps": 24}
    return {**entry, "resolution": {"height": height, "width": width}, **more}


def write_list(folder: Path, rows: list[dict], name: str = "data") -> Path:
    """Write data.txt and its annotation file beside the clips."""
    (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / f"{name}.txt").write_text(f"{folder},{folder / name}.json\n")
    return folder / f"{name}.txt"


def data_config(data_path, preprocess: dict | None = None, loader: dict | None = None, **dataset) -> DataConfig:
    """A small v1.5-like data.json: 9 frames of 32x64, no caption dropout."""
    height, width = (preprocess or {}).get("max_height", 32), (preprocess or {}).get("max_width", 64)
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "CenterCropResizeVideo", "param": {"size": [height, width], "interpolation_mode": "bicubic"}},
        {"trans_type": "ae_norm"},
    ]
    values = {
        "num_frames": 9,
        "max_height": height,
        "max_width": width,
        "min_hxw": 1,
        "min_num_frames": 9,
        "cfg": 0.0,
        "train_pipeline": {"video": steps, "image": steps},
        **(preprocess or {}),
    }
    tokenizer = {"autotokenizer_name": "AutoTokenizer", "from_pretrained": "no/such/tokenizer"}
    content = {
        "dataset_param": {
            "basic_parameters": {"data_path": str(data_path)},
            "preprocess_parameters": values,
            "tokenizer_config": tokenizer,
            **dataset,
        },
        "dataloader_param": loader or {},
    }
    return build(DataConfig, node_from_python(content, ""))


def sampler_of(keys, **options) -> GroupedSampler:
    """A sampler with the fields of `Split` and `Order` as arguments of one function."""
    names = [field.name for field in dataclasses.fields(Split)]
    split = {name: value for name, value in options.items() if name in names}
    order = {name: value for name, value in options.items() if name not in names}
    return GroupedSampler(keys, Split(**split), Order(**order))


class LetterTokenizer:
    """Stands for a Hugging Face tokenizer where the words do not matter: a token per letter, padded to `max_length`."""

    def __init__(self, max_length: int = 16):
        self.max_length = max_length

    def __call__(self, texts) -> TokenIds:
        ids = torch.zeros(len(texts), self.max_length, dtype=torch.int64)
        for number, text in enumerate(texts):
            letters = [ord(letter) for letter in text[: self.max_length]]
            ids[number, : len(letters)] = torch.tensor(letters, dtype=torch.int64)
        return TokenIds(ids, ids != 0)
