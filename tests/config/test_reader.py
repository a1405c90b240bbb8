"""JSON with comments -> nodes with places -> dataclasses."""

import dataclasses

import pytest

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import Node, Notes, build, node_from_python, option, read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    kind: str = option("a", choices=("a", "bee"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    ratio: float = 1.0
    sizes: tuple[int, ...] = ()
    pair: tuple[int, int] | None = None
    inner: Inner = Inner()
    right: bool = option(False, aliases=("rihgt",))

    ACCEPTED = {"old": "it was never read"}

    def problems(self):
        if self.ratio > 5:
            yield "ratio", f"{self.ratio} is more than 5"


def parse(tmp_path, text: str) -> Node:
    path = tmp_path / "some.json"
    path.write_text(text)
    return read_json(path)


def test_comments_and_trailing_commas_are_accepted(tmp_path):
    text = """{ # a comment with "quotes" and {
        "name": "x # not a comment", // another
        /* and
           a third */
        "sizes": [1, 2,], "ratio": 2,
    }"""
    outer = build(Outer, parse(tmp_path, text))
    assert outer == Outer(name="x # not a comment", sizes=(1, 2), ratio=2.0)


def test_numbers_keep_their_kind_and_strings_their_escapes(tmp_path):
    assert parse(tmp_path, r'[1, -2, 1e-06, .5, 3., "a\"bé", true, null]').plain() == [
        1,
        -2,
        1e-6,
        0.5,
        3.0,
        'a"bé',
        True,
        None,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"nmae": "x"}', "some.json:2 nmae: unknown key; did you mean 'name'?"),
        ('{"name": "x",\n\n"inner": {"widht": 1}}', "some.json:3 inner.widht: unknown key; did you mean 'width'?"),
        ('{"name": 3}', "some.json:1 name: expected a string, found 3"),
        ('{"name": "x",\n"sizes": [1, "2"]}', 'some.json:2 sizes[1]: expected a whole number, found "2"'),
        ('{"name": "x", "sizes": 1}', "some.json:1 sizes: expected a list, found 1"),
        ('{"name": "x", "pair": [1, 2, 3]}', "some.json:1 pair: expected 2 values, found 3"),
        ('{"name": "x", "right": 1}', "some.json:1 right: expected true or false, found 1"),
        ('{"name": "x", "ratio": true}', "some.json:1 ratio: expected a number, found true"),
        ('{"name": "x", "inner": {"kind": "be"}}', "inner.kind: 'be' is not one of 'a', 'bee'; did you mean 'bee'?"),
        ('{"name": "x",\n"ratio": 6}', "some.json:2 ratio: 6.0 is more than 5"),
        ('{"ratio": 1}', "some.json:1 (top level): key 'name' is missing"),
        ('{"name": "x", "right": true, "rihgt": true}', "rihgt: also given as 'right'"),
        ('{"name": "x",\n"name": "y"}', "some.json:2 name: given twice (first in line 1)"),
        ('{"name" "x"}', "some.json:1 name: expected ':', found '\"x\"'"),
        ('{"name": "x"', "some.json:1 (top level): expected ',', found 'end of file'"),
        ('{"name": "x"} 3', "some.json:1 unexpected '3' after the end"),
        ("{\n'name': 1}", 'some.json:2 (top level): expected a "key", found "\'name\'"'),
        ("[]", "(top level): expected an object, found a list"),
    ],
)
def test_mistakes_name_the_file_the_line_and_the_key(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        build(Outer, parse(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_alias_and_a_key_without_effect(tmp_path):
    notes = Notes()
    outer = build(Outer, parse(tmp_path, '{"name": "x", "rihgt": true, "old": 1}'), notes)
    assert outer.right
    assert notes.unused == {"old": "it was never read"}
    assert notes.lines() == ["keys without effect here: old"]


def test_a_dict_from_python_is_checked_like_a_file():
    with pytest.raises(ConfigError, match="block.inner.width: expected a whole number"):
        build(Outer, node_from_python({"name": "x", "inner": {"width": 0.5}}, "block"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing.json: no such file"):
        read_json(tmp_path / "nothing.json")
