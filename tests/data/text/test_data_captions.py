"""Caption texts against the original's."""

import dataclasses
import json
import random

import pytest
from data_helpers import data_config

from mindspeed_mm.data.text.captions import (
    AESTHETIC_SENTENCES,
    add_aesthetic,
    check_triggers,
    choose_caption,
    drop_caption,
    shuffle_tags,
    with_trigger,
)
from mindspeed_mm.data.text.cleaning import clean, preprocess
from mindspeed_mm.errors import ConfigError


@pytest.fixture(scope="module")
def cleaning(golden):
    return json.loads(golden("data/text_cleaning.json").read_text())


def test_every_golden_caption_is_cleaned_the_same(cleaning):
    assert len(cleaning["cases"]) == 35
    for case in cleaning["cases"]:
        caption = float("nan") if case["caption"] == "NaN(float)" else case["caption"]
        assert clean(caption) == case["cleaned_once"], case
        assert preprocess(caption) == case["cleaned"], case


def test_every_prompt_of_sora_txt_is_cleaned_the_same(cleaning):
    assert len(cleaning["sora_txt"]) == 24
    for case in cleaning["sora_txt"]:
        assert preprocess(case["prompt"]) == case["cleaned"]


def test_without_cleaning_texts_are_lower_case_and_stripped(cleaning):
    texts = [case for case in cleaning["cases"] if case["use_clean_caption_false"] != "AttributeError"]
    assert len(texts) == 33
    for case in texts:
        assert preprocess(case["caption"], use_clean_caption=False) == case["use_clean_caption_false"]


@pytest.mark.parametrize("text", ["<![cdata[", "<!--", "a < b > c", "&#xfffffff;", "<?", "notes.html"])
def test_odd_texts_are_cleaned_without_complaint(text, recwarn):
    assert isinstance(preprocess(text), str)
    assert not recwarn.list


def test_aesthetic_sentences_equal_the_golden_ones(golden):
    expected = json.loads(golden("data/aesthetic_notices.json").read_text())
    for kind, level in AESTHETIC_SENTENCES:
        assert list(AESTHETIC_SENTENCES[kind, level]) == expected[f"{kind}_{level}"]
    assert len(expected["samples"]) == 28
    for case in expected["samples"]:
        rng = random.Random(case["python_random_seed"])
        assert add_aesthetic("CAP", case["aes"], case["kind"], rng) == case["out"], case


def test_without_a_score_there_is_no_sentence_and_no_draw():
    rng = random.Random(0)
    assert add_aesthetic("CAP", None, "video", rng) == "CAP"
    assert rng.random() == random.Random(0).random()


def test_a_single_caption_costs_a_draw_too():
    rng, same = random.Random(0), random.Random(0)
    same.choice(["only"])
    assert choose_caption(("only",), rng) == "only"
    assert rng.random() == same.random()


def test_captions_are_dropped_with_the_given_probability():
    rng = random.Random(0)
    dropped = sum(drop_caption("text", 0.1, rng) == "" for _ in range(2000))
    assert 150 < dropped < 250
    assert all(drop_caption("text", 0.0, rng) == "text" for _ in range(100))


def test_shuffled_tags_are_the_same_tags_with_the_first_in_front():
    caption = "a red ball, rolling,  on grass, at noon"
    seen = {shuffle_tags(caption, 1, random.Random(seed)) for seed in range(60)}
    assert len(seen) == 6 and all(text.startswith("a red ball, ") for text in seen)
    assert {tuple(sorted(text.split(", "))) for text in seen} == {("a red ball", "at noon", "on grass", "rolling")}
    unused = random.Random(0)
    assert shuffle_tags("one, two", 1, unused) == "one, two" and unused.random() == random.Random(0).random()


def test_a_trigger_word_is_put_before_a_caption_that_does_not_hold_it():
    assert with_trigger("a ball", "ohwx") == "ohwx, a ball"
    assert with_trigger("An OHWX ball", "ohwx") == "An OHWX ball"
    assert with_trigger("johwx", "ohwx") == "ohwx, johwx"
    assert with_trigger("a ball", None) == with_trigger("a ball", "") == "a ball"


def test_a_trigger_word_that_cleaning_changes_is_refused():
    config = data_config("x").dataset_param
    check_triggers(["ohwx", "Sks style", "", None], config)
    with pytest.raises(ConfigError, match="trigger word 'zwx123': cleaning of captions and prompts makes '' of it"):
        check_triggers(["zwx123"], config)
    check_triggers(["zwx123"], dataclasses.replace(config, enable_text_preprocessing=False))
