"""Whatever a config file holds ends in a config or in one line that names the file; nothing becomes something else."""

import json
import random

import pytest
from config_files import TRAIN_FLAGS, write_all

from mindspeed_mm.config import autoencoder, resolve
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import read_json, read_text
from mindspeed_mm.schema.text import MAX_BYTES

VALUES = (
    *(
        "1e999",
        "-1e999",
        "1e-999",
        "nan",
        "NaN",
        "Infinity",
        "-0",
        "0",
        "-1",
        "2147483648",
        "9" * 25,
        "1.5",
        "1e5",
        "0x10",
    ),
    *(
        "true",
        "null",
        "[]",
        "{}",
        '"x"',
        '""',
        "[1,[2]]",
        '{"a":1}',
        "1_0",
        "٣",
        "[1e308]",
        "[[[[]]]]",
        "[null]",
        "/*",
        "#",
    ),
    *(
        r'"C:\models"',
        r'"\ud800"',
        r'"a\u0000b"',
        r'"a\nb"',
        '"' + "y" * 5000 + '"',
        '"\u2028"',
        "\ufeff",
        "-",
        ".",
        "1e",
    ),
)
CHARACTERS = '\0\t\n\r"\\{}[],:\x7f\xa0\u2028\ufeff\U0001f600é0'


def mutated(text: str, rng: random.Random) -> str:
    """One value replaced, or characters cut out, put in or nested."""
    start = rng.randrange(len(text))
    kind = rng.randrange(6)
    if kind < 2:
        colons = [place for place, character in enumerate(text) if character == ":"]
        start = rng.choice(colons) + 1
        ends = [place for place in (text.find(mark, start) for mark in ",}]\n") if place >= 0]
        return text[:start] + rng.choice(VALUES) + text[min(ends, default=len(text)) :]
    if kind == 2:
        return text[:start] + rng.choice(VALUES) + text[start:]
    if kind == 3:
        return text[:start] + text[start + rng.randrange(1, 40) :]
    if kind == 4:
        return text[:start] + rng.choice(CHARACTERS) + text[start + 1 :]
    return text[:start] + rng.choice("[{") * rng.choice((5, 70, 20_000)) + text[start:]


def test_mutated_configs_end_in_one_line(tmp_path):
    write_all(tmp_path)
    contents = {name: (tmp_path / f"{name}.json").read_text() for name in ("model", "data", "sample")}
    files = ["--mm-model", str(tmp_path / "model.json"), "--mm-data", str(tmp_path / "data.json")]
    rng, refused = random.Random(0), 0
    for number in range(300):
        name = ("model", "data", "sample")[number % 3]
        (tmp_path / f"{name}.json").write_text(mutated(contents[name], rng), encoding="utf-8", errors="surrogatepass")
        try:
            if name == "sample":
                resolve.sample_config(["--mm-model", str(tmp_path / "sample.json")], 1)
            elif name == "model" or number % 2:
                resolve.run_config([*files, *TRAIN_FLAGS], 1)
            else:
                autoencoder.training_config([*files, "--train-iters", "2"], 1)
        except ConfigError as error:
            refused += 1
            assert f"{name}.json" in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        (tmp_path / f"{name}.json").write_text(contents[name])
    assert refused > 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1e999}', "some.json:1 a: 1e999: is beyond the largest number of 64 bits"),
        ('{"a": 1e-999}', "a: 1e-999: is closer to 0 than any number of 64 bits"),
        ('{"a": 99999999999999999999}', "does not fit in 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "does not fit in 64 bits"),
        ('{"a": NaN}', "a: NaN: must be finite"),
        ('{"a": -Infinity}', "must be finite"),
        ('{"a": ١٢}', "unexpected text"),
        ('{"a": 1_0}', "a: 1_0: expected a number"),
        ('{"a": 010}', "a: 010: expected a whole number"),
        ('{"a": True}', "a: unexpected text 'True'; write true"),
        ('{"a": wrong}', "strings stand in double quotes"),
        ('{\n"a": "C:\\models"}', r"some.json:2 a: '\\m"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ('{"a": "\\u0000"}', "NUL"),
        ('{"a": "b\nc"}', "does not end in its line"),
        ('{"a": "b', "does not end in its line"),
        ('{"a": /* 1}', "a comment begins here"),
        ("[" * 200_000, "more than 64 objects and lists inside each other"),
        ('{"a":' * 70, "more than 64"),
        ("", "expected a value, found 'end of file'"),
        ('{"x\\ny": 1}\x00', "\\x00"),
    ],
)
def test_nothing_written_becomes_something_else(tmp_path, text, message):
    (tmp_path / "some.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_json(tmp_path / "some.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_and_pairs_of_surrogates_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + rb'{"a": "\ud83d\ude00 \\ \/", "b": 0.1e-3}')
    assert read_json(tmp_path / "a.json").plain() == {"a": "\U0001f600 \\ /", "b": 1e-4}


def test_files_that_are_no_configs_are_refused_by_size_and_coding(tmp_path):
    big = tmp_path / "big.json"
    big.write_bytes(b'"' + b"a" * MAX_BYTES + b'"')
    with pytest.raises(ConfigError, match=f"has more than {MAX_BYTES} bytes"):
        read_json(big)
    with pytest.raises(ConfigError, match="has more than"):
        read_json("/dev/zero")
    (tmp_path / "wide.json").write_text(json.dumps({"a": "é"}), encoding="utf-16")
    with pytest.raises(ConfigError, match="wide.json:1 is not UTF-8 text"):
        read_json(tmp_path / "wide.json")
    for path in (tmp_path, tmp_path / ("x" * 300), "a\0b", tmp_path / "none.json"):
        with pytest.raises(ConfigError, match="cannot be read|no such file"):
            read_text(path)
