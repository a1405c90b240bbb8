"""Flags that change what the data JSON says of its list and captions."""

import pytest
from config_files import TRAIN_FLAGS, change, write_all

from mindspeed_mm.config import resolve
from mindspeed_mm.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    write_all(tmp_path)
    return tmp_path


def train(folder, *flags):
    files = ["--mm-model", str(folder / "model.json"), "--mm-data", str(folder / "data.json")]
    return resolve.run_config([*files, *TRAIN_FLAGS, *flags], 1).data


def test_flags_take_precedence_over_the_data_json(folder):
    change(folder / "data.json", "dataset_param.preprocess_parameters.trigger_word", "sks")
    before = train(folder).dataset_param
    assert before.preprocess_parameters.trigger_word == "sks" and not before.preprocess_parameters.shuffle_tags
    flags = ("--data-path", str(folder), "--trigger-word", "ohwx", "--shuffle-tags", "--keep-tags", "2")
    after = train(folder, *flags)
    parameters = after.dataset_param.preprocess_parameters
    assert after.dataset_param.basic_parameters.data_path == str(folder)
    assert (parameters.trigger_word, parameters.shuffle_tags, parameters.keep_tags) == ("ohwx", True, 2)
    held_out = after.held_out(None).dataset_param.preprocess_parameters
    assert (held_out.trigger_word, held_out.shuffle_tags) == ("ohwx", False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep-tags", "1"], "--keep-tags 1: only with --shuffle-tags"),
        (["--data-path", "no/where"], "--data-path no/where: no such file or folder"),
    ],
)
def test_flags_that_cannot_hold_are_refused(folder, flags, message):
    with pytest.raises(ConfigError, match=message):
        train(folder, *flags)


def test_shuffled_tags_have_no_stored_features(folder):
    change(folder / "model.json", "load_text_features", True)
    change(folder / "data.json", "dataset_param.basic_parameters.feature_folder", str(folder))
    with pytest.raises(ConfigError, match="shuffle_tags.*every order of a caption's tags"):
        train(folder, "--shuffle-tags")
