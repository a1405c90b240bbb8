"""Decoding in spatial tiles: where they lie, how they add up, and how far the result is from the whole frame's."""

import dataclasses

import pytest
import torch
from small_vae import TINY_8

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.wfvae_spans import tile_starts
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.models.wfvae import tiles
from mindspeed_mm.schema import check

CONFIG = dataclasses.replace(TINY_8, decoder_num_resblocks=2, scale=None, shift=None)


def pair(tile: int, overlap: int, **others):
    """An autoencoder and the same one with spatial tiles."""
    torch.manual_seed(0)
    whole = build_autoencoder(dataclasses.replace(CONFIG, **others))
    config = dataclasses.replace(whole.config, use_spatial_tiling=True, spatial_tile=tile, spatial_tile_overlap=overlap)
    tiled = build_autoencoder(config)
    tiled.load_state_dict(whole.state_dict())
    return whole, tiled


def latents(frames: int, height: int, width: int):
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "overlap"), [(48, 12), (40, 20), (6, 3), (2, 1)])
def test_tiles_cover_every_length_and_their_weights_add_up_to_one(size, overlap):
    for length in range(1, 4 * size):
        begins = tile_starts(length, size, overlap)
        assert begins[0] == 0 and begins[-1] == max(length - size, 0)
        assert all(b - a <= size - overlap for a, b in zip(begins, begins[1:], strict=False))
        found = tiles.weights(begins, min(size, length), length)
        assert torch.allclose(found.sum(0), torch.ones(length), atol=1e-6), length
        assert (found >= 0).all()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_with_enough_overlap_tiles_equal_the_whole(frames):
    """These convolutions behind the attention see about 52 pixels around a pixel; 64 at each edge are dropped."""
    whole, tiled = pair(448, 224, decoder_num_resblocks=1)
    z = latents(frames, 4, 80)
    assert tile_starts(80, 56, 28) == [0, 24]
    assert (tiled.decode(z) - whole.decode(z)).abs().max() < 1e-5


@torch.no_grad()
def test_the_error_of_tiles_is_as_stated():
    """docs/sampling.md: overlaps of 128 pixels are off by 0.001 rms and less than 0.03 at most, in a range of 2."""
    whole, tiled = pair(256, 64)
    z = latents(3, 4, 64)
    error = tiled.decode(z) - whole.decode(z)
    assert error.square().mean().sqrt() < 1e-3
    assert error.abs().max() < 0.03


@torch.no_grad()
def test_a_frame_within_one_tile_is_decoded_whole():
    whole, tiled = pair(256, 64)
    z = latents(2, 4, 32)
    assert torch.equal(tiled.decode(z), whole.decode(z))


@torch.no_grad()
def test_no_convolution_behind_the_attention_sees_more_than_a_tile():
    _, tiled = pair(64, 16)
    sizes = []
    tiled.decoder.up2.register_forward_hook(lambda module, args, output: sizes.append(tuple(args[0].shape[3:])))
    tiled.decode(latents(2, 12, 8))
    assert set(sizes) == {(8, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "groupnorm", "use_tiling": False}, "use_spatial_tiling: is far off with norm_type groupnorm"),
        ({"spatial_tile": 100}, "spatial_tile: 100: must be a multiple of 8 pixels"),
        ({"spatial_tile_overlap": 0}, "spatial_tile_overlap: 0: must be from 1 to 1048576"),
        ({"spatial_tile_overlap": 200}, "spatial_tile_overlap: 200: at most half of spatial_tile 384"),
    ],
)
def test_impossible_tiles_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(CONFIG, use_spatial_tiling=True, **change))
