"""Skiparse: parts and back, against their definition."""

import pytest
import torch

from mindspeed_mm.ops.skiparse import join_text, padding, skip, skip_keep, split_text, unskip

PATTERNS = pytest.mark.parametrize(("k", "group"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
LENGTHS = pytest.mark.parametrize("length", [3, 16, 21, 32])


@PATTERNS
@LENGTHS
def test_each_part_holds_the_tokens_of_its_definition(k, group, length):
    parts = skip(torch.arange(1, length + 1).view(-1, 1).repeat(1, 2), k, group)
    assert parts.shape == ((length + padding(length, k)) // k, 2 * k)
    for part in range(k):
        for sample in range(2):
            tokens = [token - 1 for token in parts[:, part * 2 + sample].tolist() if token]
            assert tokens == [t for t in range(length) if (t // k if group else t) % k == part]


@PATTERNS
@LENGTHS
def test_unskip_is_the_inverse(k, group, length):
    x = torch.randn(length, 2, 3, 4)
    assert torch.equal(unskip(skip(x, k, group), k, group, length), x)


@PATTERNS
def test_padding_is_no_real_key(k, group):
    keep = skip_keep(torch.ones(2, 21, dtype=torch.bool), k, group)
    assert keep.sum() == 42 and keep.shape[0] == 2 * k


@PATTERNS
@LENGTHS
def test_joining_the_text_equals_padding_and_repeating_with_gradients(k, group, length):
    video, text = torch.randn(length, 2, 3, 4, requires_grad=True), torch.randn(5, 2, 3, 4, requires_grad=True)
    found = join_text(video, text, k, group)
    wanted = torch.cat((skip(video, k, group), text.repeat(1, k, 1, 1)))
    assert torch.equal(found, wanted)
    weights = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((joint * weights).sum(), (video, text)) for joint in (found, wanted)]
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


@PATTERNS
@LENGTHS
def test_splitting_equals_slices_and_the_mean_of_the_texts_with_gradients(k, group, length):
    parts = (length + padding(length, k)) // k
    joint = torch.randn(parts + 5, 2 * k, 3, 4, requires_grad=True)
    found = split_text(joint, k, group, length)
    wanted = unskip(joint[:parts], k, group, length), joint[parts:].unflatten(1, (k, 2)).mean(1)
    weights = [torch.randn_like(part) for part in wanted]
    gradients = []
    for pair in (found, wanted):
        for a, b in zip(pair, wanted, strict=True):
            torch.testing.assert_close(a, b)
        (gradient,) = torch.autograd.grad(sum((a * w).sum() for a, w in zip(pair, weights, strict=True)), joint)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_the_mean_of_large_texts_stays_within_fp16():
    joint = torch.full((8 + 5, 8, 3, 4), 30000.0, dtype=torch.float16)
    _, text = split_text(joint, 8, False, 64)
    assert (text == 30000).all()
