"""Each operator of `ops/` on a simulated NPU beside its plain twin on the CPU, forward and backward."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from simulation.device import OnHost
from simulation.trace import Trace
from torch import Tensor

from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.ops import ascend, attention, norms, rope3d
from mindspeed_mm.platforms.npu import NpuPlatform

EXTENT = (2, 3, 4)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm_inputs(dtype: torch.dtype) -> list[Tensor]:
    return [
        draw(6, 2, 3, 32, dtype=dtype),
        1 + 0.1 * draw(32, dtype=dtype, seed=1),
        0.1 * draw(32, dtype=dtype, seed=2),
    ]


def rotation(rotate: Callable) -> Callable:
    """rotate(x, cos, sin) as a function of x alone."""

    def apply(x: Tensor) -> Tensor:
        return rotate(x, *rope3d.tables(EXTENT, x.shape[-1], device=x.device))

    return apply


# ------------------------------------------------------------------------------------------------------------ attention

SAMPLES, QUERIES, KEYS, HEADS, DIM = 3, 6, 10, 2, 16


def attention_inputs(dtype: torch.dtype) -> list[Tensor]:
    """q [S,B,H,D], k and v [L,B,H,D]. Scores of several units: a missing scale or mask changes much."""
    shapes = [(QUERIES, SAMPLES, HEADS, DIM), (KEYS, SAMPLES, HEADS, DIM), (KEYS, SAMPLES, HEADS, DIM)]
    return [draw(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def kept() -> Tensor:
    """[B,L]: holes in the middle, a padded end, and a sample without any real key."""
    keep = torch.ones(SAMPLES, KEYS, dtype=torch.bool)
    keep[0, 3:5] = False
    keep[1, 7:] = False
    keep[2] = False
    return keep


def masked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention.attend(q, k, v, attention.real_keys(kept(), q.device))


def packed_attention(keys_on: Callable[[torch.device], attention.RealKeys]) -> Callable:
    """`attend` as for a problem too large for a mask."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        limit, ascend._MASK_ELEMENTS = ascend._MASK_ELEMENTS, 0
        try:
            return attention.attend(q, k, v, keys_on(q.device))
        finally:
            ascend._MASK_ELEMENTS = limit

    return attend


def mask_alone(device: torch.device) -> attention.RealKeys:
    """Keys whose places nobody has found before."""
    return attention.RealKeys(attention.with_some(kept().to(device)))


def plain_masked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Written out: no kernel, and the mask as numbers."""
    keep = kept().to(q.device)
    keep[2] = True  # no real key: all of them
    scores = torch.einsum("sbhd,lbhd->bhsl", q.float(), k.float()) / DIM**0.5
    weights = scores.add(torch.where(keep, 0.0, -1e9)[:, None, None]).softmax(-1)
    return torch.einsum("bhsl,lbhd->sbhd", weights, v.float()).to(q.dtype)


def heads_first_inputs(dtype: torch.dtype) -> list[Tensor]:
    return [x.permute(1, 2, 0, 3).contiguous() for x in attention_inputs(dtype)]


def hidden(device: torch.device) -> Tensor:
    """[S,L] bool, True where masked out; no row is masked out whole."""
    return torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(2).to(device)


# --------------------------------------------------------------------------------------------------------- convolutions


def causal_conv(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The autoencoder's own layer, with these weights."""
    layer = CausalConv3d(video.shape[1], weight.shape[0])
    parameters = {"conv.weight": weight, "conv.bias": bias}
    return torch.func.functional_call(layer.to(video.device, video.dtype), parameters, (video, Chunk()))


def convolution(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same, as one convolution of a padded video."""
    before = video[:, :, :1].repeat(1, 1, 2, 1, 1)
    return F.conv3d(torch.cat((before, video), dim=2), weight, bias, padding=(0, 1, 1))


def conv_inputs(dtype: torch.dtype) -> list[Tensor]:
    return [
        draw(1, 3, 3, 6, 5, dtype=dtype),
        0.2 * draw(4, 3, 3, 3, 3, dtype=dtype, seed=1),
        draw(4, dtype=dtype, seed=2),
    ]


# name -> (function on the NPU, its twin on the CPU, the inputs that get gradients)
CASES: dict[str, tuple[Callable, Callable, Callable[[torch.dtype], list[Tensor]]]] = {
    "layer_norm": (
        lambda x, w, b: norms.layer_norm(x, w, b, 1e-6),
        lambda x, w, b: norms.plain_layer_norm(x, w, b, 1e-6),
        norm_inputs,
    ),
    "rms_norm": (
        lambda x, w: norms.rms_norm(x, w, 1e-6),
        lambda x, w: norms.plain_rms_norm(x, w, 1e-6),
        lambda dtype: norm_inputs(dtype)[:2],
    ),
    "rotate": (rotation(rope3d.rotate), rotation(rope3d.plain_rotate), lambda dtype: [draw(24, 2, 3, 16, dtype=dtype)]),
    "attention": (
        lambda q, k, v: attention.attend(q, k, v, None),
        lambda q, k, v: attention.plain_attend(q, k, v, None),
        attention_inputs,
    ),
    "attention_masked": (masked_attention, plain_masked_attention, attention_inputs),
    "attention_packed": (
        packed_attention(lambda device: attention.real_keys(kept(), device)),
        plain_masked_attention,
        attention_inputs,
    ),
    "attention_mask_alone_packed": (packed_attention(mask_alone), plain_masked_attention, attention_inputs),
    "attention_heads_first": (attention.attend_frames, F.scaled_dot_product_attention, heads_first_inputs),
    "attention_heads_first_masked": (
        lambda q, k, v: ascend.attend_heads_first(q, k, v, hidden(q.device)),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden(q.device)),
        heads_first_inputs,
    ),
    "causal_conv": (causal_conv, convolution, conv_inputs),
}


def compare(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Largest difference of a case's output and gradients from its twin's in fp32, relative to the largest value."""
    fused, plain, make = CASES[name]
    device = NpuPlatform("off").device(0)
    wanted = _with_gradients(plain, [x.float() for x in make(dtype)], torch.float32)
    with OnHost():
        found = _with_gradients(fused, [x.to(device) for x in make(dtype)], dtype)
    names = ["output", *(f"gradient {index}" for index in range(len(found) - 1))]
    return {label: _relative(f, w) for label, f, w in zip(names, found, wanted, strict=True)}


def kernels(name: str, plain: bool = False) -> list[str]:
    """Kernels of a case's forward pass in bf16, by name."""
    fused, twin, make = CASES[name]
    device = NpuPlatform("off").device(0)
    inputs = [x.to(device) for x in make(torch.bfloat16)]
    with Trace() as trace:
        (twin if plain else fused)(*inputs)
    return [kernel.name for kernel in trace.kernels]


def _with_gradients(function: Callable, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    assert out.dtype == dtype, out.dtype
    weights = draw(*out.shape, seed=9).to(torch.bfloat16).to(out.device, dtype)
    (out * weights).sum().backward()
    assert all(leaf.grad.dtype == dtype for leaf in leaves)
    return [out.detach().cpu().float(), *(leaf.grad.cpu().float() for leaf in leaves)]


def _relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
