"""tools/check_dataset.py: what a user is told about a list before a run."""

import hashlib
import json
import subprocess
from pathlib import Path

from data_helpers import data_config, row, write_clip, write_list
from PIL import Image

from mindspeed_mm.data.check import checksums
from mindspeed_mm.data.check.lists import check_list, draw_shapes
from mindspeed_mm.data.lists.sources import read_list

TOOL = Path(__file__).resolve().parents[3] / "tools" / "check_dataset.py"


def make_list(folder):
    for name in "abcdefgh":
        write_clip(folder / f"{name}.mp4", 12)
    rows = [row(f"{name}.mp4", num_frames=12) for name in "abcdefgh"]
    rows += [row("none.mp4", num_frames=12, cap=None), row("short.mp4", num_frames=3)]
    return rows


def test_a_good_list_is_described(tmp_path):
    data = write_list(tmp_path, make_list(tmp_path))
    found = check_list(data_config(data), global_batch_size=2, samples=5)
    assert not found.faults and len({one.path for one in found.decoded}) == 5
    assert (found.epoch_samples, found.dropped_fraction) == (8, 0.2)
    text = "\n".join(found.lines())
    assert "8 of 10 rows are used" in text and "dropped by rule too_short 1" in text and "no_cap 1" in text
    assert "an epoch has 8 samples, 4 steps of 2; 0 clips are left out" in text
    assert "5 of 5 samples were decoded" in text
    report = json.loads(json.dumps(found.report()))
    assert report["shapes"] == {"9x32x64": 8} and report["epoch_steps"] == 4
    draw_shapes(found.result, tmp_path / "shapes.png")
    with Image.open(tmp_path / "shapes.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_the_exit_code_says_whether_a_run_can_start(tmp_path, warm_python):
    def run_tool(config: Path, *flags):
        command = [str(warm_python), str(TOOL), "--mm-data", str(config), *map(str, flags)]
        return subprocess.run(command, capture_output=True, text=True)

    rows = make_list(tmp_path)
    (tmp_path / "c.mp4").write_bytes(b"")
    data = write_list(tmp_path, rows)
    steps = [{"trans_type": "ToTensorVideo"}, {"trans_type": "CenterCropResizeVideo", "param": {"size": [32, 64]}}]
    sizes = {"num_frames": 9, "min_num_frames": 9, "max_height": 32, "max_width": 64, "min_hxw": 1}
    tokenizer = {"from_pretrained": "no/such/folder"}
    content = {
        "dataset_param": {
            "basic_parameters": {"data_path": str(data)},
            "preprocess_parameters": {**sizes, "train_pipeline": {"video": steps}},
            "tokenizer_config": tokenizer,
        },
        "dataloader_param": {},
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps(content))
    bad = run_tool(config, "--output", tmp_path / "out")
    assert bad.returncode == 1 and "7 of 8 samples were decoded" in bad.stdout, bad.stdout + bad.stderr
    assert f"bad sample: {tmp_path}/c.mp4: cannot be decoded" in bad.stdout
    assert (tmp_path / "out" / "shapes.png").exists()
    assert len(json.loads((tmp_path / "out" / "check.json").read_text())["decoded"]) == 8
    nothing = run_tool(config, "--global-batch-size", 9)
    assert nothing.returncode == 1 and nothing.stderr.startswith("error: ") and "rare_shape" in nothing.stderr
    write_clip(tmp_path / "c.mp4", 12)
    assert run_tool(config).returncode == 0
    assert run_tool(config, "--max-dropped-fraction", 0.1).returncode == 1


def test_rows_are_compared_with_their_files_and_shown(tmp_path):
    for name in "abcde":
        write_clip(tmp_path / f"{name}.mp4", 12)
    rows = [
        row("a.mp4", num_frames=12),
        row("b.mp4", height=128, width=64, num_frames=12),
        row("c.mp4", num_frames=40, cut=[20, 40]),  # all of it is behind the file's end, whatever crop is drawn
    ]
    rows += [row("d.mp4", num_frames=12, fps=30), row("e.mp4", num_frames=12, cap="<br>A <b>Cat</b> sleeps")]
    settings = {"train_fps": 24, "min_h_div_w_ratio": 0.1, "max_h_div_w_ratio": 10}
    found = check_list(data_config(write_list(tmp_path, rows), settings), global_batch_size=1, samples=5, processes=1)
    said = {Path(one.path).name: one.look.differences for one in found.different}
    assert said["b.mp4"] == ("its row says 128x64 (height x width), the file is shown at 64x128: transposed",)
    assert said["d.mp4"] == ("its row says 30 fps, the file has 24",)
    assert sorted(said) == ["b.mp4", "d.mp4"] and [Path(one.path).name for one in found.faults] == ["c.mp4"]
    assert "data: " + str(tmp_path / "b.mp4") in "\n".join(found.lines())
    found.draw(tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 300 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_checksums_are_written_and_compared(tmp_path):
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", 12)
    rows = read_list(write_list(tmp_path, [row("a.mp4", num_frames=12), row("b.mp4", num_frames=12)]))
    first = checksums.compare(rows)
    assert (first.verified, first.wrong) == (0, ())
    checksums.write_list(rows, first, tmp_path / "with.jsonl")
    again = read_list(tmp_path / "with.jsonl")
    assert [one.checksum for one in again] == [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.mp4", "b.mp4")
    ]
    assert checksums.compare(again).verified == 2
    data = bytearray((tmp_path / "b.mp4").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b.mp4").write_bytes(data)
    (wrong,) = checksums.compare(again).wrong
    assert wrong.startswith(f"{tmp_path / 'b.mp4'}: is not the file it was")
