"""Files of prompts: every format by one rule."""

import json
import logging

import pytest

from mindspeed_mm.config.sample import LONGEST_TEXT, PromptConfig
from mindspeed_mm.errors import ConfigError, DataError, MMError
from mindspeed_mm.sampling.prompt_files import read_prompts


def prompts_of(prompt, limit: int = 1000) -> list[str]:
    return [line.prompt for line in read_prompts(str(prompt), limit)]


def write(path, content, encoding="utf-8"):
    path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode(encoding))
    return path


FULL = {"prompt": "a dog, running", "negative": "blurry", "seed": 7, "size": [9, 64, 32], "guidance": 2, "steps": 3}
FORMS = {
    "prompts.jsonl": f'{{"prompt": "a cat"}}\n{json.dumps(FULL)}\n',
    "PROMPTS.JSONL": f'"a cat"\n{json.dumps(FULL)}',
    "prompts.json": json.dumps(["a cat", FULL]),
    "Prompts.Json": json.dumps({"prompts": [{"prompt": "a cat"}, FULL]}),
    "prompts.csv": 'prompt,negative,seed,size,guidance,steps\na cat,,,,,\n"a dog, running",blurry,7,"[9, 64, 32]",2,3\n',
}


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_prompts(tmp_path, name, bom):
    plain, full = read_prompts(str(write(tmp_path / name, bom + FORMS[name])))
    assert plain.prompt == "a cat" and plain.seed is None
    assert full == PromptConfig(
        prompt="a dog, running",
        negative_prompt="blurry",
        seed=7,
        input_size=(9, 64, 32),
        guidance_scale=2.0,
        num_inference_steps=3,
    )


@pytest.mark.parametrize("name", ["p.txt", "P.TXT", "p.jsonl"])
def test_comments_and_blank_lines_are_no_prompts_and_are_counted(tmp_path, name, caplog):
    lines = ["\ufeff# a comment", "", "a cat", "// another", "  ", "a dog", ""]
    if name.endswith("jsonl"):
        lines = [json.dumps({"prompt": line}) if line.startswith("a ") else line for line in lines]
    with caplog.at_level(logging.INFO, "mindspeed_mm"):
        assert prompts_of(write(tmp_path / name, "\r\n".join(lines))) == ["a cat", "a dog"]
    assert "2 prompts; 2 comments and 3 blank lines left out" in caplog.text


def test_only_a_line_feed_ends_a_line(tmp_path):
    for separator in "\u2028\u2029\x85\x0b\x0c\x1c":
        assert prompts_of(write(tmp_path / "p.txt", f"a{separator}b\nc")) == [f"a{separator}b", "c"]
    line = json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False)
    assert prompts_of(write(tmp_path / "p.jsonl", f"{line}\n{line}\n")) == ["a\u2028b"] * 2


def test_more_prompts_than_the_limit_are_refused_by_its_name(tmp_path):
    file = write(tmp_path / "p.txt", "x\n" * 1001)
    with pytest.raises(DataError, match=r"p.txt: holds 1001 prompts, more than --max-prompts 1000"):
        prompts_of(file)
    assert len(prompts_of(file, 1001)) == 1001


@pytest.mark.parametrize(
    "name", ["p.txt", "P.TXT", "p.jsonl", "p.json", "p.JSON", "p.csv", "p.yaml", "some/p.md", "my prompts/p.txt"]
)
def test_a_missing_file_is_no_prompt(name):
    with pytest.raises(DataError, match=r": no such file of prompts \(they end in .txt, .jsonl, .json, .csv\)"):
        read_prompts(name)


@pytest.mark.parametrize(
    "text",
    ["a cat", "cat", "a cat named p.txt", "A film by A.B.", "cat.", "v1.5", "一只猫。", "a\nb.txt", "", "x " * 3000],
)
def test_a_text_is_itself(text):
    assert prompts_of(text) == [text]


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name in ("p.pt", "p.docx", "prompts"):
        with pytest.raises(DataError, match=f"{name}: is a file, but prompts are read from .txt"):
            read_prompts(str(write(tmp_path / name, "x")))


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "p.jsonl",
            '{"prompt": "a cat"}\n{"prompt": "a dog", "sead": 7}\n',
            "p.jsonl:2 sead: unknown key; did you mean 'seed'",
        ),
        ("p.jsonl", '{"prompt": "a cat"}\n{"seed": 7}\n', "p.jsonl:2 (top level): key 'prompt' is missing"),
        ("p.jsonl", "7", "p.jsonl:1 "),
        ("p.jsonl", '{"prompt": "a \\ud83d cat"}', "p.jsonl:1 "),
        ("p.json", '{"texts": ["a"]}', 'expected a list of prompts, or {"prompts": [...]}'),
        ("p.json", "[1]", "p.json:1 "),
        ("p.json", "[", "p.json:1 "),
        ("p.json", '["a", {"prompt": 3}]', "prompt: expected a string"),
        (
            "p.csv",
            "text2,seed\na,1\n",
            "p.csv:1: the first line must name the columns, 'prompt' among them; found ['text2', 'seed']",
        ),
        ("p.csv", "prompt,seed\na,x\n", "p.csv:2 "),
        ("p.csv", "prompt,seed\na\n", "p.csv:2: expected 2 cells"),
        ("p.csv", "prompt,seed\na,1,2\n", "p.csv:2: expected 2 cells"),
        ("p.csv", 'prompt\n"a\n', "p.csv:2: not valid CSV"),
        ("p.csv", "", "p.csv:1: the first line must name the columns"),
        ("p.txt", "", "p.txt: holds no prompt"),
        ("p.txt", "# only a comment\n\n", "p.txt: holds no prompt"),
        ("p.json", "[]", "p.json: holds no prompt"),
        ("p.csv", "prompt\n", "p.csv: holds no prompt"),
        (
            "p.txt",
            "a\n" + "x" * (LONGEST_TEXT + 1),
            f"p.txt:2 prompt: {LONGEST_TEXT + 1} characters; at most {LONGEST_TEXT}",
        ),
        ("p.jsonl", '{"prompt": "a", "seed": 1e400}', "p.jsonl:1 "),
        ("p.jsonl", '{"prompt": ' + "[" * 5000, "p.jsonl:1 "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_place(tmp_path, name, content, message):
    file = str(write(tmp_path / name, content))
    with pytest.raises(MMError) as caught:
        read_prompts(file)
    assert message in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith(file)


def test_other_encodings_are_named(tmp_path):
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_prompts(str(write(tmp_path / "p.txt", "a cat", "utf-16")))


def test_half_a_surrogate_pair_of_the_command_line_is_refused():
    with pytest.raises(ConfigError, match="prompt: holds half a surrogate pair"):
        read_prompts("a \udcff cat")


def test_a_table_of_captions_of_another_tool(tmp_path):
    assert prompts_of(write(tmp_path / "p.csv", "caption\na cat\n\na dog\n")) == ["a cat", "a dog"]
