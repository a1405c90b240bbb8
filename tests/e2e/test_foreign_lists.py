"""Lists as other tools write them are trained at the first try."""

import csv
import gzip
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from config_files import change
from data_runs import train
from ranks import run_ranks

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from data_helpers import write_clip


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Two clips, and a film of both."""
    folder = tmp_path_factory.mktemp("pair")
    for number in range(2):
        write_clip(folder / f"{number}.mp4", 12, fps=24, first=20 * number)
    write_clip(folder / "film.mp4", 36, fps=24)
    return folder


FULL = {"height": 64, "width": 128, "num_frames": 12, "fps": 24}


def rows(pair, path: str, caption: str, **more) -> list[dict]:
    return [{path: str(pair / f"{number}.mp4"), caption: f"a red circle {number}", **more} for number in range(2)]


def write_table(path, entries, mark=","):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, entries[0], delimiter=mark)
        table.writeheader()
        table.writerows(entries)
    return path


def folder_of(folder: Path, pair: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        shutil.copy(pair / f"{number}.mp4", folder)
    return folder


def lists(folder: Path, pair: Path):
    """(what it is, data_path) of a list of two rows, one of each form."""
    full = rows(pair, "path", "cap", **FULL)
    (folder / "plain.json").write_text(json.dumps(rows(pair, "path", "cap", resolution=FULL, num_frames=12, fps=24)))
    (folder / "data.txt").write_text("# our own\n,plain.json\n")
    yield "Open-Sora Plan", folder / "data.txt"
    yield "Open-Sora", write_table(folder / "sora.csv", rows(pair, "path", "text", resolution=8192, **FULL))
    yield "OpenVid", write_table(folder / "vid.csv", [
        {"video": row["path"], "caption": row["cap"], "aesthetic score": 5.1, "frame": 12, "fps": "24.0", "seconds": 0.5}
        for row in full
    ])  # fmt: skip
    yield "tabs", write_table(folder / "tabs.tsv", rows(pair, "file_name", "prompt"), "\t")
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, full)).encode()))
    yield "gz", folder / "lines.jsonl.gz"
    (folder / "under.json").write_text(json.dumps({"data": rows(pair, "video_path", "name", fps="24000/1000")}))
    yield "under data", folder / "under.json"
    parts = [{"video": str(pair / "film.mp4"), "text": "a circle", "start": s, "end": s + 0.5} for s in (0, 1.0)]
    (folder / "parts.json").write_text(json.dumps(parts))
    yield "parts of one file", folder / "parts.json"
    beside = folder_of(folder / "beside", pair)
    for number in range(2):
        (beside / f"{number}.txt").write_text(f"a red circle {number}")
    yield "a text beside each clip", beside
    by_line = folder_of(folder / "by_line", pair)
    (by_line / "prompts.txt").write_text("a red circle\na blue circle\n")
    (by_line / "videos.txt").write_text("0.mp4\n1.mp4\n")
    yield "prompts.txt and videos.txt", by_line
    with_metadata = folder_of(folder / "with_metadata", pair)
    write_table(with_metadata / "metadata.csv", [{"file_name": f"{n}.mp4", "text": f"a circle {n}"} for n in range(2)])
    yield "metadata.csv", with_metadata
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "000000.tar", "w") as tar:
        for file in sorted(beside.iterdir()):
            tar.add(file, file.name)
    yield "shards", folder / "shards"


def _configs(world: Path, folder: Path) -> None:
    for name in ("model.json", "data.json"):
        shutil.copy(world / name, folder / name)
    change(folder / "data.json", "dataset_param.preprocess_parameters.train_fps", 24)


def _flags(folder: Path, save: str, steps: int, *more) -> list:
    files = ["--mm-data", folder / "data.json", "--mm-model", folder / "model.json", "--save", folder / save]
    return [*files, "--lr", 1e-3, "--train-iters", steps, "--num-workers", 0, *more]


def _train_each(folder: str, names: list[tuple[str, str]]) -> dict:
    """In a rank: two steps on every list."""
    found = {}
    for number, (name, path) in enumerate(names):
        change(Path(folder) / "data.json", "dataset_param.basic_parameters.data_path", path)
        found[name] = train(_flags(Path(folder), f"save{number}", 2))
    return found


def test_lists_of_other_tools_are_trained_at_the_first_try(world, pair, tmp_path):
    _configs(world, tmp_path)
    names = [(name, str(path)) for name, path in lists(tmp_path, pair)]
    assert len(names) == 11
    found = run_ranks(_train_each, 1, str(tmp_path), names)[0]
    for name, result in found.items():
        assert isinstance(result, dict) and len(result["losses"]) == 2, f"{name}: {result}"
        assert result["state"]["ledger"] == {"good": 2, "bad_samples": {}, "special": {}}, name


def test_a_run_on_shards_goes_on_where_it_stopped(world, pair, tmp_path):
    _configs(world, tmp_path)
    shards = dict(lists(tmp_path, pair))["shards"]
    change(tmp_path / "data.json", "dataset_param.basic_parameters.data_path", str(shards))
    wanted = run_ranks(train, 1, _flags(tmp_path, "whole", 5))[0]
    run_ranks(train, 1, _flags(tmp_path, "parts", 3))
    assert run_ranks(train, 1, _flags(tmp_path, "parts", 5, "--load", tmp_path / "parts"))[0] == wanted


def test_held_out_clips_may_be_a_folder_as_well(world, pair, tmp_path):
    _configs(world, tmp_path)
    sources = dict(lists(tmp_path, pair))
    change(tmp_path / "data.json", "dataset_param.basic_parameters.data_path", str(sources["Open-Sora Plan"]))
    evaluation = ["--eval-data", sources["a text beside each clip"], "--eval-interval", 1, "--eval-iters", 1]
    found = run_ranks(train, 1, _flags(tmp_path, "evaluated", 1, *evaluation))[0]
    assert isinstance(found, dict), found
    metrics = (tmp_path / "evaluated" / "metrics.jsonl").read_text()
    assert '"eval loss"' in metrics
