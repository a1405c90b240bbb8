"""A small model on disk with random weights, to sample from: encoders, denoiser, autoencoder and their JSON."""

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples" / "quickstart"), str(ROOT / "tests" / "config")]

import config_files  # noqa: E402
from tiny_encoders import write_encoders  # noqa: E402

import mindspeed_mm as mm  # noqa: E402
from mindspeed_mm.diffusion import guidance  # noqa: E402

TEXTS = ["a red circle", "a blue square moving up", "a green triangle", "high quality, worst quality, blurry"]


def write_world(folder: Path) -> Path:
    """Write t5, clip, vae.pt, model.pt and sample.json (9 frames of 32x32, 4 steps); returns `folder`."""
    write_encoders(folder, TEXTS)
    torch.manual_seed(0)
    torch.save(mm.build_autoencoder(config_files.AUTOENCODER).state_dict(), folder / "vae.pt")
    denoiser = mm.build_denoiser(config_files.PREDICTOR, seed=1)
    with torch.no_grad():
        denoiser.proj_out.weight.mul_(4)  # so that prompt, guidance and steps show in the pixels
    torch.save({name: value for name, value in denoiser.state_dict().items() if value is not None}, folder / "model.pt")
    block = config_files.sample_block(folder)
    block["save_path"] = str(folder / "samples")
    (folder / "sample.json").write_text(json.dumps(block, indent=1))
    return folder


OVERFLOWS = 9999.0  # a guidance scale with which, inside `overflowing`, velocities leave fp32's range


def overflowing(monkeypatch) -> None:
    """Make guidance overflow from its second step on at the scale OVERFLOWS, as a far larger one would by itself."""
    combine, steps = guidance.combine, []

    def once_more(unconditional, conditional, scale, rescale=0.0):
        if scale == OVERFLOWS:
            steps.append(scale)
        return combine(
            unconditional, conditional, float("inf") if len(steps) > 1 and scale == OVERFLOWS else scale, rescale
        )

    monkeypatch.setattr(guidance, "combine", once_more)
