"""The quickstart's judge cannot flatter: right on the set's clips, at chance on others' prompts, silent on nothing."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

import score  # noqa: E402
from clips import (  # noqa: E402
    COLOURS,
    DIRECTIONS,
    FRAMES,
    SHAPES,
    SIZE,
    Scene,
    draw,
    read_caption,
    scenes,
    write_clips,
)
from measure import Answer, measure  # noqa: E402

EVERY = scenes(held_out=False) + scenes(held_out=True)


@pytest.fixture(scope="module")
def judged():
    """Each scene of the grammar, drawn, with what the judge sees."""
    rng = random.Random(1)
    return [(scene, measure(draw(scene, rng))) for scene in EVERY]


def test_the_judge_is_right_on_every_scene_of_the_grammar(judged):
    assert len(judged) == 6 * 3 * 4 * 2
    assert set(score.score(judged).values()) == {100.0}


def test_shuffled_prompts_score_chance(judged):
    found = score.chance(judged, times=30)
    for name, ways in (("colour", COLOURS), ("direction", DIRECTIONS), ("shape", SHAPES)):
        assert found[name] == pytest.approx(100 / len(ways), abs=4)


def test_a_codec_and_noise_do_not_confuse_it(judged, tmp_path):
    data_list = write_clips(tmp_path, 24, seed=3)
    rng = np.random.default_rng(0)
    for path, scene in score.read_clips(data_list):
        frames = score.read_video(path)
        assert frames.shape == (FRAMES, SIZE, SIZE, 3)
        noisy = np.clip(frames + rng.normal(0, 12, frames.shape), 0, 255).astype(np.uint8)
        for video in (frames, noisy):
            seen = measure(video)
            assert (seen.colour, seen.direction, seen.shape) == (scene.colour, scene.direction, scene.shape)


def nothing():
    rng = np.random.default_rng(0)
    shape = (FRAMES, SIZE, SIZE, 3)
    yield "noise", rng.integers(0, 256, shape, dtype=np.uint8)
    yield "flat", np.full(shape, 110, dtype=np.uint8)
    stripes = np.full(shape, 20, dtype=np.uint8)
    stripes[:, ::4] = (225, 40, 40)
    yield "stripes", stripes


@pytest.mark.parametrize(("name", "video"), nothing(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_video_without_an_object_answers_nothing(name, video):
    seen = measure(video)
    assert (seen.colour, seen.shape, seen.direction) == (None, None, None)


def test_an_object_that_stands_still_or_jumps_has_no_direction():
    clip = draw(Scene("red", "circle", "right", "dark"), random.Random(0))
    assert measure(np.repeat(clip[8:9], FRAMES, axis=0)).direction is None
    order = np.random.default_rng(0).permutation(FRAMES)
    assert measure(clip[order]).direction is None
    assert measure(clip[::-1]).direction == "left"


def test_held_out_scenes_are_spread_evenly_and_never_written(tmp_path):
    held_out = scenes(held_out=True)
    assert len(held_out) == 24 and not set(held_out) & set(scenes(held_out=False))
    for attribute, ways in (("colour", COLOURS), ("shape", SHAPES), ("direction", DIRECTIONS)):
        counts = [sum(getattr(scene, attribute) == value for scene in held_out) for value in ways]
        assert len(set(counts)) == 1
    written = {scene for _, scene in score.read_clips(write_clips(tmp_path, 130))}
    assert written == set(scenes(held_out=False))


def test_captions_are_read_back_and_others_refused():
    assert [read_caption(scene.caption) for scene in EVERY] == EVERY
    with pytest.raises(ValueError, match="grammar"):
        read_caption("a red circle")


def test_seen_and_unseen_prompts_are_scored_apart_and_an_unclear_video_is_wrong():
    seen, unseen = scenes(held_out=False)[0], scenes(held_out=True)[0]
    right = Answer(unseen.colour, unseen.shape, unseen.direction, unseen.background)
    found = score.score([(seen, Answer()), (unseen, right)])
    assert found["colour"] == found["direction"] == found["shape"] == 0.0
    assert found["unseen colour"] == found["unseen direction"] == found["unseen shape"] == 100.0


def test_a_prompt_without_a_video_is_an_error(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{EVERY[0].caption}\n")
    with pytest.raises(ValueError, match="no video of 1 of 1"):
        score.read_samples(tmp_path, prompts)


def test_mindspeed_mm_evaluate_gets_the_same_answers():
    scene, other = EVERY[0], EVERY[-1]
    frames = draw(scene, random.Random(0))
    group = "unseen " if scene.held_out else ""
    assert score.judge(frames, scene.caption) == {group + question: 1.0 for question in score.QUESTIONS}
    assert 0.0 in score.judge(frames, other.caption).values()
    assert score.judge(frames, "a dog") == {}
