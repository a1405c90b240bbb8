#!/usr/bin/env python
"""Clips per second of one core, from a 1080p file to what the trainer gets (121x576x1024, tokenised), against the limit:
decoding the same frames with plain decord and doing nothing with them. Then the memory of a worker over 1,000 clips.

    python benchmarks/data_throughput.py [--source clip.mp4] [--repeats 15] [--memory-clips 1000] [--output result.json]

Times are CPU seconds of one thread, so that other load on the machine counts little. Ours and decord take turns, and the
fastest turn of each counts. Without --source it makes a clip: a moving textured picture with grain, x264.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "quickstart"))

import av
import numpy as np
import psutil
import torch
from tiny_encoders import write_encoders

from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.data.feed.build import joiner
from mindspeed_mm.data.feed.dataset import build_dataset
from mindspeed_mm.data.feed.loader import Loader
from mindspeed_mm.data.feed.making import Making
from mindspeed_mm.data.feed.sampler import GroupedSampler, Order, Split
from mindspeed_mm.data.workers.buffers import SharedBuffers
from mindspeed_mm.schema import build, node_from_python

CAPTION = (
    "A hiker in a <b>red</b> jacket walks along a narrow ridge above the clouds while the camera slowly turns. " * 4
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a video of at least 121 frames of 1920x1080 at 24 fps")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory-clips", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if importlib.util.find_spec("decord") is None:
        sys.exit("error: decord is not installed; its rate is what the others are compared with: pip install decord")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        t5, clip = write_encoders(folder, [CAPTION])
        result = {"speed": speed(folder, options, t5, clip)}
        print(json.dumps(result["speed"], indent=1), flush=True)
        if options.memory_clips:
            result["memory"] = memory(folder, options.memory_clips, t5, clip)
            print(json.dumps(result["memory"], indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1))


def speed(folder: Path, options, t5: Path, clip: Path) -> dict:
    """CPU seconds per clip of decord alone, of our decoding alone, and of everything, as a worker does it."""
    source = options.source or write_clip(folder / "source.mp4", 121, 1080, 1920)
    config = data_config(folder, [source] * 4, 121, 1080, 1920, 576, 1024, t5, clip)
    dataset = build_dataset(config.dataset_param, global_batch_size=1, seed=0)
    reader, buffers = dataset._videos._reader, SharedBuffers()

    def sample(turn: int) -> None:
        made = dataset.sample(turn % 4, turn, buffers.allocate)
        buffers.take_back([buffers.lend(made.video)])

    parts = {
        "decord alone": lambda turn: decode_with_decord(source),
        "our decoding alone": lambda turn: [None for _ in reader.frames(str(source), list(range(121)))],
        "decode, transform, tokenise": sample,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(options.repeats + 1):
        for name, part in parts.items():
            begin = time.process_time()
            part(turn)
            if turn:  # the first turn warms up
                times[name].append(time.process_time() - begin)
    seconds = {name: min(values) for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    with av.open(str(source)) as container:
        megabits = container.bit_rate / 1e6
    return {
        "source": f"{options.source or 'made'}, 121 x 1080 x 1920, {megabits:.1f} Mbit/s",
        "cpu_seconds_per_clip": {name: round(value, 3) for name, value in seconds.items()},
        "all_turns": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "clips_per_second_per_core": round(1 / seconds["decode, transform, tokenise"], 3),
        "share_of_decord_alone": round(seconds["decord alone"] / seconds["decode, transform, tokenise"], 3),
        "share_by_medians": round(medians["decord alone"] / medians["decode, transform, tokenise"], 3),
    }


def decode_with_decord(source: Path) -> None:
    import decord

    reader = decord.VideoReader(str(source), ctx=decord.cpu(0), num_threads=1)
    reader.get_batch(list(range(121)))


def memory(folder: Path, clips: int, t5: Path, clip: Path) -> dict:
    """Resident memory of one worker, without what it shares, while it makes clips of 25x288x512 from 50 files."""
    files = [write_clip(folder / f"{number}.mp4", 25, 360, 640, seed=number) for number in range(50)]
    config = data_config(folder, files, 25, 360, 640, 288, 512, t5, clip)
    dataset = build_dataset(config.dataset_param, global_batch_size=1, seed=0)
    sampler = GroupedSampler(dataset.keys, Split(1), Order(seed=0))
    loader = Loader(dataset, sampler, joiner(config, 1, (8, 8, 8), 2), Making(num_workers=1))
    at: dict[int, float] = {}
    for number, _ in enumerate(loader, start=1):
        if number % max(1, clips // 10) == 0:
            (worker,) = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
            used = worker.memory_full_info()
            at[number] = round(used.uss / 2**20, 1)
        if number == clips:
            break
    return {
        "worker_mib_by_clips": at,
        "growth_over_the_last_half_mib": round(list(at.values())[-1] - at[clips // 2], 1),
        "main_process_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def write_clip(path: Path, count: int, height: int, width: int, seed: int = 0) -> Path:
    """A textured picture that drifts, with grain: about 9 Mbit/s at 1080p."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, height // 8, width // 8), dtype=np.float32))
    fine = torch.from_numpy(rng.random((1, 3, height, 2 * width), dtype=np.float32))
    picture = torch.nn.functional.interpolate(coarse, (height, 2 * width), mode="bicubic")
    picture = (200 * picture + 25 * fine)[0].permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "23", "preset": "fast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            view = picture[:, 3 * number : 3 * number + width]
            grain = rng.integers(0, 17, (height, width, 1))
            frame = av.VideoFrame.from_ndarray((view + grain).clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def data_config(folder, files, frames, height, width, to_height, to_width, t5, clip) -> DataConfig:
    """The published pipeline over `files`, without the filter's limits."""
    rows = [
        {
            "path": str(file),
            "cap": CAPTION,
            "num_frames": frames,
            "fps": 24,
            "resolution": {"height": height, "width": width},
        }
        for file in files
    ]
    (folder / "list.json").write_text(json.dumps(rows))
    (folder / "list.txt").write_text(f",{folder / 'list.json'}\n")
    resize = {"size": [to_height, to_width], "interpolation_mode": "bicubic"}
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "CenterCropResizeVideo", "param": resize},
        {"trans_type": "ae_norm"},
    ]
    preprocess = {
        "num_frames": frames,
        "min_num_frames": frames,
        "max_height": to_height,
        "max_width": to_width,
        "max_hxw": to_height * to_width,
        "min_hxw": 1,
        "train_pipeline": {"video": steps, "image": steps},
    }
    dataset = {
        "basic_parameters": {"data_path": str(folder / "list.txt")},
        "preprocess_parameters": preprocess,
        "model_max_length": 512,
        "tokenizer_config": {"from_pretrained": str(t5)},
        "tokenizer_config_2": {"from_pretrained": str(clip)},
    }
    return build(DataConfig, node_from_python({"dataset_param": dataset, "dataloader_param": {}}, ""))


if __name__ == "__main__":
    main()
