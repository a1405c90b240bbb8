"""What of a clip the denoiser is shown: kinds, ratios, and the files that a sample starts from."""

import collections
import dataclasses
import random

import pytest

from mindspeed_mm.config.image_conditions import KINDS, ImageConditions
from mindspeed_mm.config.image_inputs import FrameInput, ImageInputs
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import build, check, node_from_python

CLIP = (17, 32, 48)
DRAWS = 200


def drawn(kind, extent=CLIP):
    config = ImageConditions(**{kind: 1.0})
    return [config.draw(random.Random(seed), extent, 8) for seed in range(DRAWS)]


def test_the_ratios_are_those_of_the_table():
    assert [field.name for field in dataclasses.fields(ImageConditions)] == list(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_each_kind_shows_something_and_leaves_something(kind):
    for known in drawn(kind):
        assert known.frames and all(0 <= frame < CLIP[0] for frame in known.frames)
        assert len(set(known.frames)) < CLIP[0] or known.hidden is not None


def test_kinds_show_what_their_names_say():
    assert {known.frames for known in drawn("first")} == {(0,)}
    assert {known.frames for known in drawn("first_last")} == {(0, 16)}
    assert {known.frames for known in drawn("extend")} == {tuple(range(9))}  # whole latents
    assert {known.frames for known in drawn("extend", (33, 32, 48))} == {tuple(range(count)) for count in (9, 17, 25)}
    assert {known.frames for known in drawn("interpolate")} == {tuple(range(0, 17, every)) for every in (2, 4, 8, 16)}
    assert {len(known.frames) for known in drawn("frames")} == set(range(1, 9))
    for known in drawn("inpaint"):
        top, left, height, width = known.hidden
        assert known.frames == tuple(range(17)) and top + height <= 32 and left + width <= 48
        assert 8 <= height <= 24 and 12 <= width <= 36


def test_a_clip_of_one_frame_is_never_wholly_known():
    config = ImageConditions(first=1.0, inpaint=1.0, frames=1.0)
    found = [config.draw(random.Random(seed), (1, 32, 32), 8) for seed in range(DRAWS)]
    assert all(known.hidden is not None for known in found)
    assert ImageConditions(first=1.0).draw(random.Random(0), (1, 32, 32), 8).frames == ()


def test_two_latents_leave_one_to_make():
    assert {known.frames for known in drawn("extend", (9, 32, 32))} == {(0,)}


def test_ratios_are_kept():
    config = ImageConditions(text=2.0, first=3.0, extend=1.0)
    rng = random.Random(1)
    alone = sum(config.shows_text_alone(rng) for _ in range(3000)) / 3000
    kinds = collections.Counter(len(config.draw(rng, CLIP, 8).frames) for _ in range(3000))
    assert alone == pytest.approx(2 / 6, abs=0.03) and kinds[1] / 3000 == pytest.approx(3 / 4, abs=0.03)


def test_ratios_that_are_all_zero_are_refused():
    with pytest.raises(ConfigError, match="every ratio is 0"):
        build(ImageConditions, node_from_python({"first": 0}, "image_conditions"))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"image": "a.png", "extend": "b.mp4"}, "both give the first frame"),
        ({"extend_frames": 9}, "only with extend"),
        ({"inpaint": "a.mp4"}, "give both"),
        ({"inpaint": "a.mp4", "mask": "m.png", "image": "b.png"}, "gives all frames"),
        ({"frames": (FrameInput(at=3, image="a"), FrameInput(at=3, image="b"))}, "a frame is given twice"),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(given, reason):
    with pytest.raises(ConfigError, match=reason):
        check(ImageInputs(**given))
