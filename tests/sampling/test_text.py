"""Prompts to features: what the encoders see, what is remembered, and the original's shapes."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.errors import ConfigError, SamplingError
from mindspeed_mm.sampling.residence import Residence
from mindspeed_mm.sampling.text import PromptEncoder
from mindspeed_mm.schema import build, read_json


@pytest.fixture(scope="module")
def model(small_model) -> SampleModelConfig:
    return build(SampleModelConfig, read_json(small_model / "sample.json"))


def encoder(model, capacity=None) -> PromptEncoder:
    return PromptEncoder.load(model, Residence(torch.device("cpu")), capacity)


def test_t5_reads_512_tokens_with_a_mask_and_clip_77_without(model, small_model):
    """As the original's pipeline does: golden/infer, encode_texts."""
    features = encoder(model)(["a red circle", "a blue square moving up"])
    assert features.sequence.shape[:2] == features.keep.shape == (2, 512)
    for number, text in enumerate(["a red circle", "a blue square moving up"]):
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = AutoTokenizer.from_pretrained(small_model / "t5")(text, max_length=512, **padded)
        with torch.no_grad():
            sequence = T5EncoderModel.from_pretrained(small_model / "t5")(**tokens).last_hidden_state
        assert torch.allclose(features.sequence[number], sequence[0], atol=1e-6)
        assert torch.equal(features.keep[number], tokens.attention_mask[0].bool())
        tokens = AutoTokenizer.from_pretrained(small_model / "clip")(text, max_length=77, **padded)
        assert tokens.input_ids.shape == (1, 77)
        with torch.no_grad():
            clip = CLIPTextModelWithProjection.from_pretrained(small_model / "clip")
            pooled = clip(input_ids=tokens.input_ids).text_embeds
        assert torch.allclose(features.pooled[number], pooled[0], atol=1e-6)


def test_a_text_is_encoded_once_and_its_features_outlive_the_encoders(model):
    text = encoder(model)
    first = text(["a red circle", "", "a red circle"])
    assert text.misses == 2
    assert torch.equal(first.sequence[0], first.sequence[2])
    text.leave()
    assert torch.equal(text(["", "a red circle"]).sequence, first.sequence[[1, 0]])
    with pytest.raises(ValueError, match="the text encoders have left, and 'a dog' was not encoded"):
        text(["a dog"])


def test_the_least_recently_asked_text_is_forgotten_first(model):
    text = encoder(model, capacity=2)
    for prompt in ("a", "b", "a", "c"):  # forgets b
        text([prompt])
    assert text.misses == 3
    text(["a"])
    assert text.misses == 3
    text(["b"])
    assert text.misses == 4


def test_features_that_are_not_finite_name_the_encoder_and_the_text(model):
    text = encoder(model)
    with torch.no_grad():
        text.encoders.sequence.model.encoder.final_layer_norm.weight.fill_(float("inf"))
    with pytest.raises(SamplingError, match=r"text_encoder: its features of 'a red circle' are not finite"):
        text(["a red circle"])


def test_latents_have_the_originals_shapes(golden):
    for case in json.loads(golden("infer/inference.json").read_text())["pipeline_cases"]:
        if "latents" not in case:  # one that the original fails on
            continue
        size, wanted = case["input_size"], case["latents"]["shape"]
        count = case["n_prompts"] * case["num_samples_per_prompt"]
        if (size[0] - 1) % 8:
            with pytest.raises(ConfigError, match="frames"):  # the original silently made fewer
                LatentGrid.of_video(*size, (8, 8, 8))
            continue
        shape = LatentGrid.of_video(*size, (8, 8, 8)).shape(count, 4)
        assert list(shape) == wanted
        assert case["video"]["shape"] == [count, *size, 3]
        halves = 2 if case["guidance_scale"] > 1 else 1
        assert math.prod(case["prompt_embeds"]["shape"][:3]) == halves * count * 512
