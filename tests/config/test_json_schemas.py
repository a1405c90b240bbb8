"""The JSON Schemas take every published and shipped file, and refuse what the reader refuses of a single key."""

import copy
import json
import sys
from pathlib import Path

import config_files
import jsonschema
import mm_files
import pytest

from mindspeed_mm.config import json_schemas
from mindspeed_mm.config.kinds import KINDS, kind_of
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import build, check, node_from_python, read_json

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [*(ROOT / "examples" / "opensoraplan1.5").glob("*.json"), *(ROOT / "configs").rglob("*.json")]
SHIPPED += [ROOT / "examples" / "quickstart" / "autoencoder.json"]
WRONG = (None, True, -1, 0, 1.5, -1e39, 2**40, "surely_unknown", [], {}, [1])
VALIDATORS = {name: jsonschema.Draft202012Validator(json_schemas.schema(name)) for name in json_schemas.NAMES}


def contents() -> dict[str, dict]:
    """Files of every kind in both dialects, as plain values."""
    folder = Path("w")
    found = {
        str(path.relative_to(ROOT)): read_json(path).plain() for path in SHIPPED if path.name != "autoencoder.json"
    }
    for name, module in (("ours", config_files), ("MindSpeed-MM", mm_files)):
        found[f"{name} model"], found[f"{name} data"] = module.model_block(folder), module.data_block(folder)
        found[f"{name} sample"] = module.sample_block(folder)
    return found


FILES = contents()


def read(content) -> None:
    """As the programs read it, but for what is not about one file's keys."""
    node = node_from_python(content, "")
    kind = kind_of(node)
    build(kind.config, kind.ours(node))


@pytest.mark.parametrize("name", json_schemas.NAMES)
def test_a_schema_is_one(name):
    jsonschema.Draft202012Validator.check_schema(json_schemas.schema(name))


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_taken(name):
    kind = kind_of(node_from_python(FILES[name], ""))
    assert [error.message for error in VALIDATORS[kind.name].iter_errors(FILES[name])] == []


def places(value, path=()):
    """Paths of all keys, and of the first item of a list of plain values or all its objects."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = [(number, item) for number, item in enumerate(value) if number == 0 or isinstance(item, dict)]
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutations(content):
    """(what, content) with one key removed, added or of another value."""
    for path in places(content):
        broken = copy.deepcopy(content)
        block = broken
        for key in path[:-1]:
            block = block[key]
        value = block.pop(path[-1])
        yield f"{path} removed", copy.deepcopy(broken)
        block.insert(path[-1], value) if isinstance(block, list) else block.update({path[-1]: value})
        if isinstance(value, dict):
            block[path[-1]] = {**value, "surely_unknown": 1}
            yield f"{path} with another key", copy.deepcopy(broken)
        for wrong in WRONG:
            block[path[-1]] = wrong
            yield f"{path} = {wrong}", copy.deepcopy(broken)


@pytest.fixture
def without_rules_between_keys(monkeypatch):
    """The reader, less `problems`: rules that compare keys are not in a schema."""
    monkeypatch.setattr(sys.modules["mindspeed_mm.schema.build"], "_problems", lambda config: ())


# Of these the reader compares keys, or looks at the disk, outside of `problems`.
OF_SEVERAL_KEYS = (
    "also given as",
    "give one of them",
    "no such file",
    "must be equal",
    "limits the aspect ratio already",
    "is no config of a program",
)


@pytest.mark.parametrize("name", FILES)
def test_what_the_reader_refuses_is_refused(name, without_rules_between_keys):
    validator = VALIDATORS[kind_of(node_from_python(FILES[name], "")).name]
    refused, missed, wrongly = 0, [], []
    for what, broken in mutations(FILES[name]):
        accepted = validator.is_valid(broken)
        try:
            read(broken)
        except ConfigError as error:
            refused += 1
            if accepted and not any(said in str(error) for said in OF_SEVERAL_KEYS):
                missed.append(f"{what}: {error}")
        else:
            if not accepted:
                wrongly.append(what)
    assert refused > 100
    assert missed == []
    assert [what for what in wrongly if not any(key in what for key in CONSTANTS)] == []


# Keys with one legal value, which a rule of the reader says: with `problems` left out it takes the other one too.
CONSTANTS = ("use_attention_mask", "use_text_processer", "group_frame", "group_resolution")


@pytest.mark.parametrize("key", CONSTANTS)
def test_a_key_with_one_legal_value(key):
    content = next(content for name, content in FILES.items() if key in json.dumps(content))
    for path in places(content):
        if path[-1] == key:
            broken = copy.deepcopy(content)
            block = broken
            for part in path[:-1]:
                block = block[part]
            block[key] = not block[key]
            if path[0].startswith("text_encoder"):
                continue
            with pytest.raises(ConfigError, match=key):
                read(broken)
            assert not VALIDATORS[kind_of(node_from_python(broken, "")).name].is_valid(broken)


def test_kinds_are_told_apart():
    assert {kind.name for kind in KINDS} == set(json_schemas.NAMES)
    with pytest.raises(ConfigError, match="is no config of a program"):
        kind_of(node_from_python({"surely_unknown": 1}, "", "x.json"))
    check(build(KINDS[0].config, KINDS[0].ours(node_from_python(FILES["ours data"], ""))))
