"""The parts of the autoencoder, one by one."""

import pytest
import torch
import torch.nn.functional as F

from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d, CausalDownsample, CausalUpsample
from mindspeed_mm.models.wfvae.chunks import Chunk
from mindspeed_mm.models.wfvae.layers import (
    FrameAttention,
    FrameConv2d,
    FrameDownsample,
    FrameUpsample,
    ResidualBlock2D,
    ResidualBlock3D,
    fold_frames,
    make_norm,
    unfold_frames,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def in_pieces(module, video, bounds):
    """Pass frames [a, b) of `bounds` through a module one after the other."""
    tails, results = {}, []
    for i, (start, stop) in enumerate(bounds):
        chunk = Chunk(first=i == 0, last=i == len(bounds) - 1, tails=tails)
        results.append(module(video[:, :, start:stop], chunk))
    return torch.cat(results, dim=2)


def test_folding_frames_is_undone():
    video = torch.randn(2, 3, 4, 5, 6)
    assert fold_frames(video).shape == (8, 3, 5, 6)
    assert torch.equal(fold_frames(video)[5], video[1, :, 1])
    assert torch.equal(unfold_frames(fold_frames(video), 2), video)


def test_causal_convolution_repeats_the_first_frame_in_front():
    conv, video = CausalConv3d(3, 4), torch.randn(1, 3, 5, 6, 6)
    padded = F.pad(video, (0, 0, 0, 0, 2, 0), mode="replicate")
    torch.testing.assert_close(conv(video, Chunk()), conv.conv(padded))


@pytest.mark.parametrize("make", [lambda: CausalConv3d(3, 4), lambda: CausalDownsample(3)])
def test_causal_convolutions_in_pieces_equal_whole(make):
    module, video = make(), torch.randn(2, 3, 9, 6, 6)
    whole = module(video, Chunk())
    for bounds in (((0, 1), (1, 5), (5, 9)), ((0, 1), (1, 3), (3, 5), (5, 7), (7, 9)), ((0, 5), (5, 9))):
        torch.testing.assert_close(in_pieces(module, video, bounds), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [lambda: CausalDownsample(3), lambda: FrameDownsample(3)])
def test_downsamplers_halve_the_frames_size(make):
    assert make()(torch.randn(1, 3, 5, 8, 6), Chunk()).shape[3:] == (4, 3)


def test_frame_downsampler_pads_at_the_right_and_the_bottom():
    down, video = FrameDownsample(1), torch.arange(1.0, 17.0).view(1, 1, 1, 4, 4)
    for parameter in down.parameters():
        torch.nn.init.zeros_(parameter)
    down.conv.weight.data[..., 2, 2] = 1  # picks the lower right corner of each 3x3 window
    assert down(video, Chunk())[0, 0, 0].tolist() == [[11.0, 0.0], [0.0, 0.0]]


def test_frame_upsampler_repeats_pixels():
    up, video = FrameUpsample(1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 1, 2, 2)
    for parameter in up.parameters():
        torch.nn.init.zeros_(parameter)
    up.conv.weight.data[..., 1, 1] = 1
    result, _ = up(video, Chunk())
    assert result[0, 0, 0].tolist() == [[1.0, 1.0, 2.0, 2.0]] * 2 + [[3.0, 3.0, 4.0, 4.0]] * 2


def test_upsampler_interpolates_all_but_frame_0_over_time():
    up, video = CausalUpsample(1, "trilinear"), torch.tensor([9.0, 0.0, 4.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)
    up.conv = Spy()
    result, _ = up(video, Chunk())
    assert result.shape == (1, 1, 5, 4, 4)
    assert result[0, 0, :, 1, 1].tolist() == [9.0, 0.0, 1.0, 3.0, 4.0]
    up.t_interpolation = "nearest"
    assert up(video, Chunk())[0][0, 0, :, 1, 1].tolist() == [9.0, 0.0, 0.0, 4.0, 4.0]


class Spy(torch.nn.Module):
    """Passes its input on and remembers its dtype."""

    def forward(self, video, chunk):
        self.dtype = video.dtype
        return video


def test_upsampler_computes_in_float32():
    up, video = CausalUpsample(2, "trilinear"), torch.randn(1, 2, 3, 4, 4).bfloat16()
    up.conv = Spy()
    result, _ = up(video, Chunk())
    assert result.dtype == torch.bfloat16
    expected, _ = up(video.float(), Chunk())
    assert torch.equal(result, expected.bfloat16())


@pytest.mark.parametrize("t_interpolation", ["trilinear", "nearest"])
def test_upsampler_in_pieces_with_lookahead_equals_whole(t_interpolation):
    up, video = CausalUpsample(3, t_interpolation), torch.randn(1, 3, 7, 4, 4)
    whole, finer = up(video, Chunk(lookahead=1))
    assert finer.lookahead == 2
    whole, tails, results = up(video, Chunk())[0], {}, []
    for start, stop, lookahead in ((0, 1, 0), (1, 3, 1), (3, 5, 1), (5, 7, 0)):
        chunk = Chunk(first=start == 0, last=stop == 7, lookahead=lookahead, tails=tails)
        result, _ = up(video[:, :, start : stop + lookahead], chunk)
        results.append(result[:, :, : result.shape[2] - 2 * lookahead])
    torch.testing.assert_close(torch.cat(results, dim=2), whole, atol=1e-6, rtol=0)
    assert not tails


def test_frame_parts_treat_each_frame_alone():
    video = torch.randn(2, 32, 3, 4, 4)
    for part in (FrameConv2d(32, 5), FrameDownsample(32), ResidualBlock2D(32, "groupnorm", 0.0)):
        whole = part(video, Chunk())
        for t in range(3):
            torch.testing.assert_close(part(video[:, :, t : t + 1], Chunk()), whole[:, :, t : t + 1])
    chunk = Chunk(lookahead=1)
    result, same = FrameUpsample(32)(video, chunk)
    assert result.shape == (2, 32, 3, 8, 8) and same is chunk


def test_attention_equals_softmax_written_out():
    part, video = FrameAttention(8, "layernorm"), torch.randn(2, 8, 3, 4, 5)
    h = part.norm(video)
    query, key, value = (m(h, Chunk()).permute(0, 2, 3, 4, 1).reshape(6, 20, 8) for m in (part.q, part.k, part.v))
    weights = torch.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=-1)
    mixed = (weights @ value).view(2, 3, 4, 5, 8).permute(0, 4, 1, 2, 3)
    expected = video + part.proj_out(mixed, Chunk())
    torch.testing.assert_close(part(video, Chunk()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(2, 32, 4, 5), (2, 32, 3, 4, 5)])
def test_layernorm_is_over_channels_and_groupnorm_over_32_groups(shape):
    x = 3 + 2 * torch.randn(shape)
    y = make_norm("layernorm", 32)(x)
    torch.testing.assert_close(y.mean(1), torch.zeros_like(y.mean(1)), atol=1e-6, rtol=0)
    assert y.shape == x.shape and make_norm("layernorm", 32).norm.eps == 1e-6
    group = make_norm("groupnorm", 32)
    assert (group.num_groups, group.eps) == (32, 1e-6)


def test_residual_block_maps_the_identity_only_where_the_width_changes():
    assert ResidualBlock3D(4, 4, "layernorm", 0.0).nin_shortcut is None
    block = ResidualBlock3D(4, 6, "layernorm", 0.0)
    assert block.nin_shortcut.conv.weight.shape == (6, 4, 1, 1, 1)
    assert block(torch.randn(1, 4, 3, 4, 4), Chunk()).shape == (1, 6, 3, 4, 4)


@pytest.mark.parametrize(
    "make", [lambda: ResidualBlock2D(8, "layernorm", 0.5), lambda: ResidualBlock3D(8, 8, "layernorm", 0.5)]
)
def test_dropout_acts_in_training_only_and_on_each_clip_by_itself(make):
    def pass_clips(*seeds):
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return block(videos[: len(seeds)], Chunk(draws=draws))

    block, videos = make(), torch.randn(2, 8, 3, 4, 4)
    both = pass_clips(1, 2)
    torch.testing.assert_close(pass_clips(1), both[:1])
    assert not torch.allclose(pass_clips(2), both[:1], atol=0.01)
    with pytest.raises(ValueError, match="a generator per clip"):
        block(videos, Chunk())
    block.eval()
    assert torch.equal(pass_clips(1, 2), block(videos, Chunk()))
    assert not torch.allclose(both, block(videos, Chunk()), atol=0.01)
