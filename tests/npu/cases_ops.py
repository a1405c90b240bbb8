"""Each operator of `ops/` on a simulated NPU beside its plain twin on the CPU, forward and backward."""

from collections.abc import Callable

import torch
from simulation.device import OnHost
from simulation.trace import Trace
from torch import Tensor

from mindspeed_mm.ops import norms, rope3d
from mindspeed_mm.platforms.npu import NpuPlatform

EXTENT = (2, 3, 4)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm_inputs(dtype: torch.dtype) -> list[Tensor]:
    return [draw(6, 2, 3, 32, dtype=dtype), 1 + 0.1 * draw(32, dtype=dtype, seed=1), 0.1 * draw(32, dtype=dtype, seed=2)]


def rotation(rotate: Callable) -> Callable:
    """rotate(x, cos, sin) as a function of x alone."""

    def apply(x: Tensor) -> Tensor:
        return rotate(x, *rope3d.tables(EXTENT, x.shape[-1], device=x.device))

    return apply


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
}


def compare(name: str, dtype: torch.dtype) -> dict[str, float]:
    """Largest relative difference of a case's output and gradients from its twin's."""
    fused, plain, make = CASES[name]
    device = NpuPlatform("off").device(0)
    wanted = _with_gradients(plain, make(dtype))
    with OnHost():
        found = _with_gradients(fused, [x.to(device) for x in make(dtype)])
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


def _with_gradients(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    weights = draw(*out.shape, dtype=out.dtype, seed=9).to(out.device)
    (out * weights).sum().backward()
    return [out.detach().cpu().float(), *(leaf.grad.cpu().float() for leaf in leaves)]


def _relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
