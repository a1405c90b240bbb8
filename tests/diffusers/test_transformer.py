"""The transformer of diffusers computes what the network of the package computes, whatever the config says."""

import dataclasses
from unittest import mock

import pytest
import torch
from ranks import run_ranks
from tiny_denoiser import CONFIG

import mindspeed_mm as mm
from mindspeed_mm.diffusers import SparseUMMDiTTransformer3DModel
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.types import ImageFeatures, TextFeatures

VARIANTS = {
    "as it is": {},
    "one feed-forward": {"double_ff": False, "attention_bias": False, "activation_fn": "gelu"},
    "rms": {"norm_cls": "rms_norm", "skip_connection_zero_init": False},
    "no skips, dense": {"skip_connection": False, "sparse1d": False},
    "images": {"image_mask_channels": 8, "interpolation_scale_h": 2.0},
}


def twins(changes: dict, dtype: str = "fp32"):
    """The network of the package with all weights away from zero, and the transformer with these weights."""
    config = dataclasses.replace(CONFIG, **changes)
    network = mm.build_denoiser(config, dtype=dtype, seed=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(parameter.numel())))
    fields = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("model_id", "from_pretrained")
    }
    transformer = SparseUMMDiTTransformer3DModel(**fields).to(next(network.parameters()).dtype)
    transformer.load_state_dict({name: value for name, value in network.state_dict().items() if value is not None})
    return network.eval(), transformer.eval()


def inputs(config, size=(2, 4, 6), batch=2):
    """Latents, sigma, text of 5 tokens of which the second sample has 3, and an image condition."""
    draw = torch.manual_seed(0)
    latents = torch.randn((batch, config.in_channels, *size), generator=draw)
    text = torch.randn((batch, 5, config.caption_channels), generator=draw)
    keep = torch.ones((batch, 5), dtype=torch.bool)
    keep[1, 3:] = False
    pooled = torch.randn((batch, config.pooled_projection_dim), generator=draw)
    image = ImageFeatures(torch.randn(latents.shape, generator=draw), torch.rand((batch, 8, *size), generator=draw))
    return latents, torch.tensor([0.25, 0.75]), TextFeatures(text, keep, pooled), image


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_velocity_is_that_of_the_package(changes):
    network, transformer = twins(changes)
    latents, sigma, text, image = inputs(network.config)
    with_image = network.config.image_mask_channels > 0
    with torch.no_grad():
        wanted = network(latents, sigma, Conditions(text, image if with_image else None))
        given = {"image_condition": torch.cat((image.latents, image.mask), 1)} if with_image else {}
        found = transformer(latents, 1000 * sigma, text.sequence, text.pooled, text.keep, **given).sample
        assert torch.equal(found, wanted)
        found = transformer(latents, 1000 * sigma, text.sequence, text.pooled, None, return_dict=False)[0]
        assert not torch.equal(found, wanted)  # with padding as words


def test_in_bf16():
    network, transformer = twins({}, "bf16")
    latents, sigma, text, _ = inputs(network.config)
    with torch.no_grad():
        wanted = network(latents, sigma, text)
        text = text.to(dtype=torch.bfloat16)
        found = transformer(latents.bfloat16(), 1000 * sigma, text.sequence, text.pooled, text.keep).sample
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted)


def test_checkpointing_changes_no_gradient():
    _, transformer = twins({})
    latents, sigma, text, _ = inputs(CONFIG)
    gradients = []
    for checkpointing in (False, True):
        transformer.train().zero_grad()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer(latents, 1000 * sigma, text.sequence, text.pooled, text.keep).sample.square().mean().backward()
        gradients.append({name: value.grad.clone() for name, value in transformer.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], value, atol=1e-6) for name, value in gradients[1].items())
    unused = {name for name, value in gradients[0].items() if not value.any()}
    assert {name.rpartition(".")[0] for name in unused} == {  # the last block has no output for its text's queries
        "transformer_blocks.2.1.attn1.add_q_proj",
        "transformer_blocks.2.1.attn1.norm_added_q",
    }


def test_weights_and_settings_come_back(tmp_path):
    _, transformer = twins(VARIANTS["rms"])
    transformer.save_pretrained(tmp_path, max_shard_size="100KB")
    again, said = SparseUMMDiTTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()) and len(list(tmp_path.glob("*.safetensors"))) > 1
    assert again.settings == transformer.settings
    assert all(torch.equal(again.state_dict()[name], value) for name, value in transformer.state_dict().items())


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="num_layers.*odd number"):
        SparseUMMDiTTransformer3DModel(in_channels=4, caption_channels=8, num_layers=(2, 2), sparse_n=(1, 1))
    with pytest.raises(TypeError, match="num_layer"):
        SparseUMMDiTTransformer3DModel(in_channels=4, caption_channels=8, num_layer=(2, 2, 2))
    _, transformer = twins({})
    latents, sigma, text, _ = inputs(CONFIG)
    with pytest.raises(ValueError, match="4x5: height and width must be multiples of 2"):
        transformer(latents[..., :5], 1000 * sigma, text.sequence, text.pooled)
    with pytest.raises(ValueError, match="no inputs for it"):
        transformer(latents, 1000 * sigma, text.sequence, text.pooled, image_condition=latents)


def parallel_velocity(settings: dict, state: dict, size: tuple[int, ...]) -> torch.Tensor:
    """The velocity of `inputs` on this rank of a world that shares each video."""
    from diffusers import ContextParallelConfig

    transformer = SparseUMMDiTTransformer3DModel(**settings).eval()
    transformer.load_state_dict(state)
    with mock.patch("torch.accelerator.device_count", lambda: 1):  # diffusers divides by it, and a CPU has none
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    latents, sigma, text, _ = inputs(transformer.settings, size)
    with torch.no_grad():
        return transformer(latents, 1000 * sigma, text.sequence, text.pooled, text.keep).sample


def test_two_ranks_share_a_video():
    """Five text tokens, so one is padded; the masks hide it and the second sample's padding."""
    _, transformer = twins({})
    size = (2, 4, 8)
    latents, sigma, text, _ = inputs(transformer.settings, size)
    with torch.no_grad():
        wanted = transformer(latents, 1000 * sigma, text.sequence, text.pooled, text.keep).sample
        other = transformer(latents, 1000 * sigma, text.sequence, text.pooled).sample
    settings = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    for found in run_ranks(parallel_velocity, 2, settings, transformer.state_dict(), size):
        assert (found - wanted).abs().max() < 1e-5
        assert (found - other).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="multiple of 8"):  # 2 ranks x sparsity 2 x 2
        run_ranks(parallel_velocity, 2, settings, transformer.state_dict(), (2, 4, 6))
