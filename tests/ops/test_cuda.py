"""Attention over packed keys, as CUDA computes it: its numbers with a plain kernel, and the kernels that a network takes."""

import collections
import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from on_cuda import OnCuda, onto_cuda
from tiny_denoiser import CONFIG
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.ops import attention, cuda, float8
from mindspeed_mm.parallel.alone import Alone
from mindspeed_mm.parallel.seeds import SampleDraws
from mindspeed_mm.types import TextFeatures

KEEP = torch.arange(10)[None] < torch.tensor([[10], [7], [0], [1]])
KEEP[0, 3:5] = False
TEXT = 8  # tokens, of which samples use fewer


def plain_kernel(q, k, v, q_starts, k_starts, longest_q, longest_k) -> Tensor:
    """torch's `varlen_attn`, one sequence after the other."""
    assert (q_starts.dtype, k_starts.dtype) == (torch.int32, torch.int32)
    parts = []
    for sample in range(len(q_starts) - 1):
        mine = (x[starts[sample] : starts[sample + 1]].transpose(0, 1)
                for x, starts in ((q, q_starts), (k, k_starts), (v, k_starts)))  # fmt: skip
        parts.append(F.scaled_dot_product_attention(*mine).transpose(0, 1))
        assert len(parts[-1]) <= longest_q and k_starts[sample + 1] - k_starts[sample] <= longest_k
    return torch.cat(parts)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(cuda, "_kernel", lambda: plain_kernel)
    monkeypatch.setattr(cuda, "has_kernel", lambda device: True)


def test_packed_keys_give_the_numbers_and_gradients_of_the_mask(kernel):
    drawn = [torch.randn(length, 4, 2, 16, generator=torch.Generator().manual_seed(length)) for length in (6, 10, 10)]
    keep = attention.real_keys(KEEP, torch.device("cpu")).keep
    real = keep.sum(1).cumsum(0)
    assert real.tolist() == [8, 15, 25, 26]  # a sample without a real key has all ten
    starts = F.pad(real, (1, 0)).to(torch.int32)
    keys = attention.RealKeys(keep, keep.flatten().nonzero().squeeze(1), starts)

    def computed(attend) -> list[Tensor]:
        q, k, v = (x.clone().requires_grad_() for x in drawn)
        out = attend(q, k, v)
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]

    def attend_packed(*packed: Tensor) -> Tensor:
        return cuda.attend_packed(*packed, len(drawn[0]), starts, len(drawn[1]))

    packed = computed(lambda *x: attention.attend_real(*x, keys, attend_packed))
    for found, wanted in zip(packed, computed(lambda *x: attention.plain_attend(*x, keep)), strict=True):
        assert (found - wanted).abs().max() < 1e-5


def forward(dtype: str, words: list[int], dropout: float = 0.0) -> OnCuda:
    """A forward pass on CUDA, of samples with so many words; their masks are on the host, as in training."""
    config = dataclasses.replace(CONFIG, dropout=dropout)
    network = build_denoiser(config, Alone(), device="meta", dtype=dtype, seed=None).train(dropout > 0)
    draws = SampleDraws(0, tuple((0, place) for place in range(len(words)))) if dropout else None
    keep = torch.arange(TEXT)[None] < torch.tensor(words)[:, None]
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), OnCuda() as cuda_device:
        onto_cuda(network)
        text = TextFeatures(
            torch.empty(len(words), TEXT, 12, device="cuda"), keep, torch.empty(len(words), 6, device="cuda")
        )
        latents = torch.empty(len(words), 4, 3, 8, 8, device="cuda")
        out = network(latents, torch.empty(len(words), device="cuda"), Conditions(text), draws=draws)
    assert out.device.type == "cuda" and out.shape == latents.shape
    return cuda_device


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> Path | None:
    """`cuda_guard.cpp` as a library; None where torch has its own."""
    if torch.version.cuda:
        return None
    if not shutil.which("g++"):
        pytest.skip("no g++")
    library, torch_at = tmp_path_factory.mktemp("cuda") / "guard.so", Path(torch.__file__).parent
    words = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", "-I", torch_at / "include", "-L", torch_at / "lib"]
    words += [f"-Wl,-rpath,{torch_at / 'lib'}", "-o", library, Path(__file__).with_name("cuda_guard.cpp")]
    subprocess.run([*words, "-lc10", "-ltorch_cpu"], check=True)
    return library


@pytest.fixture(scope="module")
def without_a_card(guard):
    """FakeTensors of CUDA also where torch is built for CPUs."""
    if guard is not None:
        ctypes.CDLL(str(guard))


@pytest.mark.parametrize(
    ("dtype", "words", "attended"),
    [
        ("bf16", [5, 5], ["all"] * 6),
        ("bf16", [5], ["all"] * 6),
        ("bf16", [5, 3], ["packed"] * 6),
        ("fp32", [5, 3], ["masked"] * 6),  # the kernel takes 16 bits
    ],
)
def test_a_16_bit_kernel_gets_real_keys_and_no_mask(without_a_card, monkeypatch, dtype, words, attended):
    calls, plain = [], attention.plain_attend
    monkeypatch.setattr(cuda, "has_kernel", lambda device: True)
    monkeypatch.setattr(
        attention, "plain_attend", lambda *x: calls.append("all" if x[3] is None else "masked") or plain(*x)
    )
    calls += ["packed"] * forward(dtype, words).launched.count("_varlen_attn")
    assert calls == attended


@pytest.mark.parametrize("train", [False, True])
def test_the_host_waits_for_no_copy_of_a_forward_pass(without_a_card, monkeypatch, train):
    monkeypatch.setattr(cuda, "has_kernel", lambda device: True)
    device = forward("bf16", [5, 3], dropout=0.1 if train else 0.0)
    assert not device.waited, "-----".join(device.waited)
    # The text's columns; of three patterns the mask, the places of real keys, where each sample's begin; for dropout seeds
    # and columns.
    assert device.copied == 1 + 3 * 3 + (2 if train else 0)


def test_a_full_size_pass_waits_for_nothing_and_launches_few_kernels(guard):
    """Forward and backward pass of the published network on one card, feed-forwards recomputed. Before the casts were
    joined with the operators around them it took 16,091 kernels.
    """
    program = [sys.executable, str(Path(__file__).with_name("cuda_training.py"))]
    search = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    preloaded = {} if guard is None else {"LD_PRELOAD": str(guard)}
    done = subprocess.run(program, env=os.environ | {"PYTHONPATH": search} | preloaded, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["missing"]  # every parameter has a gradient
    assert not found["waited"], "-----".join(found["waited"])
    assert found["copied"] <= 25
    launched = collections.Counter(found["launched"])
    assert launched["_varlen_attn"] == launched["_varlen_attn_backward"] == 32
    assert not {"bmm", "_softmax", "_local_scalar_dense"} & set(launched)
    assert launched.total() <= 11_200


@pytest.mark.parametrize("form", float8.FORMATS)
def test_products_in_float8_have_operands_that_cuda_takes(without_a_card, form):
    """torch's own rules: layouts, sizes, scales and dtypes."""
    with FakeTensorMode(), torch.no_grad():
        x, weight, gradient = (
            torch.empty(size, device="cuda", dtype=torch.bfloat16) for size in ((5, 3, 64), (32, 64), (5, 3, 32))
        )
        assert float8.linear(x, weight, form).shape == gradient.shape
        saved = types.SimpleNamespace(
            saved_tensors=(x, weight), form=form, exchanges=float8.Exchanges(), needs_input_grad=(True, True)
        )
        of_x, of_weight, *_ = float8._Linear.backward(saved, gradient)
        assert (of_x.shape, of_weight.shape) == (x.shape, weight.shape)
        with pytest.raises(RuntimeError, match="divisible by 16"):
            float8.linear(x[..., :60], weight[:, :60], form)


def test_a_compiler_sees_one_graph_and_traces_once_more_for_other_lengths():
    """Traced alone, since a CPU has no such kernel."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lambda *arguments: (torch.empty(6, 3, 2, 16, dtype=torch.bfloat16),)

    attend = torch.compile(lambda *x: attention.attend(*x) * 1, fullgraph=True, backend=backend)
    q, k, v = (torch.randn(length, 3, 2, 16).bfloat16() for length in (6, 10, 10))
    for lengths in ([10, 7, 3], [10, 7, 2], [9, 4, 1], [1, 1, 1]):
        keep = torch.arange(10)[None] < torch.tensor(lengths)[:, None]
        starts = F.pad(keep.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        attend(q, k, v, attention.RealKeys(keep, keep.flatten().nonzero().squeeze(1), starts))
    assert len(graphs) == 2
    assert all("_varlen_attn" in graph.code for graph in graphs)
    torch.compiler.reset()
