"""Memory of WFVAE's passes: a replay of encoder and decoder over sizes, without tensors.

Each method stands for a module or function of `models/wfvae` and makes, holds and drops what that one does, in its order, so
that Python's own references give the lifetimes. Hence a module's arguments live until it returns, and so does here a
method's parameter, which is never assigned again. `tests/families/test_wfvae_costs.py` compares with torch's allocator on
configs of random seeds, in fp32 on a CPU. A CPU without products in 16 bit needs much more there: it unfolds the input of a
convolution.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from mindspeed_mm.families.wfvae_spans import Span, encode_spans, spans_of, streamed_spans, tile_starts

if TYPE_CHECKING:  # the config's file imports this one
    from mindspeed_mm.families.wfvae import WFVAEConfig

_FP32 = 4
_VIDEO, _BANDS_3D, _BANDS_2D = 3, 24, 12  # channels of a video and of its Haar transforms


def encode_bytes(config: "WFVAEConfig", size: tuple[int, int, int], itemsize: int) -> int:
    """Peak bytes of encoding one video of `size` (frames, height, width) without gradients, beside weights and the video.

    itemsize: bytes of a number of weights and activations.
    """
    memory, (frames, height, width) = _Memory(), size
    coder = _Encoder(config, memory, itemsize)
    video = _Clip(_Held(memory, 0), _VIDEO, frames, height, width)
    found = coder.in_chunks(coder.encode, video, spans_of(config, encode_spans, frames), _latents(config, frames))
    assert found.held.bytes > 0
    return memory.peak


def decode_bytes(config: "WFVAEConfig", size: tuple[int, int, int], itemsize: int) -> int:
    """Peak bytes of decoding one video of `size` (frames, height, width) without gradients, beside weights and latents; with
    the video.
    """
    memory, (frames, height, width) = _Memory(), size
    coder = _Decoder(config, memory, itemsize)
    stride, latents = config.strides[1], _latents(config, frames)
    z = coder.new(config.latent_dim, latents, height // stride, width // stride)  # scaled and shifted
    spans = spans_of(config, streamed_spans, latents)
    if config.use_spatial_tiling:
        found = coder.in_tiles(z, spans, frames)
    else:
        found = coder.in_chunks(coder.decode, z, spans, frames)
    assert found.held.bytes > 0
    return memory.peak


def _latents(config: "WFVAEConfig", frames: int) -> int:
    return (frames - 1) // config.strides[0] + 1


class _Memory:
    """Bytes that are held now, and the most so far."""

    def __init__(self):
        self.now = self.peak = 0


class _Held:
    """Bytes that are held as long as this object is referred to."""

    __slots__ = ("bytes", "memory")

    def __init__(self, memory: _Memory, size: int):
        self.memory, self.bytes = memory, size
        memory.now += size
        memory.peak = max(memory.peak, memory.now)

    def __del__(self):
        self.memory.now -= self.bytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Clip:
    """A video of one sample: what holds its memory, and its sizes. joined: False for a slice of channels or pixels, which an
    operator copies first.
    """

    held: _Held
    channels: int
    frames: int
    height: int
    width: int
    joined: bool = True

    def cut(self, frames: int) -> "_Clip":
        """A slice of its frames."""
        return dataclasses.replace(self, frames=frames)


class _Coder:
    """What encoder and decoder share. first, last: whether the chunk at hand begins and ends the clip."""

    def __init__(self, config: "WFVAEConfig", memory: _Memory, itemsize: int):
        self.config, self.memory, self.itemsize = config, memory, itemsize
        self.first = self.last = True
        self.holds = False
        self.tails: dict[int, _Clip] = {}
        self.place = 0  # of the module that keeps frames for the next chunk, in call order

    def in_chunks(self, network: Callable[[_Clip], _Clip], video: _Clip, spans: list[Span], frames: int) -> _Clip:
        self.tails, joined, piece = {}, None, None
        self.holds = len(spans) > 1
        for index, (start, stop, _) in enumerate(spans):
            self.first, self.last, self.place = index == 0, index == len(spans) - 1, 0
            piece = network(video.cut(stop - start))
            if self.holds and joined is None:
                joined = self.new(piece.channels, frames, piece.height, piece.width)
        found = joined or piece
        assert found is not None, "there is a span"
        return found

    def new(self, channels: int, frames: int, height: int, width: int, itemsize: int = 0) -> _Clip:
        size = channels * frames * height * width * (itemsize or self.itemsize)
        return _Clip(_Held(self.memory, size), channels, frames, height, width)

    def like(self, video: _Clip, channels: int = 0) -> _Clip:
        return self.new(channels or video.channels, video.frames, video.height, video.width)

    def whole(self, video: _Clip) -> _Clip:
        """The video, or a copy if it is a slice."""
        return video if video.joined else self.like(video)

    def _next(self) -> int:
        self.place += 1
        return self.place

    def keep(self, place: int, video: _Clip, frames: int, itemsize: int = 0) -> None:
        if not self.last:
            frames = min(frames, video.frames)
            self.tails[place] = self.new(video.channels, frames, video.height, video.width, itemsize)

    # ------------------------------------------------------------------------------------------------------- layers

    def norm(self, video: _Clip) -> _Clip:
        layer = self.config.norm_type == "layernorm"
        copy = self.whole(video)
        out = self.like(copy)
        mean_and_scale = _Held(self.memory, 2 * video.frames * video.height * video.width * self.itemsize * layer)
        del copy, mean_and_scale
        return out

    def silu(self, video: _Clip) -> _Clip:
        return self.like(video)

    def frame_conv(self, video: _Clip, channels: int) -> _Clip:
        """3x3 on each frame."""
        copy = self.whole(video)
        out, weights = self.like(copy, channels), self.weights(9, video.channels, channels, 2)
        del copy, weights
        return out

    def point_conv(self, video: _Clip, channels: int) -> _Clip:
        """1x1x1."""
        copy = self.whole(video)
        out, weights = self.like(copy, channels), self.weights(1, video.channels, channels, 1)
        del copy, weights
        return out

    def weights(self, taps: int, before: int, after: int, copies: int) -> _Held:
        """A convolution's own copies of its weights: in the order of its input and, on a CPU, in oneDNN's blocks."""
        return _Held(self.memory, copies * taps * before * after * self.itemsize)

    def causal_conv(self, video: _Clip, channels: int, stride: int = 1) -> _Clip:
        """3x3x3, with the two frames before."""
        place = self._next()
        before = None if self.first else self.tails.pop(place)
        frames = video.frames + (2 if before is None else before.frames)
        joined = self.new(video.channels, frames, video.height, video.width)
        self.keep(place, joined, 2 // stride)
        height, width = (side if stride == 1 else (side - 3) // 2 + 1 for side in (video.height, video.width))
        out = self.new(channels, (frames - 3) // stride + 1, height, width)
        weights = self.weights(27, video.channels, channels, 2)
        del weights
        return out

    def block_2d(self, video: _Clip) -> _Clip:
        h = self.frame_conv(self.silu(self.norm(video)), video.channels)
        h = self.frame_conv(self.silu(self.norm(h)), video.channels)
        return self.like(h)

    def block_3d(self, video: _Clip, channels: int) -> _Clip:
        h = self.causal_conv(self.silu(self.norm(video)), channels)
        h = self.silu(self.norm(h))
        h = self.causal_conv(h, channels)
        shortcut = None if channels == video.channels else self.point_conv(video, channels)
        out = self.like(h)
        del shortcut
        return out

    def attention(self, video: _Clip) -> _Clip:
        h = self.norm(video)
        query, key, value = (self.point_conv(h, video.channels) for _ in range(3))
        h = self.like(query)
        projected = self.point_conv(h, video.channels)
        out = self.like(video)
        del key, value, projected
        return out

    def middle(self, video: _Clip, inner: int, last: int) -> _Clip:
        h = self.block_3d(video, inner)
        if self.config.use_attention:
            h = self.attention(h)
        return self.block_3d(h, last)


class _Encoder(_Coder):
    def encode(self, video: _Clip) -> _Clip:
        """Video -> moments of its latents."""
        config, width, flow = self.config, self.config.base_channels, self.config.encoder_energy_flow_hidden_size
        bands = self.haar_3d(video)
        bands_l1 = self.haar(dataclasses.replace(bands, channels=_VIDEO), config.l1_downsample_wavelet)
        bands_l2 = self.haar(dataclasses.replace(bands_l1, channels=_VIDEO), config.l2_downsample_wavelet)
        h = self.down1(self.like(bands))  # with adjacent channels
        joined = self.join(h, self.frame_conv(bands_l1, flow))
        h = self.down2(joined)
        del joined
        joined = self.join(h, self.frame_conv(bands_l2, flow))
        h = self.middle(joined, 4 * width, 4 * width)
        del joined
        return self.causal_conv(self.silu(self.norm(h)), 2 * config.latent_dim)

    def join(self, video: _Clip, other: _Clip) -> _Clip:
        return self.like(video, video.channels + other.channels)

    def haar(self, video: _Clip, name: str) -> _Clip:
        return self.haar_3d(video) if name.endswith("3D") else self.haar_2d(video)

    def haar_3d(self, video: _Clip) -> _Clip:
        frames = video.frames + self.first
        joined = self.new(_VIDEO, frames, video.height, video.width)  # frame 0 twice; else a copy for the convolution
        bands = self.new(_BANDS_3D, frames // 2, video.height // 2, video.width // 2)
        out = self.like(bands)  # in the order of channels
        del joined
        return out

    def haar_2d(self, video: _Clip) -> _Clip:
        bands = self.new(_BANDS_2D, video.frames, video.height // 2, video.width // 2)
        return self.like(bands)

    def down1(self, video: _Clip) -> _Clip:
        h = self.frame_conv(video, self.config.base_channels)
        for _ in range(self.config.encoder_num_resblocks):
            h = self.block_2d(h)
        return self.down(h, self.config.l1_downsample_block)

    def down2(self, video: _Clip) -> _Clip:
        h = self.frame_conv(video, 2 * self.config.base_channels)
        for _ in range(self.config.encoder_num_resblocks):
            h = self.block_3d(h, h.channels)
        return self.down(h, self.config.l2_downsample_block)

    def down(self, video: _Clip, name: str) -> _Clip:
        padded = self.new(video.channels, video.frames, video.height + 1, video.width + 1)
        if name == "Downsample":
            return self.new(video.channels, video.frames, video.height // 2, video.width // 2)
        return self.causal_conv(padded, video.channels, stride=2)


class _Decoder(_Coder):
    def decode(self, z: _Clip) -> _Clip:
        return self.rise(self.ground(z))

    def in_tiles(self, z: _Clip, spans: list[Span], frames: int) -> _Clip:
        """Tiles are alike, so two of them have the peak."""
        stride = self.config.strides[1]
        features = self.in_chunks(self.ground, z, spans, z.frames)
        size, overlap = self.config.spatial_tile // stride, self.config.spatial_tile_overlap // stride
        count = len(tile_starts(z.height, size, overlap)) * len(tile_starts(z.width, size, overlap))
        if count == 1:
            return self.in_chunks(self.rise, features, spans, frames)
        tile = dataclasses.replace(features, height=min(size, z.height), width=min(size, z.width), joined=False)
        video = piece = None
        for _ in range(2):
            piece = self.in_chunks(self.rise, tile, spans, frames)
            if video is None:
                video = self.new(_VIDEO, frames, z.height * stride, z.width * stride, _FP32)
            weighted = self.new(_VIDEO, frames, piece.height, piece.width, _FP32)
            del weighted
        assert video is not None
        return video if self.itemsize == _FP32 else self.like(video)

    def ground(self, z: _Clip) -> _Clip:
        width = self.config.base_channels
        h = self.causal_conv(z, 4 * width)
        return self.middle(h, 4 * width, 4 * width + self.config.decoder_energy_flow_hidden_size)

    def rise(self, features: _Clip) -> _Clip:
        config, width, flow = self.config, self.config.base_channels, self.config.decoder_energy_flow_hidden_size
        h, energy = self.split(self.whole(features))
        low_l1 = self.inverse(self.connect(energy, _bands(config.l2_upsample_wavelet)))

        h = self.up(h, [4 * width] * config.decoder_num_resblocks, 4 * width + flow, config.l2_upsample_block)
        h, energy = self.split(h)
        low_l1 = self.wait(low_l1, h.frames)
        bands_l1 = self.connect(energy, _bands(config.l1_upsample_wavelet))
        bands_l1 = self.add_low(bands_l1, low_l1)
        low = self.inverse(bands_l1)

        h = self.up(h, [2 * width] * config.decoder_num_resblocks, 2 * width, config.l1_upsample_block)
        h = self.layer(h)
        low = self.wait(low, h.frames)
        bands = self.frame_conv(self.silu(self.norm(h)), _BANDS_3D)
        bands = self.add_low(bands, low)
        return self.inverse(bands)

    def split(self, h: _Clip) -> tuple[_Clip, _Clip]:
        flow = self.config.decoder_energy_flow_hidden_size
        own = dataclasses.replace(h, channels=h.channels - flow, joined=False)
        return own, dataclasses.replace(h, channels=flow, joined=False)

    def connect(self, energy: _Clip, bands: int) -> _Clip:
        h = energy
        for _ in range(self.config.connect_res_layer_num):
            h = self.block_3d(h, h.channels)
        return self.frame_conv(h, bands)

    def layer(self, video: _Clip) -> _Clip:
        h = self.block_3d(video, self.config.base_channels)
        return self.block_3d(h, self.config.base_channels)

    def add_low(self, bands: _Clip, low: _Clip) -> _Clip:
        total = self.like(low)
        out = self.like(bands)
        del total
        return out

    def wait(self, video: _Clip, frames: int) -> _Clip:
        place = self._next()
        before = self.tails.pop(place, None)
        joined = video
        if before is not None:
            joined = self.new(video.channels, before.frames + video.frames, video.height, video.width)
        if joined.frames > frames:
            self.tails[place] = self.new(video.channels, joined.frames - frames, video.height, video.width)
        return joined.cut(frames)

    def inverse(self, bands: _Clip) -> _Clip:
        """The video of a Haar transform's subbands."""
        time = 2 if bands.channels == _BANDS_3D else 1
        copy = self.like(bands)  # in the order of the transposed convolution
        out = self.new(_VIDEO, time * bands.frames, 2 * bands.height, 2 * bands.width)
        del copy
        return out.cut(out.frames - 1) if self.first and time == 2 else out

    def up(self, video: _Clip, blocks: list[int], channels: int, name: str) -> _Clip:
        h = video
        for width in blocks:
            h = self.block_3d(h, width)
        h = self.frame_upsample(h) if name == "Upsample" else self.upsample(h)
        return self.block_3d(h, channels)

    def frame_upsample(self, video: _Clip) -> _Clip:
        wide = self.new(video.channels, video.frames, 2 * video.height, 2 * video.width)
        return self.frame_conv(wide, video.channels)

    def upsample(self, video: _Clip) -> _Clip:
        """Doubles time, height and width; interpolates in fp32."""
        wide = self.double_time(video if self.itemsize == _FP32 else self._in_fp32(video))
        wide = self.new(video.channels, wide.frames, 2 * video.height, 2 * video.width, _FP32)
        own = wide if self.itemsize == _FP32 else self.like(wide)
        return self.causal_conv(own, video.channels)

    def _in_fp32(self, video: _Clip) -> _Clip:
        return self.new(video.channels, video.frames, video.height, video.width, _FP32)

    def double_time(self, video: _Clip) -> _Clip:
        if not self.first:
            return self.double(video)
        later = self.double(video.cut(video.frames - 1))
        return self.new(video.channels, 1 + later.frames, video.height, video.width, _FP32)

    def double(self, video: _Clip) -> _Clip:
        place = self._next()
        if video.frames == 0:
            return video
        before = self.tails.pop(place, None)
        self.keep(place, video, 1, _FP32)
        joined, known = video, 0
        if before is not None:
            joined = self.new(video.channels, video.frames + 1, video.height, video.width, _FP32)
            known = 1
        out = self.new(video.channels, 2 * joined.frames, video.height, video.width, _FP32)
        return out.cut(out.frames - known - (self.holds and not self.last))


def _bands(name: str) -> int:
    return _BANDS_3D if name.endswith("3D") else _BANDS_2D
