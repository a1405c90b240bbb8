"""The golden cases of the denoiser and the autoencoder on a simulated NPU."""

from pathlib import Path

import torch
from denoiser_cases import Case, relative, run
from simulation.device import OnHost

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.npu import NpuPlatform

UNIFORM_ROPE_OFFSET = (1, 4, 2)  # what random.seed(3) gave the original in case l


def denoiser(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Largest differences from each golden file: "evaluation" and "training" output (absolute), gradients (relative)."""
    device = NpuPlatform("off").device(0)
    parallel = ParallelContext.current()
    with OnHost():
        return {path.stem: _denoiser_case(Case.read(path), parallel, device) for path in paths}


def _denoiser_case(case: Case, parallel: ParallelContext, device: torch.device) -> dict[str, float]:
    if case.meta["name"].startswith("j_") if "name" in case.meta else False:
        raise AssertionError
    network = case.network(parallel, device=device)
    offset = (0, 0, 0)
    with torch.no_grad():
        evaluation = run(network.eval(), _to(case.inputs(), device)).cpu()
    inputs = _to(case.inputs(), device, requires_grad=True)
    out = run(network.train(), inputs, offset)
    loss = (out * case.tensors["in.loss_weight"].to(device)).mean()
    loss.backward()
    found = {
        "evaluation": (evaluation - case.tensors["out"]).abs().max().item(),
        "training": (out.detach().cpu() - case.tensors["out_train"]).abs().max().item(),
    }
    for name, parameter in network.named_parameters():
        if f"g.{name}" in case.tensors:
            found[name] = relative(parameter.grad.cpu(), case.tensors[f"g.{name}"])
    return found


def _to(inputs: dict[str, torch.Tensor], device: torch.device, requires_grad: bool = False) -> dict[str, torch.Tensor]:
    moved = {name: value.to(device) for name, value in inputs.items()}
    return {name: value.requires_grad_(requires_grad and value.is_floating_point()) for name, value in moved.items()}
