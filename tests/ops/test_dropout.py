"""Dropout by address: a part of an activation is dropped as in the whole, and the whole is dropped like by chance."""

import pytest
import torch

from mindspeed_mm.ops.dropout import derive, dropout, kept

SEEDS = torch.tensor([7, 2**32 - 1])
TOKENS = torch.arange(300)
RATE = 0.3


def test_a_part_of_the_mask_is_the_mask_of_the_part():
    whole = kept(SEEDS, TOKENS, torch.arange(64), RATE)
    tokens, features = TOKENS[[5, 9, 250]], torch.arange(32, 64)
    assert torch.equal(kept(SEEDS[1:], tokens, features, RATE), whole[tokens][:, 1:, 32:])


def test_a_large_mask_is_made_in_parts(monkeypatch):
    whole = kept(SEEDS, TOKENS, torch.arange(64), RATE)
    monkeypatch.setattr("mindspeed_mm.ops.dropout._NUMBERS_AT_ONCE", 2 * 64 * 7)  # 300 tokens are not a multiple of 7
    assert torch.equal(kept(SEEDS, TOKENS, torch.arange(64), RATE), whole)


def test_the_share_and_its_spread_are_those_of_chance():
    mask = kept(SEEDS, TOKENS, torch.arange(512), RATE).double()
    assert mask.mean() == pytest.approx(1 - RATE, abs=4 * (RATE * (1 - RATE) / mask.numel()) ** 0.5)
    for axes in ((0, 1), (1, 2), (0, 2)):  # per feature, token, sample: as wide as binomial counts are
        means = mask.mean(axes)
        expected = (RATE * (1 - RATE) * means.numel() / mask.numel()) ** 0.5
        assert means.numel() < 100 or 0.8 < means.std() / expected < 1.2


def test_tokens_features_samples_and_places_are_independent():
    centred = kept(SEEDS, TOKENS, torch.arange(512), RATE).double() - (1 - RATE)
    other = kept(derive(SEEDS, 1), TOKENS, torch.arange(512), RATE).double() - (1 - RATE)
    bound = 5 * RATE * (1 - RATE) / centred.numel() ** 0.5
    neighbours = [(centred[1:], centred[:-1]), (centred[:, :, 1:], centred[:, :, :-1]), (centred, other)]
    neighbours += [(centred[:, 0], centred[:, 1])]
    for a, b in neighbours:
        assert abs((a * b).mean()) < 2 * bound


def test_what_stays_is_scaled_and_so_is_its_gradient():
    x = torch.ones(300, 2, 16, requires_grad=True)
    out = dropout(x, RATE, SEEDS, TOKENS, first_feature=16)
    mask = kept(SEEDS, TOKENS, torch.arange(16, 32), RATE)
    assert torch.equal(out, torch.where(mask, 1 / (1 - RATE), 0.0))
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert dropout(x.bfloat16(), RATE, SEEDS, TOKENS).dtype == torch.bfloat16
