"""Known pixels as the denoiser takes them: masks on the latent grid, latents, and inputs that begin at zero."""

import dataclasses

import pytest
import torch
from small_vae import TINY_8
from tiny_denoiser import CONFIG

from mindspeed_mm.config.image_conditions import Known
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.models import image_conditions
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.models.denoiser import Conditions
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.types import ImageFeatures, TextFeatures
from mindspeed_mm.weights import load_denoiser

IMAGES = dataclasses.replace(CONFIG, image_mask_channels=8)
STRIDES = (8, 8, 8)


def network(config, seed=1):
    return build_denoiser(config, ParallelContext.current(), seed=seed)


def inputs():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    text = TextFeatures(draw(2, 5, 12), torch.ones(2, 5, dtype=torch.bool), draw(2, 6))
    image = ImageFeatures(draw(2, 4, 3, 8, 8), torch.rand(2, 8, 3, 8, 8, generator=generator))
    return draw(2, 4, 3, 8, 8), torch.tensor([0.3, 0.7]), text, image


@torch.no_grad()
def test_new_inputs_begin_as_text_to_video_bit_for_bit():
    latents, sigma, text, image = inputs()
    plain, shown = network(CONFIG), network(IMAGES)
    wanted = plain(latents, sigma, text)
    assert torch.equal(shown(latents, sigma, Conditions(text, image)), wanted)
    shown.image_embed.proj.weight.normal_(0, 0.1)
    assert not torch.equal(shown(latents, sigma, Conditions(text, image)), wanted)
    nothing = image.map(torch.zeros_like)
    assert torch.equal(shown(latents, sigma, text), wanted)  # nothing shown, whatever was learned
    assert torch.equal(shown(latents, sigma, Conditions(text, nothing)), wanted)


@torch.no_grad()
def test_weights_of_text_to_video_are_loaded_and_the_new_inputs_begin_at_zero(tmp_path, caplog):
    plain, shown = network(CONFIG, seed=7), network(IMAGES)
    shown.image_embed.proj.weight.normal_()
    torch.save(plain.state_dict(), tmp_path / "model.pt")
    load_denoiser(shown, tmp_path / "model.pt")
    assert "image_embed.proj.weight: begins at 0" in caplog.text
    latents, sigma, text, image = inputs()
    assert torch.equal(shown(latents, sigma, Conditions(text, image)), plain(latents, sigma, text))
    torch.save(shown.state_dict(), tmp_path / "shown.pt")
    with pytest.raises(CheckpointError, match="image_mask_channels is 8 by the weights, 0 in the config"):
        load_denoiser(plain, tmp_path / "shown.pt")
    without = {name: value for name, value in shown.state_dict().items() if name != "norm_final.weight"}
    torch.save(without, tmp_path / "damaged.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(norm_final.weight\)"):  # nothing else may be missing
        load_denoiser(shown, tmp_path / "damaged.pt")


def test_an_image_of_another_shape_or_for_a_network_without_inputs_is_refused():
    latents, sigma, text, image = inputs()
    with pytest.raises(ValueError, match="no inputs for it"):
        network(CONFIG)(latents, sigma, Conditions(text, image))
    with pytest.raises(ValueError, match=r"mask \[2, 8, 2, 8, 8\]; need .* and \[2, 8, 3, 8, 8\]"):
        wrong = dataclasses.replace(image, mask=image.mask[:, :, :2])
        network(IMAGES)(latents, sigma, Conditions(text, wrong))


def test_the_mask_tells_which_frames_of_a_latent_are_known():
    mask = image_conditions.latent_mask(image_conditions.pixel_mask(Known((0, 3, 16)), (17, 16, 16))[None], STRIDES)
    assert mask.shape == (1, 8, 3, 2, 2)
    assert mask[0, :, 0].eq(1).all()  # the first frame fills its own latent
    assert mask[0, :, 1, 0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]  # frames 1 to 8
    assert mask[0, :, 2, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_a_latent_that_is_hidden_in_part_says_its_share():
    pixels = image_conditions.pixel_mask(Known(tuple(range(9)), (0, 4, 16, 8)), (9, 16, 16))
    mask = image_conditions.latent_mask(pixels[None], STRIDES)
    assert mask[0, :, :, 0].eq(0.5).all() and pixels.sum() == 9 * 16 * 8


def test_known_pixels_alone_are_encoded_and_unknown_latents_are_zero():
    autoencoder = build_autoencoder(dataclasses.replace(TINY_8, scale=None, shift=None))
    pixels = image_conditions.pixel_mask(Known((0,)), (17, 32, 32))[None]
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 1, 3, 17, 32, 32, generator=generator) * 2 - 1
    other[:, :, 0] = one[:, :, 0]
    found = [image_conditions.encode_known(autoencoder, clip, pixels) for clip in (one, other)]
    assert torch.equal(found[0].latents, found[1].latents)  # nothing of the unknown frames gets through
    ready = image_conditions.finish(autoencoder, found[0])
    assert ready.latents[:, :, 0].abs().sum() > 0 and ready.latents[:, :, 1:].abs().sum() == 0
    hidden = image_conditions.finish(autoencoder, found[0], torch.tensor([False]))
    assert hidden.latents.abs().sum() + hidden.mask.sum() == 0
