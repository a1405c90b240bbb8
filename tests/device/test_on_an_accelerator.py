"""The original's numbers on a real GPU or NPU; without one these tests skip. `TEST_DEVICE=cpu` tries the tests themselves.

fp32 without TF32. A device sums in another order than a CPU, so its tolerances are five to ten times those of tests/parity.
"""

import os

import pytest
import torch
from denoiser_cases import CASES, Case, relative, run
from vae_weights import load_case

from mindspeed_mm.ops.attention import attend, real_keys
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.select import select

pytestmark = pytest.mark.device
OUTPUT, GRADIENT, LATENT, VIDEO = 2e-4, 1e-3, 1e-4, 5e-4
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest value
# These two need what their own parity tests say: h's scale for w, and the offset that the original drew.
PLAIN = [name for name in CASES if name not in ("j_rope_scale_square", "l_uniform_rope")]


@pytest.fixture(scope="module")
def device() -> torch.device:
    wanted = os.environ.get("TEST_DEVICE", "auto")
    platform = select(wanted)
    if platform.name == "cpu":
        if wanted == "auto":
            pytest.skip("no GPU or NPU")
        return torch.device("cpu")  # without `prepare`, which would stay for the other tests of this process
    platform.prepare()
    return platform.device(0)


def moved(inputs: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


@pytest.mark.parametrize("name", PLAIN)
def test_the_denoiser_gives_the_originals_outputs_and_gradients(golden, device, name):
    case = Case.read(golden(f"predictor/{name}.safetensors"))
    network = case.network(ParallelContext.current(), device=device)
    with torch.no_grad():
        out = run(network.eval(), moved(case.inputs(), device))
    assert (out.cpu() - case.tensors["out"]).abs().max() < OUTPUT
    out = run(network.train(), moved(case.inputs(), device))
    (out * case.tensors["in.loss_weight"].to(device)).mean().backward()
    assert (out.detach().cpu() - case.tensors["out_train"]).abs().max() < OUTPUT
    gradients = dict(network.named_parameters())
    for key, wanted in case.tensors.items():
        if key.startswith("g."):
            assert relative(gradients[key[2:]].grad.cpu(), wanted) < GRADIENT, key


@pytest.mark.parametrize("name", ["wfvae8_ln_a", "wfvae8_gn_c"])
def test_the_autoencoder_gives_the_originals_latents_and_videos(golden, device, name):
    vae, tensors, _ = load_case(golden, name)
    clip = tensors["in.x"] if "in.x" in tensors else tensors["in.x_u8"].float() / 255 * 2 - 1
    with torch.no_grad():
        mean, _ = vae.to(device).encode_moments(clip.to(device))
        video = vae.decode(tensors["out.latent_mode"].to(device))
    assert (mean.cpu() - tensors["out.mean"]).abs().max() < LATENT
    assert (video.cpu() - tensors["out.dec_latent_mode"]).abs().max() < VIDEO


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("padded", [False, True])
def test_attention_and_its_gradients_equal_a_cpus(device, dtype, padded):
    """Three samples; with padding, one has no real key in its first half."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(tokens, 3, 2, 64, generator=generator) for tokens in (48, 80, 80)]
    keep = None
    if padded:
        keep = torch.arange(80)[None] < torch.tensor([[80], [53], [7]])
        keep[1, :40] = False

    def attended(where: torch.device, floats: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (value.to(where, floats).requires_grad_() for value in drawn)
        out = attend(q, k, v, None if keep is None else real_keys(keep, where))
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), (q, k, v))]

    wanted = attended(torch.device("cpu"), torch.float32)
    for found, plain in zip(attended(device, dtype), wanted, strict=True):
        assert relative(found.cpu().float(), plain) < ROUNDING[dtype]


def test_a_denoisers_step_makes_the_host_wait_for_nothing(golden, device):
    if device.type != "cuda":
        pytest.skip("torch reports waiting for CUDA alone")
    case = Case.read(golden(f"predictor/{PLAIN[0]}.safetensors"))
    network = case.network(ParallelContext.current(), device=device).train()
    inputs = case.inputs()
    on_device = moved({name: value for name, value in inputs.items() if not name.endswith("keep")}, device)
    for _ in range(2):  # the first one makes tables
        out = run(network, {**inputs, **on_device})  # masks stay on the host, as in training
        torch.cuda.set_sync_debug_mode("error")
        try:
            out.square().mean().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
