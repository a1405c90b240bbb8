"""WFVAE as a whole: names, shapes, causality, and what the numbers mean."""

import dataclasses
import json

import pytest
import torch
from small_vae import TINY, TINY_4, TINY_8, make_vae, random_latents, random_video, whole

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.wfvae import WFVAE
from mindspeed_mm.schema import build, node_from_python

# ------------------------------------------------------------------------------------------------- names and building


def test_v1_5_state_dict_is_the_released_one(golden):
    facts = json.loads(golden("vae/wfvae_v1_5_keys.json").read_text())
    with torch.device("meta"):
        vae = WFVAE(build(WFVAEConfig, node_from_python(facts["config"], "ae")))
    parameters = dict(vae.named_parameters())
    table = [
        {
            "key": f"model.{key}",
            "shape": list(value.shape),
            "kind": "parameter" if key in parameters else "buffer",
            "dtype": str(value.dtype),
            "requires_grad": parameters[key].requires_grad if key in parameters else None,
        }
        for key, value in vae.state_dict().items()
    ]
    assert table == [row for row in facts["keys"] if row["key"] not in ("shift", "scale")]
    assert vae.shift.shape == vae.scale.shape == (1, 32, 1, 1, 1)


def test_v1_5_parameter_counts_are_the_published_ones(golden):
    facts = json.loads(golden("vae/wfvae_v1_5_keys.json").read_text())
    with torch.device("meta"):
        vae = WFVAE(build(WFVAEConfig, node_from_python(facts["config"], "ae")))
    assert all(tensor.is_meta for tensor in (*vae.parameters(), *vae.buffers()))
    assert sum(p.numel() for p in vae.parameters()) == facts["n_params_all"] == 227_035_816
    assert sum(p.numel() for p in vae.encoder.parameters()) == facts["n_params_encoder"]
    assert sum(p.numel() for p in vae.decoder.parameters()) == facts["n_params_decoder"]
    trained = sum(p.numel() for p in vae.parameters() if p.requires_grad)
    assert trained == facts["n_params_trainable_initially"]


def test_a_module_built_on_meta_becomes_equal_by_loading():
    source = make_vae(TINY_8)
    with torch.device("meta"):
        vae = WFVAE(TINY_8).eval()
    vae = vae.to_empty(device="cpu")
    vae.load_state_dict(source.state_dict())
    vae.reset_statistics("cpu")
    video = random_video(9)
    with torch.no_grad():
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        assert torch.equal(vae.encode(video, generators[0]), source.encode(video, generators[1]))


def test_4x8x8_names_follow_the_config():
    shapes = {key: list(value.shape) for key, value in WFVAE(TINY_4).state_dict().items()}
    assert shapes["encoder.down1.2.conv.weight"] == [8, 8, 3, 3]
    assert shapes["encoder.connect_l1.weight"] == [8, 12, 3, 3]
    assert shapes["encoder.connect_l2.weight"] == [8, 24, 3, 3]
    assert shapes["encoder.wavelet_transform_l1.ad"] == [1, 1, 2, 2]
    assert shapes["decoder.up1.1.conv.weight"] == [16, 16, 3, 3]
    assert shapes["decoder.up2.1.conv.conv.weight"] == [32, 32, 3, 3, 3]
    assert shapes["decoder.connect_l1.1.weight"] == [12, 8, 3, 3]
    assert shapes["decoder.connect_l2.1.weight"] == [24, 8, 3, 3]
    assert shapes["decoder.inverse_wavelet_transform_l1.dd"] == [1, 1, 2, 2]
    assert shapes["decoder.inverse_wavelet_transform_l2.gh_v"] == [1, 1, 2, 2, 2]


def test_kernels_of_the_checkpoint_are_the_kernels_used(vae):
    changed = whole(vae)
    state = {key: 2 * value if "wavelet_transform_l2" in key else value for key, value in vae.state_dict().items()}
    changed.load_state_dict(state)
    video, z = random_video(9), random_latents(3)
    with torch.no_grad():
        assert not torch.allclose(changed.encode_moments(video)[0], vae.encode_moments(video)[0])
        assert not torch.allclose(changed.decode(z), vae.decode(z))


def test_an_impossible_config_is_refused():
    with pytest.raises(ConfigError, match="use_tiling"):
        WFVAE(WFVAEConfig(base_channels=32, norm_type="groupnorm", use_tiling=True))


# ------------------------------------------------------------------------------------------------- shapes and refusals


def test_shapes_of_a_round_trip(vae):
    stride_t = vae.strides[0]
    for latents in (1, 2, 3):
        frames = (latents - 1) * stride_t + 1
        with torch.no_grad():
            z = vae.encode(random_video(frames, 16, 24, batch=2))
            assert z.shape == (2, 4, latents, 2, 3)
            assert vae.decode(z).shape == (2, 3, frames, 16, 24)


@pytest.mark.parametrize("name", ["encode", "encode_moments", "decode", "decode_unscaled"])
@pytest.mark.parametrize("shape", [(3, 9, 16, 16), (1, 5, 9, 16, 16), (0, 3, 9, 16, 16)])
def test_wrong_shapes_are_named(vae8, name, shape):
    with pytest.raises(ValueError, match=str(list(shape)).replace("[", r"\[").replace("]", r"\]")):
        getattr(vae8, name)(torch.zeros(shape))


def test_integer_frames_are_refused(vae8):
    with pytest.raises(ValueError, match="torch.uint8.*127.5"):
        vae8.encode(torch.zeros(1, 3, 9, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((16, 16, 16), "use 9 or 17"), ((9, 12, 16), "12x16.*multiples of 8"), ((9, 16, 20), "16x20.*multiples of 8")],
)
def test_lengths_and_sizes_that_the_strides_do_not_divide_are_refused(vae8, shape, message):
    with pytest.raises(ConfigError, match=message):
        vae8.encode(torch.zeros(1, 3, *shape))


def test_inputs_are_computed_in_the_dtype_of_the_weights(vae8):
    low = whole(vae8).bfloat16()
    with torch.no_grad():
        z = low.encode(random_video(9))
        assert z.dtype == torch.bfloat16
        assert low.decode(z.float()).dtype == torch.bfloat16
        exact = vae8.encode_moments(random_video(9))[0]
        assert (low.encode_moments(random_video(9))[0].float() - exact).norm() < 0.05 * exact.norm()


# ---------------------------------------------------------------------------------------------- what the numbers mean


def test_a_later_frame_does_not_change_earlier_latents(vae):
    stride_t = vae.strides[0]
    video = random_video(2 * stride_t + 1)
    changed = video.clone()
    changed[:, :, stride_t + 1 :] += 1
    with torch.no_grad():
        before, after = whole(vae).encode_moments(video)[0], whole(vae).encode_moments(changed)[0]
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2:], after[:, :, 2:])


def test_a_later_latent_changes_no_frame_before_its_neighbour(vae):
    """Interpolation over time looks ahead by less than one latent."""
    z = random_latents(5)
    changed = z.clone()
    changed[:, :, 4:] += 1
    with torch.no_grad():
        before, after = whole(vae).decode(z), whole(vae).decode(changed)
    assert torch.equal(before[:, :, : 2 * vae.strides[0] + 1], after[:, :, : 2 * vae.strides[0] + 1])
    assert not torch.allclose(before[:, :, -vae.strides[0] :], after[:, :, -vae.strides[0] :])


def test_the_first_frame_is_encoded_as_an_image(vae):
    video = random_video(2 * vae.strides[0] + 1)
    with torch.no_grad():
        clip, image = vae.encode_moments(video)[0], vae.encode_moments(video[:, :, :1])[0]
    torch.testing.assert_close(clip[:, :, :1], image, atol=1e-6, rtol=0)


def test_samples_of_a_batch_do_not_mix(vae):
    videos = random_video(2 * vae.strides[0] + 1, batch=2)
    with torch.no_grad():
        both = vae.encode_moments(videos)[0]
        alone = torch.cat([vae.encode_moments(video[None])[0] for video in videos])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=0)


def test_encode_samples_the_posterior_then_shifts_and_scales(vae8):
    video = random_video(17)
    with torch.no_grad():
        mean, logvar = vae8.encode_moments(video)
        latents = vae8.encode(video, torch.Generator().manual_seed(3))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    shift = torch.tensor(TINY.shift).view(1, 4, 1, 1, 1)
    scale = torch.tensor(TINY.scale).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(latents, (mean + (0.5 * logvar).exp() * noise - shift) * scale)


def test_a_generator_decides_the_sample_alone(vae8):
    video = random_video(9)
    with torch.no_grad():
        torch.manual_seed(0)
        first = vae8.encode(video, torch.Generator().manual_seed(5))
        state = torch.get_rng_state()
        torch.manual_seed(1)
        assert torch.equal(vae8.encode(video, torch.Generator().manual_seed(5)), first)
        assert not torch.equal(vae8.encode(video, torch.Generator().manual_seed(6)), first)
        torch.manual_seed(0)
        assert torch.equal(torch.get_rng_state(), state)  # the global generator was not used
        without = vae8.encode(video)
        torch.manual_seed(0)
        assert torch.equal(vae8.encode(video), without)


def test_logvar_is_clamped(vae8):
    extreme = whole(vae8)
    with torch.no_grad():
        extreme.encoder.conv_out.conv.weight *= 1e4
        _, logvar = extreme.encode_moments(random_video(1))
    assert logvar.min() == -30 and logvar.max() == 20


def test_decode_undoes_shift_and_scale(vae8):
    z = random_latents(2)
    with torch.no_grad():
        assert torch.allclose(vae8.decode((z - vae8.shift) * vae8.scale), vae8.decode_unscaled(z), atol=1e-5)


def test_without_statistics_latents_are_the_posterior():
    vae = WFVAE(dataclasses.replace(TINY_8, scale=None, shift=None))
    assert torch.equal(vae.shift, torch.zeros(1, 4, 1, 1, 1)) and torch.equal(vae.scale, torch.ones(1, 4, 1, 1, 1))


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("tiling", [False, True])
def test_gradients_reach_every_trained_parameter_and_no_kernel(vae, tiling):
    network = WFVAE(dataclasses.replace(vae.config, use_tiling=tiling))
    network.load_state_dict(vae.state_dict())
    video = random_video(2 * vae.strides[0] + 1).requires_grad_()
    network.decode(network.encode(video)).square().mean().backward()
    missing = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    # A key's bias shifts all of a query's scores alike, so softmax does not see it.
    assert [name for name in missing if not name.endswith("mid.1.k.conv.bias")] == []
    assert all(p.grad is None for name, p in network.named_parameters() if "wavelet_transform" in name)
    assert video.grad.abs().sum() > 0
