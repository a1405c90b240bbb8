"""The original's numbers on a simulated NPU: the goldens of the denoiser, the autoencoder and the optimizer."""

import json

import cases_host
import cases_models
import pytest
from denoiser_cases import CASES, GRADIENT, OUTPUT
from test_ema_adamw import TRACES, compare

LATENT, VIDEO = 1e-5, 5e-5


def check_denoiser(found: dict[str, float]) -> None:
    assert len(found) > 20
    for what, difference in found.items():
        assert difference < (GRADIENT if what.startswith("gradient") else OUTPUT), what


@pytest.mark.parametrize("name", CASES)
def test_denoiser(npu, golden, name):
    check_denoiser(npu.one(cases_models.denoiser, golden(f"predictor/{name}.safetensors")))


@pytest.mark.parametrize("name", ["b_5stage_notdiv_vmask", "d_single_ff", "n_text_all_masked", "o_video_all_masked"])
def test_denoiser_with_packed_keys(npu, golden, name):
    check_denoiser(npu.one(cases_models.denoiser, golden(f"predictor/{name}.safetensors"), False))


@pytest.mark.parametrize("name", ["wfvae8_ln_a", "wfvae8_gn_c", "wfvae8_ln_noattn_e"])
def test_autoencoder(npu, golden, name):
    folder = golden(f"vae/{name}.json").parents[1]
    golden(f"vae/{name}.safetensors")
    for what, difference in npu.one(cases_models.autoencoder, folder, name).items():
        assert difference < (VIDEO if "dec" in what else LATENT), what


@pytest.mark.parametrize("fused", [False, True], ids=["twin", "MindSpeed's kernel"])
@pytest.mark.parametrize("trace", TRACES)
def test_ema_adamw(npu, golden, trace, fused):
    path = golden("predictor/ema_adamw.json")
    found, kernels = npu.one(cases_models.ema_adamw, path, trace, fused)
    wanted = json.loads(path.read_text())[trace]["trace"]
    compare(found, wanted)
    assert kernels.get("aclnnApplyAdamWV2", 0) == (0 if fused else len(wanted))


def test_streamed_blocks_move_from_the_host_and_change_no_gradient(npu):
    """Each pass moves the blocks that are not there: in the backward pass those that the forward pass began with. Only the
    very first block is waited for. Attaching the adapters has left the last two blocks on the device.
    """
    equal, sizes, moved = npu.one(cases_host.both_ways, None)
    assert equal
    assert len(sizes) == 3
    beside = sizes[2] + sizes[0]
    assert moved == [(sizes[0] + beside, beside), (beside, beside)]


def test_an_update_brings_the_optimizers_state_from_the_host_and_changes_no_number(npu):
    assert npu.one(cases_host.offloaded) == (True, {"cpu"})
