"""Weights in 8 and 4 bits: the nearest numbers, the same in a part as in the whole."""

import pytest
import torch

from mindspeed_mm.ops.packed import NF4, pack, pairs


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    weight = torch.randn(12, 128, generator=torch.Generator().manual_seed(0))
    weight[3] = 0  # a block without a largest number
    return weight * torch.logspace(-6, 2, 12)[:, None]


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_each_number_is_the_nearest_of_its_form(weight, form):
    packed = pack(weight, form, 32, pairs("cpu"))
    levels = torch.arange(-127, 128) if form == "int8" else torch.tensor(NF4)
    scales = packed.scales.float().repeat_interleave(32, 1)
    choices = scales[:, :, None] * levels
    nearest = choices.gather(2, (choices - weight[:, :, None]).abs().argmin(2)[:, :, None])[:, :, 0]
    assert torch.allclose(packed(torch.float32), nearest, rtol=1e-6, atol=0)
    assert packed(torch.bfloat16).dtype == torch.bfloat16
    assert (packed(torch.bfloat16) - nearest).abs().max() <= 2**-7 * nearest.abs().max()
    assert packed.numbers == weight.numel() == packed.codes.nbytes * (1 if form == "int8" else 2)


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_part_is_packed_as_in_the_whole(weight, form, dim):
    parts = [pack(part, form, 32, pairs("cpu"))(torch.float32) for part in weight.chunk(2, dim)]
    assert torch.equal(torch.cat(parts, dim), pack(weight, form, 32, pairs("cpu"))(torch.float32))
