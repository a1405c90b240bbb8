"""The original's numbers on a simulated NPU: the goldens of the denoiser, the autoencoder and the optimizer."""

import json

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
