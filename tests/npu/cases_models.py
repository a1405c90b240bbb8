"""The golden cases of the denoiser, the autoencoder and the optimizer on a simulated NPU."""

import dataclasses
import json
from pathlib import Path

import ema_runs
import torch
from denoiser_cases import Case, relative, run
from simulation.device import OnHost
from simulation.trace import Trace
from vae_weights import load_case

from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.npu import NpuPlatform

UNIFORM_ROPE_OFFSET = (1, 4, 2)  # what random.seed(3) gave the original in case l


def denoiser(path: Path, masks_are_small: bool = True) -> dict[str, float]:
    """Differences from a golden file: "evaluation" and "training" output (absolute), gradients (relative).

    masks_are_small: False packs the real keys of every attention, as in large problems.
    """
    from mindspeed_mm.ops import ascend

    if not masks_are_small:
        ascend._MASK_ELEMENTS = 0
    device = NpuPlatform("off").device(0)
    case = Case.read(path)
    if path.stem == "j_rope_scale_square":  # see tests/parity/test_denoiser_parity.py
        case.config = dataclasses.replace(case.config, interpolation_scale_w=case.config.interpolation_scale_h)
    offset = UNIFORM_ROPE_OFFSET if path.stem == "l_uniform_rope" else (0, 0, 0)
    with OnHost():
        network = case.network(ParallelContext.current(), device=device)
        with torch.no_grad():
            evaluation = run(network.eval(), _to(case.inputs(), device)).cpu()
        training = run(network.train(), _to(case.inputs(), device), offset)
        (training * case.tensors["in.loss_weight"].to(device)).mean().backward()
        gradients = {name: None if p.grad is None else p.grad.cpu() for name, p in network.named_parameters()}
    found = {
        "evaluation": (evaluation - case.tensors["out"]).abs().max().item(),
        "training": (training.detach().cpu() - case.tensors["out_train"]).abs().max().item(),
    }
    wanted = {key[2:]: value for key, value in case.tensors.items() if key.startswith("g.")}
    return found | {f"gradient of {name}": relative(gradients[name], value) for name, value in wanted.items()}


def _to(inputs: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def autoencoder(folder: Path, name: str) -> dict[str, float]:
    """Largest differences of latents and videos from a golden case of the autoencoder."""
    device = NpuPlatform("off").device(0)
    vae, tensors, _ = load_case(lambda file: folder / file, name)
    clip = tensors["in.x"] if "in.x" in tensors else tensors["in.x_u8"].float() / 255 * 2 - 1
    with OnHost(), torch.no_grad():
        vae = vae.to(device)
        mean, logvar = (x.cpu() for x in vae.encode_moments(clip.to(device)))
        video = vae.decode(tensors["out.latent_mode"].to(device)).cpu()
    found = {"out.mean": mean, "out.logvar": logvar, "out.dec_latent_mode": video}
    return {name: (value - tensors[name]).abs().max().item() for name, value in found.items()}


def ema_adamw(path: Path, name: str, fused: bool) -> tuple[list[dict], dict[str, int]]:
    """What `ema_runs.run` gives for a recorded trace, and the kernels of all its steps.

    fused: with a stand-in for MindSpeed's kernel; otherwise torch's fused AdamW and the average beside it.
    """
    recorded = json.loads(path.read_text())[name]
    kernel = ema_runs.kernel if fused else None
    with OnHost(launch=True), Trace() as trace:
        found = ema_runs.run(recorded, NpuPlatform("off"), kernel, distributed=False)
    return found, trace.counts()
