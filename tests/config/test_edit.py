"""Values change, everything else of a file stays."""

import shutil
from pathlib import Path

import pytest

from mindspeed_mm.config.edit import write_vectors
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.reader import build, read_json
from mindspeed_mm.errors import ConfigError

PUBLISHED = Path(__file__).resolve().parents[2] / "examples" / "opensoraplan1.5" / "model_opensoraplan1_5.json"


def test_the_published_model_json_keeps_its_comments_and_other_values(tmp_path):
    file = tmp_path / "model.json"
    shutil.copy(PUBLISHED, file)
    before = read_json(file).plain()
    write_vectors(file, "ae", {"shift": [0.5] * 32, "scale": [2.0] * 32})
    text = file.read_text()
    assert text.count("#") == PUBLISHED.read_text().count("#")
    after = read_json(file).plain()
    assert after["ae"].pop("shift") == [0.5] * 32 and after["ae"].pop("scale") == [2.0] * 32
    del before["ae"]["shift"], before["ae"]["scale"]
    assert after == before
    assert build(TrainModelConfig, read_json(file)).ae.scale == (2.0,) * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"ae": {}}', '{"ae": {"shift": [1.5]}}'),
        ('{"ae": {"a": 1}, "b": 2}', '{"ae": {"a": 1,\n"shift": [1.5]}, "b": 2}'),
        (
            '{\n  "ae": {\n    "a": [1, 2], // why\n  }\n}',
            '{\n  "ae": {\n    "a": [1, 2],\n    "shift": [1.5], // why\n  }\n}',
        ),
        ('{"b": [{"shift": 1}], "ae": {"c": {"shift": 2}, "shift": [0]}}', None),
    ],
)
def test_a_key_is_added_or_replaced_in_its_own_block_only(tmp_path, text, expected):
    file = tmp_path / "a.json"
    file.write_text(text)
    before = read_json(file).plain()
    write_vectors(file, "ae", {"shift": [1.5]})
    assert expected is None or file.read_text() == expected
    before["ae"]["shift"] = [1.5]
    assert read_json(file).plain() == before


def test_a_file_without_the_block_is_refused_and_untouched(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"predictor": {}}')
    with pytest.raises(ConfigError, match="has no block 'ae'"):
        write_vectors(file, "ae", {"shift": [1.0]})
    assert file.read_text() == '{"predictor": {}}'
