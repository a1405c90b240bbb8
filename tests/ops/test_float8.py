"""Products in float8: rounded row by row, summed exactly enough, and honest about what is not finite."""

import functools

import pytest
import torch
from torch import Tensor

from mindspeed_mm.ops import float8

FORMS = [*float8.FORMATS]


def tensors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_product(a: Tensor, b: Tensor, a_dtype: torch.dtype, b_dtype: torch.dtype, out: torch.dtype) -> Tensor:
    """The product of the rounded numbers in operators of every device, summed in fp32."""
    a, b = (x.float() * scale for x, scale in (float8._rounded(a, a_dtype), float8._rounded(b, b_dtype)))
    return (a @ b.t()).to(out)


def distance(found: Tensor, wanted: Tensor) -> float:
    """rms of the difference / rms."""
    return ((found - wanted).double().square().mean() / wanted.double().square().mean()).sqrt().item()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_the_kernel_equals_its_plain_twin(form, out):
    a, b = tensors(48, 64), tensors(32, 64, seed=1)
    for dtype in float8.FORMATS[form]:
        found, wanted = (
            function(a, b, dtype, torch.float8_e4m3fn, out) for function in (float8.product, plain_product)
        )
        assert found.dtype == wanted.dtype == out
        assert distance(found.float(), wanted.float()) < (1e-6 if out == torch.float32 else 1e-3)


def gradients(function, x: Tensor, weight: Tensor, upstream: Tensor) -> list[Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight)
    y.backward(upstream)
    assert x.grad is not None and weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


@pytest.mark.parametrize(("form", "most"), [("e4m3", 0.04), ("hybrid", 0.06)])
@pytest.mark.parametrize("tokens", [16, 5])
def test_outputs_and_gradients_are_near(form, most, tokens):
    """Of e4m3's three bits of mantissa a number keeps 2.5 % on average, and of e5m2's two 5 %."""
    x, weight, upstream = tensors(tokens, 3, 64), tensors(32, 64, seed=1), tensors(tokens, 3, 32, seed=2)
    found = gradients(functools.partial(float8.linear, form=form), x, weight, upstream)
    wanted = gradients(torch.nn.functional.linear, x, weight, upstream)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert 1e-3 < distance(mine, theirs) < most


def test_an_outlier_coarsens_its_own_row_alone():
    x, weight = tensors(32, 1, 64), tensors(32, 64, seed=1)
    calm = float8.linear(x, weight, "e4m3")
    x[3, 0, 5] = 1e6
    found = float8.linear(x, weight, "e4m3")
    rest = torch.arange(32) != 3
    assert torch.equal(found[rest], calm[rest])
    assert distance(found[3], torch.nn.functional.linear(x[3], weight)) < 0.04


def test_scales_are_powers_of_two_and_use_the_range():
    x = torch.tensor([[1.0, 448.0], [0.0, 0.0], [3e-5, -1e-6], [1e30, 7.0]])
    numbers, scales = float8._rounded(x, torch.float8_e4m3fn)
    mantissas, _ = torch.frexp(scales)
    assert mantissas.eq(0.5).all()
    assert numbers.float().isfinite().all()
    largest = numbers.float().abs().amax(1)
    assert largest[1] == 0 and (largest[[0, 2, 3]] > 448 / 2).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_number_is_rounded_alike_beside_larger_ones(dtype):
    x = tensors(8, 64)
    rest = torch.full((8, 1), 100.0)
    alone, beside = (
        numbers.float() * scale
        for numbers, scale in (float8._rounded(part, dtype) for part in (x, torch.cat((x, rest), 1)))
    )
    assert (alone - beside[:, :64]).abs().max() < 100 * 2**-17
    assert (alone == beside[:, :64]).float().mean() > 0.9


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible(bad):
    x, weight = tensors(16, 1, 32), tensors(16, 32, seed=1)
    x[2, 0, 7] = bad
    y = float8.linear(x, weight, "hybrid")
    assert not y[2].isfinite().any()
    assert y[:2].isfinite().all() and y[3:].isfinite().all()
    _, _, of_weight = gradients(functools.partial(float8.linear, form="hybrid"), x, weight, tensors(16, 1, 16))
    assert not of_weight[:, 7].isfinite().any()


def test_frozen_weights_and_first_inputs_get_no_gradient():
    x, weight = tensors(16, 1, 32), tensors(16, 32, seed=1)
    calls = []

    def product(*arguments):
        calls.append(arguments[0].shape)
        return plain(*arguments)

    plain = float8.product
    for trained in (x, weight):
        trained = trained.clone().requires_grad_()
        pair = (trained, weight) if trained.shape == x.shape else (x, trained)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(float8, "product", product)
            float8.linear(*pair, "e4m3").sum().backward()
    assert calls == [(16, 32), (16, 16), (16, 32), (16, 16)]  # forward and one gradient, twice
