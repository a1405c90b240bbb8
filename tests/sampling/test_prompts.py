"""Prompt templates and files, against the original's strings."""

import json

import pytest

from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.errors import ConfigError, DataError
from mindspeed_mm.sampling.prompts import compose, read_prompts


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


def prompts_of(prompt) -> list[str]:
    return [line.prompt for line in read_prompts(str(prompt))]


def test_a_file_gives_its_lines_and_a_text_itself(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(" a cat \n\na dog\n")
    assert prompts_of(file) == ["a cat", "", "a dog"]
    assert prompts_of("not a file: a cat") == ["not a file: a cat"]
    assert prompts_of("a cat " * 500) == ["a cat " * 500]  # longer than a file name may be
    file.write_text("x\n" * 1200)
    assert len(prompts_of(file)) == 1000


def test_json_lines_carry_settings_of_their_own(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '# a comment\n{"prompt": "a cat"}\n\n'
        '{"prompt": "a dog", "negative": "blurry", "seed": 7, "size": [9, 64, 32], "guidance": 2, "steps": 3}\n'
    )
    plain, full = read_prompts(str(file))
    assert plain == PromptConfig(prompt="a cat")
    assert (full.negative_prompt, full.seed, full.input_size) == ("blurry", 7, (9, 64, 32))
    assert (full.guidance_scale, full.num_inference_steps) == (2.0, 3)


def test_a_wrong_line_is_named(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a cat"}\n{"prompt": "a dog", "sead": 7}\n')
    with pytest.raises(ConfigError, match=r"prompts.jsonl:2 sead: unknown key; did you mean 'seed'"):
        read_prompts(str(file))
    file.write_text('{"prompt": "a cat"}\n{"seed": 7}\n')
    with pytest.raises(ConfigError, match=r"prompts.jsonl:2 \(top level\): key 'prompt' is missing"):
        read_prompts(str(file))


def test_a_prompt_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(DataError, match=r"sora.txt: no such file of prompts"):
        read_prompts(str(tmp_path / "sora.txt"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="empty.txt: holds no prompt"):
        read_prompts(str(tmp_path / "empty.txt"))
