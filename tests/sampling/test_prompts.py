"""Prompt templates, against the original's strings, and what is said of prompts that cleaning empties."""

import json

import pytest

from mindspeed_mm.sampling.prompts import compose, warning


def one_line(text: str) -> str:
    """The original's templates hold line breaks and blanks that the cleaner collapses; ours are one line."""
    return " ".join(text.split())


def test_templates_and_cleaning(golden):
    cases = json.loads(golden("infer/inference.json").read_text())["templates"]
    assert len(cases) == 12
    for case in cases:
        texts = [case["prompt"]] if isinstance(case["prompt"], str) else case["prompt"]
        negative = case["negative_prompt"] or ""
        glued = case["version"] == "v1.2" and negative  # "blurryextra negative words": mended
        for index, text in enumerate(texts):
            raw = compose(text, case["version"], negative, preprocess=False)
            clean = compose(text, case["version"], negative)
            assert raw.positive == one_line(case["positive_out"][index])
            assert clean.positive == case["positive_clean"][index]
            if glued:
                assert clean.negative.endswith("username, blurry, extra negative words")
            else:
                assert raw.negative == one_line(case["negative_out"][index])
                assert clean.negative == case["negative_clean"][index]


def test_without_template_or_cleaning():
    assert compose("  A Cat ", "v1.5", template=False, clean=False).positive == "a cat"
    assert compose("A {braces} Cat", "v1.5", clean=False).positive == "high quality, a {braces} cat"
    assert compose("A Cat", "v1.5", template=False, preprocess=False).positive == "A Cat"


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "一只猫在草地上奔跑",
            "cleaning reduces the prompt '一只猫在草地上奔跑' to '', which is sampled instead: cleaning removes Chinese",
        ),
        ("一只猫在草地上奔跑 hd", "cleaning reduces the prompt '一只猫在草地上奔跑 hd' to 'hd'"),
        ("<br>", "cleaning reduces the prompt '<br>' to ''"),
        ("https://example.com/cat", "cleaning reduces the prompt"),
        ("  ", "the prompt is empty"),
    ],
)
def test_a_prompt_that_cleaning_empties_is_named(text, said):
    assert said in warning(text)


def test_a_prompt_of_which_something_is_left_is_not_named():
    assert warning("a cat") is None and warning("cat") is None
    assert warning("一只猫", keep_cjk=True) is None and warning("一只猫", clean=False) is None


def test_chinese_stays_in_a_prompt_if_it_is_asked_for():
    assert compose("一只猫 (HD)", "v1.5").positive == "high quality, hd"
    assert compose("一只猫 (HD)", "v1.5", "模糊", keep_cjk=True).positive == "high quality, 一只猫 hd"
    assert compose("", "v1.5", "模糊", keep_cjk=True).negative.endswith("underexposed. 模糊")
