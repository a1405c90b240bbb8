"""Figures of videos whose content is known, the judge, and VBench's layout."""

import json

import numpy as np
import pytest
import torch
from made_videos import FPS, SIZE, moving, write_folder

from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.evaluation import judge, measures, vbench
from mindspeed_mm.evaluation.samples import Video, find

CPU = torch.device("cpu")


def measured(frames: np.ndarray) -> dict[str, float]:
    return measures.of_video(Video(frames, FPS), CPU)


def test_speed_is_measured_in_the_units_that_are_said():
    for speed in (0.5, 1.5, 3):
        found = measured(moving(speed, frames=5))
        assert found["motion, fastest"] == pytest.approx(speed * FPS * 100 / SIZE, rel=0.15)
        share = 16 * 20 / SIZE**2  # of the picture that moves, and some pixels around it
        assert 1 < found["motion"] / (share * found["motion, fastest"]) < 2


def test_a_still_picture_is_consistent_and_noise_is_not():
    still, rng = measured(moving(0)), np.random.default_rng(0)
    assert still == pytest.approx({"frame consistency": 1, "flicker": 0, "motion": 0, "motion, fastest": 0}, abs=1e-3)
    noise = measured(rng.integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8))
    assert noise["frame consistency"] < 0.05 and noise["flicker"] == pytest.approx(100 / 3, rel=0.02)
    assert 0.5 < measured(moving(2))["frame consistency"] < 1
    assert measured(moving(1)[:1]) == {}


def test_long_videos_are_measured_in_parts():
    """As if they were measured at once."""
    frames = moving(0.5, frames=25)
    parts = [measured(frames[start : start + 2])["flicker"] for start in range(24)]
    assert measured(frames)["flicker"] == pytest.approx(np.mean(parts), rel=1e-5)


def test_prompts_come_from_records_or_from_a_file(tmp_path):
    videos = {f"a square, {speed}": moving(speed) for speed in (0, 1)}
    known = find(write_folder(tmp_path / "a", videos), None)
    assert [(one.name, one.prompt, one.seed) for one in known][1] == ("video_000001", "a square, 1", 8)
    plain = write_folder(tmp_path / "b", videos, records=False)
    assert [one.prompt for one in find(plain, None)] == [None, None]
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\ntwo\n")
    assert [one.prompt for one in find(plain, str(lines))] == ["one", "two"]
    lines.write_text("one\n")
    assert [one.prompt for one in find(plain, str(lines))] == ["one", "one"]
    lines.write_text("one\ntwo\nthree\n")
    with pytest.raises(ConfigError, match="3 prompts for 2 videos"):
        find(plain, str(lines))
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="holds no videos"):
        find(tmp_path / "c", None)


def test_a_damaged_video_is_named(tmp_path):
    folder = write_folder(tmp_path, {"a": moving(1)})
    (folder / "video_000000.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"video_000000\.mp4"):
        find(folder, None)[0].read()


# ------------------------------------------------------------------------------------------------------------ judge


def test_a_judge_of_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "beside.py").write_text("LIMIT = 100\n")
    (tmp_path / "mine.py").write_text(
        "from beside import LIMIT\ndef judge(frames, prompt):\n    return {'bright': frames.max() > LIMIT}\n"
    )
    found = judge.load(str(tmp_path / "mine.py") + ":judge")
    assert judge.ask(found, moving(1), "", "clip") == {"bright": 1.0}
    assert judge.load(str(tmp_path / "mine.py"))
    for text, reason in {
        f"{tmp_path}/mine.py:other": "has no function other",
        f"{tmp_path}/none.py": "no such file",
        "no_such_module:judge": "No module named",
    }.items():
        with pytest.raises(ConfigError, match=reason):
            judge.load(text)


@pytest.mark.parametrize("answer", [None, 3, {"a": "x"}, {"a": 1.5}, {"a": float("nan")}])
def test_answers_that_are_none_are_refused(answer):
    with pytest.raises(DataError, match="clip.mp4: the judge"):
        judge.ask(lambda frames, prompt: answer, moving(0), "", "clip.mp4")


def test_scores_are_percent_over_the_videos_that_were_asked():
    assert judge.scores([{"a": 1, "b": 0}, {"a": 0}, {}]) == {"a": 50, "b": 0, "all": 25}
    assert judge.scores([{}]) == {}
    orders = judge.shuffles(["a", "b", "c"], 3, 0)
    assert len(orders) == 3 and all(sorted(order) == ["a", "b", "c"] for order in orders)


# ----------------------------------------------------------------------------------------------------------- VBench


def test_vbench_finds_each_prompt_by_its_file_name(tmp_path):
    long, slash = "x" * 300, "left/right"
    folder = write_folder(tmp_path / "a", {"a cat": moving(0), long: moving(1), slash: moving(1)})
    samples = find(folder, None)
    info = json.loads(vbench.write([*samples, samples[0]], tmp_path / "vbench").read_text())
    cats = info[0]
    assert cats["prompt_en"] == "a cat" and "motion_smoothness" in cats["dimension"]
    names = [path.removeprefix(str(tmp_path / "vbench" / "videos") + "/") for path in cats["video_list"]]
    assert names == ["a cat-0.mp4", "a cat-1.mp4"]
    assert [entry["prompt_en"] for entry in info] == ["a cat", long, slash]
    prompts = json.loads((tmp_path / "vbench" / "prompts.json").read_text())
    assert prompts == {
        "a cat-0.mp4": "a cat",
        "a cat-1.mp4": "a cat",
        "video_000001-0.mp4": long,
        "video_000002-0.mp4": slash,
    }
    for name in prompts:
        assert (tmp_path / "vbench" / "videos" / name).stat().st_size > 0
    vbench.write(samples, tmp_path / "vbench")  # again
