#!/usr/bin/env python
"""Private memory and start of ranks and workers on a long list: read by every process as ever, and from its index.

    python benchmarks/list_index.py [--rows 1000000] [--repeats 1] [--ways read first later] [--ranks 2] [--folder FOLDER]

Makes a list of captioned clips in about 80 shapes, in annotation files of 250,000 rows. Two ranks start at once, with a data
worker each. Memory is what only this process has (USS of /proc/PID/smaps_rollup), minus what the same process has with
a list of 1,000 rows. A start lasts from the imported package to the first batch; frames are not decoded. "first" makes the
index, "later" finds it; its files are dropped from the page cache before.
"""

import argparse
import functools
import gc
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from table import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone that is not installed, too

from mindspeed_mm import logs
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.data.feed.build import build_loader
from mindspeed_mm.data.feed.collate import collate
from mindspeed_mm.data.feed.dataset import ClipDataset, emptied_captions, filtered_list
from mindspeed_mm.data.feed.sampler import Split
from mindspeed_mm.schema import build, node_from_python
from mindspeed_mm.types import TokenIds

WAYS = {"read": "read by every process", "first": "index, first start", "later": "index, later start"}
_FILE_ROWS = 250_000
_TEXT = (
    "a person walks slowly through the old town while the camera follows at eye level past market stalls with bright "
    "fruit and people who talk in warm evening light then it turns towards a narrow street where two children play"
)


class NoVideos:
    """In the place of `VideoSource`: pixels are no part of this."""

    def check(self, clips) -> None:
        pass

    def load(self, clip, rng, crop, allocate, tell) -> torch.Tensor:
        return torch.zeros(3, 1, 16, 16)


class NoTexts:
    """In the place of `Tokens`. The first sample looks for garbage, as a worker does sooner or later, which touches all
    objects of the process.
    """

    def __init__(self):
        self._looked = False

    def load(self, text: str):
        if not self._looked:
            self._looked = gc.collect() >= 0
        return TokenIds(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--repeats", type=int, default=1, help="times that the list holds each row, as data.txt may say"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for list and index; default: a temporary one, removed at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        short, long = write_list(folder, 1000), write_list(folder, options.rows, options.repeats)
        count = options.rows * options.repeats
        index = folder / "index"
        empty = starts(short, "none", options.ranks)
        rows = []
        for way in options.ways:
            if way == "first":
                shutil.rmtree(index, ignore_errors=True)
            forget(index)
            found = starts(long, "none" if way == "read" else str(index), options.ranks)
            pairs = enumerate(zip(found, empty, strict=True))
            rows += [line(WAYS[way], rank, of, base, count) for rank, (of, base) in pairs]
            print(rows[-options.ranks :], file=sys.stderr, flush=True)
        print(f"{count:,} rows, {size(long)} MB of annotations, index {size(index / 'x')} MB\n")
    header = [
        "",
        "rank",
        "start, s",
        "MB of the rank",
        "bytes a row",
        "MB of its worker",
        "bytes a row",
        "peak MB of the rank",
    ]
    print(table(header, rows))


def line(name: str, rank: int, found: dict, base: dict, rows: int) -> list[object]:
    """A line of the table, minus what a list of 1,000 rows takes."""
    own, worker, peak = (found[key] - base[key] for key in ("own", "worker", "peak"))
    return [name, rank, f"{found['seconds']:.1f}", mb(own), own // rows, mb(worker), worker // rows, mb(peak)]


def mb(number: float) -> str:
    return f"{number / 1e6:.0f}"


def size(path: Path) -> str:
    """MB of the files beside a path."""
    return mb(sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()))


def forget(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------ processes


def starts(data_path: Path, index: str, ranks: int) -> list[dict]:
    """What each of several ranks takes that start at once."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(ranks), context.SimpleQueue()
    processes = [
        context.Process(target=start, args=(data_path, index, rank, ranks, barrier, answers)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(ranks)]


def start(data_path: Path, index: str, rank: int, ranks: int, barrier, answers) -> None:
    """Loads a list as a rank of a run does, and takes some batches from a worker."""
    torch.set_num_threads(1)
    logs.setup(rank)
    config = data_config(data_path, index)
    barrier.wait()
    begin = time.monotonic()
    clips = filtered_list(config.dataset_param, global_batch_size=2 * ranks)
    emptied_captions(clips.clips, config.dataset_param)
    dataset = ClipDataset(clips.usable, config.dataset_param, NoVideos(), NoTexts(), seed=0)
    del clips
    join = functools.partial(collate, strides=(1, 1, 1), patch_size=1)
    loader = build_loader(dataset, config, Split(2 * ranks, 1, rank, ranks), join, seed=0)
    loader.state_dict()
    batches = iter(loader)
    next(batches)
    seconds = time.monotonic() - begin
    for _ in range(50):
        next(batches)
    gc.collect()
    barrier.wait()
    (worker,) = multiprocessing.active_children()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answers.put((rank, {"seconds": seconds, "own": private(os.getpid()), "worker": private(worker.pid), "peak": peak}))
    barrier.wait()
    batches.close()


def private(process: int | None) -> int:
    """Bytes that only this process has."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(one.split()[1]) for one in lines if one.startswith("Private_"))


# ------------------------------------------------------------------------------------------------------------- the list


def write_list(folder: Path, count: int, repeats: int = 1) -> Path:
    """data.txt of `count` rows, each of which it holds `repeats` times; annotations that exist are used again."""
    folder = folder / f"{count}"
    data = folder / f"data{repeats}.txt"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in sorted(folder.glob("*.jsonl"))] or write_annotations(folder, count)
        (folder / "clips").mkdir(exist_ok=True)  # nothing is decoded
        data.write_text("".join(f"{folder / 'clips'},{folder / name},{repeats}\n" for name in names))
    return data


def write_annotations(folder: Path, count: int) -> list[str]:
    """Names of the files that now describe `count` rows."""
    draw = random.Random(0)
    captions = [" ".join(draw.choices(_TEXT.split(), k=draw.randrange(30, 90))) for _ in range(5000)]
    names = []
    for begin in range(0, count, _FILE_ROWS):
        names.append(f"part{begin // _FILE_ROWS:03}.jsonl")
        with open(folder / names[-1], "w", encoding="utf-8") as file:
            for number in range(begin, min(count, begin + _FILE_ROWS)):
                height, width = draw.choice(((1080, 1920), (720, 1280), (1920, 1080), (1080, 1440), (1080, 1080)))
                entry = {
                    "path": f"part{number % 1000:03}/{draw.getrandbits(80):020x}-scene{number % 37:03}.mp4",
                    "cap": f"{captions[number % 5000]}, take {number}",
                    "num_frames": draw.randrange(20, 400),
                    "fps": draw.choice((24, 25, 29.97)),
                    "resolution": {"height": height, "width": width},
                    "aesthetic": round(draw.uniform(3, 7), 3),
                }
                file.write(json.dumps(entry) + "\n")
    return names


def data_config(data_path: Path, index: str) -> DataConfig:
    """Five ratios, all lengths from 29 to 121 frames."""
    preprocess = {
        "num_frames": 121,
        "min_num_frames": 29,
        "drop_short_ratio": 0.0,
        "force_resolution": False,
        "force_5_ratio": True,
        "max_hxw": 576 * 1024,
        "min_hxw": 65536,
    }
    values = {
        "dataset_param": {
            "basic_parameters": {"data_path": str(data_path), "list_index_folder": index},
            "preprocess_parameters": preprocess,
            "tokenizer_config": {"from_pretrained": "none"},
        },
        "dataloader_param": {"num_workers": 1},
    }
    return build(DataConfig, node_from_python(values, ""))


if __name__ == "__main__":
    main()
