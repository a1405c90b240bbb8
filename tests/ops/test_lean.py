"""Elementwise steps with gradients of their own, against plain formulas under autograd."""

import pytest
import torch
import torch.nn.functional as F

from mindspeed_mm import types
from mindspeed_mm.ops import lean, norms, rope3d

EXTENT, DIM = (2, 3, 4), 32
SHAPES = pytest.mark.parametrize("batch", [1, 2])
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str)


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).requires_grad_()


def compare(step, plain, inputs, tolerance):
    """Results and gradients of two functions of the same inputs, relative to the largest value."""
    result, wanted = step(*inputs), plain(*inputs)
    weights = torch.randn(wanted.shape)
    found = torch.autograd.grad((result.float() * weights).sum(), inputs)
    expected = torch.autograd.grad((wanted.float() * weights).sum(), inputs)
    for a, b in zip((result, *found), (wanted, *expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@SHAPES
@DTYPES
def test_modulated_layer_norm(batch, dtype, tolerance):
    def plain(x, weight, bias, scale, shift):
        normed = F.layer_norm(x.float(), (DIM,), weight.float(), bias.float(), 1e-6)
        return (normed * (1 + scale) + shift).to(x.dtype)

    inputs = (random(9, batch, DIM, dtype=dtype), random(DIM, dtype=dtype), random(DIM, dtype=dtype))
    inputs += (random(batch, DIM), random(batch, DIM))
    compare(lambda x, w, b, *rest: lean.modulated_layer_norm(x, w, b, 1e-6, *rest), plain, inputs, tolerance)


@SHAPES
@DTYPES
def test_gated(batch, dtype, tolerance):
    inputs = (random(9, batch, DIM, dtype=dtype), random(batch, DIM), random(9, batch, DIM, dtype=dtype))
    compare(lean.gated, lambda x, gate, y: (x.float() + gate * y.float()).to(x.dtype), inputs, tolerance)


@SHAPES
def test_a_condition_in_16_bits_is_computed_with_in_fp32(batch):
    x, scale, shift, y = (
        random(*size, dtype=torch.bfloat16) for size in ((9, batch, DIM), *[(batch, DIM)] * 2, (9, batch, DIM))
    )
    weight, bias = random(DIM, dtype=torch.bfloat16), random(DIM, dtype=torch.bfloat16)
    wide = [value.float().detach().requires_grad_() for value in (scale, shift)]
    for function, others in (
        (lambda *condition: lean.modulated_layer_norm(x, weight, bias, 1e-6, *condition), (scale, shift)),
        (lambda *condition: lean.modulate(x, *condition), (scale, shift)),
        (lambda gate, _: lean.gated(x, gate, y), (scale, shift)),
    ):
        result = function(*others)
        assert torch.equal(result, function(*wide))
        found = torch.autograd.grad(result.float().sum(), scale)[0]
        assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("turn", [True, False])
@SHAPES
@DTYPES
def test_normed_rotated(batch, dtype, tolerance, turn):
    rope = rope3d.tables(EXTENT, DIM) if turn else None

    def plain(x, weight):
        x = norms.rms_norm(x.float(), weight.float(), 1e-6)
        return (rope3d.rotate(x, *rope) if turn else x).to(dtype)

    inputs = (random(24, batch, 3, DIM, dtype=dtype), random(DIM, dtype=dtype))
    compare(lambda x, weight: lean.normed_rotated(x, weight, 1e-6, rope), plain, inputs, tolerance)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gelu_in_16_bits_is_that_of_fp32_rounded_once(dtype, approximate):
    def plain(x):
        return F.gelu(x.float(), approximate=approximate).to(x.dtype)

    compare(lambda x: lean.gelu(x, approximate), plain, (random(9, DIM, dtype=dtype),), 0)


def test_a_compilers_gelu_is_the_same(monkeypatch):
    x = 4 * torch.randn(1000)
    wanted = lean.gelu(x, "tanh")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert (lean.gelu(x, "tanh") - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize(("least_bytes", "times"), [(0, 2), (5 * 2 * 8 * 4, 2), (5 * 2 * 8 * 4 + 1, 1)])
def test_recomputed_calls_the_function_again_unless_it_is_small_and_gives_every_bit(monkeypatch, least_bytes, times):
    monkeypatch.setattr(types, "LEAST_RECOMPUTED_BYTES", least_bytes)
    x, weight = random(5, 2, 8), random(3, 8)
    wanted = torch.autograd.grad(F.linear(F.gelu(x), weight).sin().sum(), (x, weight))
    calls = []

    def function(inner):
        calls.append(inner.data_ptr())
        return F.gelu(inner)

    active, again = lean.recomputed(True, function, x)
    with again:
        out = F.linear(active, weight)
    assert len(calls) == 1
    found = torch.autograd.grad(out.sin().sum(), (x, weight))
    assert calls == times * [x.data_ptr()]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_recomputed_leaves_what_follows_the_function_alone(monkeypatch):
    """Such as a dropout between it and the linear: the linear's input is another tensor then, which it keeps."""
    monkeypatch.setattr(types, "LEAST_RECOMPUTED_BYTES", 0)
    x, weight = random(5, 2, 8), random(3, 8)
    active, again = lean.recomputed(True, F.gelu, x)
    dropped = active * 2
    with again:
        out = F.linear(dropped, weight)
    (found,) = torch.autograd.grad(out.sum(), (weight,))
    assert (found - (2 * F.gelu(x)).sum((0, 1))).abs().max() <= 1e-5


def test_a_result_that_several_operators_keep_is_made_again_once(monkeypatch):
    monkeypatch.setattr(types, "LEAST_RECOMPUTED_BYTES", 0)
    x, weights = random(5, 2, 8), [random(3, 8) for _ in range(3)]
    calls, plain = [], F.gelu(x)
    wanted = torch.autograd.grad(sum(F.linear(plain, weight).sin().sum() for weight in weights), (x, *weights))

    def function(inner):
        calls.append(0)
        return F.gelu(inner)

    active, again = lean.recomputed(True, function, x)
    with again:
        out = sum(F.linear(active, weight).sin().sum() for weight in weights)
    for _ in range(2):  # a second pass over the same graph makes it again for each
        found = torch.autograd.grad(out, (x, *weights), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert len(calls) in (2, 5)
    assert len(calls) == 5
