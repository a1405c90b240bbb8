"""Padding that nothing sees: dropped or masked, it changes no number."""

import dataclasses

import pytest
import torch
from tiny_denoiser import CONFIG
from torch.nn import functional as F

from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.sparse_ummdit.masks import keys_of, used_columns, without_padding
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import TextFeatures


def features(keep) -> TextFeatures:
    keep = torch.tensor(keep, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return TextFeatures(
        torch.randn(*keep.shape, 12, generator=generator), keep, torch.randn(keep.shape[0], 6, generator=generator)
    )


def test_only_tokens_that_some_sample_uses_stay_and_in_their_order():
    text = features([[1, 0, 1, 0, 0], [0, 0, 1, 0, 1]])
    short = without_padding(text, used_columns(text.keep, 1))
    assert torch.equal(short.sequence, text.sequence[:, [0, 2, 4]])
    assert short.keep.tolist() == [[True, True, False], [False, True, True]]
    assert used_columns(torch.ones(1, 2, dtype=torch.bool), 1).tolist() == [0, 1]


def test_the_length_stays_a_multiple():
    text = features([[0, 1, 0, 1, 1, 0, 0, 0]])
    short = without_padding(text, used_columns(text.keep, 4))
    assert torch.equal(short.sequence[:, :3], text.sequence[:, [1, 3, 4]])
    assert short.keep.tolist() == [[True, True, True, False]]


def test_a_sample_without_any_real_text_keeps_all_tokens():
    text = features([[1, 0, 0], [0, 0, 0]])
    assert without_padding(text, used_columns(text.keep, 1)) is text


@pytest.mark.parametrize(
    ("tokens", "video", "text", "masked"),
    [
        (16, None, [[1, 1]], {1: False, 2: False, 4: False}),
        (12, None, [[1, 1]], {1: False, 2: False, 4: True}),  # 12 tokens are padded to 16
        (16, [[1] * 16], [[1, 1]], {1: False, 2: False, 4: False}),
        (16, [[1] * 15 + [0]], [[1, 1]], {1: True, 2: True, 4: True}),
        (16, None, [[1, 0]], {1: True, 2: True, 4: True}),
    ],
)
def test_there_is_a_mask_only_where_a_key_is_not_real(tokens, video, text, masked):
    video = None if video is None else torch.tensor(video, dtype=torch.bool)
    found = keys_of({(k, group) for k in masked for group in (False, True)}, video, torch.tensor(text).bool(), tokens)
    for (k, group), keys in found.items():
        assert (keys is not None) == masked[k], (k, group)
        assert keys is None or not keys.keep.all()


@pytest.mark.parametrize("batch", [1, 2])
def test_padding_the_text_changes_nothing(batch):
    network = build_denoiser(CONFIG, ParallelContext.current(), seed=1).eval()
    with torch.no_grad():
        for parameter in network.transformer_blocks.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)  # fresh weights hardly let the text through
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 3, 6, 10, generator=generator)
    text = features([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1]][:batch])
    padded = TextFeatures(
        F.pad(text.sequence, (0, 0, 3, 9), value=5.0), F.pad(text.keep, (3, 9), value=False), text.pooled
    )
    with torch.no_grad():
        out = network(latents, torch.full((batch,), 0.3), text)
        assert (network(latents, torch.full((batch,), 0.3), padded) - out).abs().max() < 2e-5
        other = dataclasses.replace(text, sequence=text.sequence + 1)
        assert (network(latents, torch.full((batch,), 0.3), other) - out).abs().max() > 1e-2
