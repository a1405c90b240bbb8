"""Tokenizers in local folders."""

import pickle

import pytest
import torch

from mindspeed_mm.config.model import TokenizerConfig
from mindspeed_mm.data.text.tokens import load_tokenizer
from mindspeed_mm.errors import ConfigError


def test_t5_and_clip_folders_give_ids_of_fixed_length(encoder_folder):
    t5 = load_tokenizer(TokenizerConfig(from_pretrained=str(encoder_folder / "t5")), "tokenizer_config", 24)
    clip = load_tokenizer(TokenizerConfig(from_pretrained=str(encoder_folder / "clip")), "tokenizer_config_2")
    texts = ["a cat plays with a ball", "", "the fox jumps over the lazy dog " * 20]
    for tokenizer, length in ((t5, 24), (clip, 77)):
        tokens = tokenizer(texts)
        assert tokens.ids.shape == tokens.keep.shape == (3, length)
        assert tokens.ids.dtype == torch.int64 and tokens.keep.dtype == torch.bool
        counts = tokens.keep.sum(1).tolist()
        assert 2 < counts[0] < length and counts[2] == length
        assert tokens.keep[0, : counts[0]].all()  # padding is at the end
    assert t5([""]).keep.sum() == 1 and t5([""]).ids[0, 0] == 1  # the end token alone
    assert clip([""]).keep.sum() == 2  # start and end


def test_the_folder_states_the_length_unless_the_config_does(encoder_folder):
    folder = str(encoder_folder / "t5")
    assert load_tokenizer(TokenizerConfig(from_pretrained=folder), "t").max_length == 512
    assert load_tokenizer(TokenizerConfig(from_pretrained=folder, model_max_length=40), "t").max_length == 40
    assert load_tokenizer(TokenizerConfig(from_pretrained=folder, model_max_length=40), "t", 20).max_length == 20


@pytest.mark.parametrize(("name", "folder"), [("T5Tokenizer", "t5"), ("CLIPTokenizer", "clip")])
def test_classes_are_looked_up_by_name_and_survive_a_copy_to_another_process(encoder_folder, name, folder):
    config = TokenizerConfig(from_pretrained=str(encoder_folder / folder), autotokenizer_name=name)
    tokenizer = load_tokenizer(config, "tokenizer_config", 16)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(["a cat"]).ids, tokenizer(["a cat"]).ids)


def test_a_missing_or_empty_folder_is_an_error_with_folder_and_key(tmp_path):
    with pytest.raises(
        ConfigError, match=r"dataset_param.tokenizer_config.from_pretrained: folder .*/nowhere does not"
    ):
        load_tokenizer(TokenizerConfig(from_pretrained=str(tmp_path / "nowhere")), "dataset_param.tokenizer_config")
    with pytest.raises(ConfigError, match=f"t.from_pretrained: AutoTokenizer cannot load {tmp_path}") as caught:
        load_tokenizer(TokenizerConfig(from_pretrained=str(tmp_path)), "t")
    assert "\n" not in str(caught.value)
