"""Attention in int8: the plain twin, and what the package is called with."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from test_cuda import KEEP
from torch import Tensor

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.ops import attention, cuda, sage

CUDA = torch.device("cuda")


def drawn(queries: int, keys: int, samples: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries)
    return [torch.randn(length, samples, 2, 64, generator=generator) for length in (queries, keys, keys)]


def test_queries_and_keys_have_255_steps_for_each_block_of_a_head():
    x = drawn(300, 1)[0]
    x[:128] *= 100
    for first, rounded in zip(x.split(128), sage._rounded(x, 128).split(128), strict=True):
        steps = rounded / first.abs().amax((0, 3), keepdim=True) * 127
        assert (steps - steps.round()).abs().max() < 1e-3 and steps.abs().max() < 127.01
        assert ((rounded - first).abs() <= first.abs().amax((0, 3), keepdim=True) / 253).all()


@pytest.mark.parametrize("keep", [None, KEEP])
def test_the_twin_is_near_attention_also_where_keys_share_a_large_mean(keep):
    """The paper's reason for taking the mean off: without it the error is twenty times as large here."""
    q, k, v = drawn(6, 10)
    k = k + 40 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    keep = None if keep is None else attention.with_some(keep)
    wanted = attention.plain_attend(q, k, v, keep)
    off = (sage.plain_attend(q, k, v, keep) - wanted).abs().max()
    assert 0 < off < 0.05
    with_mean = attention.plain_attend(sage._rounded(q, 128), sage._rounded(k, 64), v, keep)
    assert (with_mean - wanted).abs().max() > 10 * off


def test_hidden_keys_change_nothing():
    q, k, v = drawn(6, 10)
    keep = attention.with_some(KEEP)
    other = torch.where(keep.t()[..., None, None], k, 1e4)
    assert torch.equal(sage.plain_attend(q, k, v, keep), sage.plain_attend(q, other, v, keep))


class Package(types.ModuleType):
    """Stands for `sageattention`, with exact attention."""

    def sageattn(self, q, k, v, tensor_layout="HND"):
        assert tensor_layout == "NHD"
        self.whole = True
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def sageattn_varlen(self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        from test_cuda import plain_kernel

        self.packed = True
        return plain_kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


class SaysCuda(torch.Tensor):
    """A tensor of the host that calls itself CUDA's."""

    @property
    def device(self):
        return CUDA


@pytest.mark.parametrize("padded", [False, True])
def test_the_package_gets_whole_samples_or_packed_real_keys(monkeypatch, padded):
    package = Package("sageattention")
    monkeypatch.setitem(sys.modules, "sageattention", package)
    monkeypatch.setattr(cuda, "begins_of", lambda q, n: torch.arange(0, len(q) + n, n, dtype=torch.int32))
    tensors = drawn(6, 10)
    keys = None
    if padded:
        keep = attention.with_some(KEEP)
        starts = F.pad(keep.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        keys = attention.RealKeys(keep, keep.flatten().nonzero().squeeze(1), starts)
    found = sage.attend(*(x.as_subclass(SaysCuda) for x in tensors), keys).as_subclass(Tensor)
    assert (found - attention.plain_attend(*tensors, None if keys is None else keys.keep)).abs().max() < 1e-5
    assert vars(package).get("packed", False) == padded and vars(package).get("whole", False) != padded


@pytest.mark.parametrize(
    ("device", "dtype", "head", "installed", "reason"),
    [
        ("npu", torch.bfloat16, 64, True, "runs on CUDA"),
        ("cuda", torch.bfloat16, 64, False, r"pip install sageattention"),
        ("cuda", torch.float32, 64, True, "needs bf16 or fp16; the denoiser is float32"),
        ("cuda", torch.bfloat16, 256, True, "at most 128 channels; the denoiser has 256"),
    ],
)
def test_what_it_cannot_do_is_said(monkeypatch, device, dtype, head, installed, reason):
    monkeypatch.setattr(sage.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(cuda, "has_kernel", lambda device: True)
    if device == "npu":
        device = types.SimpleNamespace(type="npu")  # torch knows no such device here
    else:
        device = torch.device(device)
    with pytest.raises(ConfigError, match=f"--sage-attention .*{reason}.*; leave the option out"):
        sage.check(device, dtype, head)
    sage.check(torch.device("cpu"), dtype, head)
