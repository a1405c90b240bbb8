"""WFVAE, the video autoencoder (WF-VAE, 2411.17459), without tensors.

The network is in `models/wfvae/`; a test holds `parameters` equal to it. No parameter is split over TP.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

from mindspeed_mm.families.base import DTYPES, Dialect, Family, Parameter, Renaming, Shape, with_values
from mindspeed_mm.families.wfvae_costs import decode_bytes, encode_bytes
from mindspeed_mm.schema import Node, option, read_json

_WAVELETS = ("HaarWaveletTransform2D", "HaarWaveletTransform3D")
_INVERSE_WAVELETS = ("InverseHaarWaveletTransform2D", "InverseHaarWaveletTransform3D")
_DOWNSAMPLES = ("Downsample", "Spatial2xTime2x3DDownsample")
_UPSAMPLES = ("Upsample", "Spatial2xTime2x3DUpsample")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WFVAEConfig:
    """`ae`: WFVAE (WF-VAE, 2411.17459). v1.5 compresses 8x8x8: both levels halve time and space."""

    model_id: str = option("wfvae", choices=("wfvae",))
    base_channels: int = option(128, at_least=1, at_most=2**16)
    latent_dim: int = option(8, at_least=1, at_most=2**16)
    encoder_num_resblocks: int = option(2, at_least=1, at_most=1024)
    encoder_energy_flow_hidden_size: int = option(64, at_least=1, at_most=2**16)
    decoder_num_resblocks: int = option(2, at_least=1, at_most=1024)
    decoder_energy_flow_hidden_size: int = option(128, at_least=1, at_most=2**16)
    connect_res_layer_num: int = option(2, at_least=0, at_most=1024)
    use_attention: bool = True
    dropout: float = option(0.0, at_least=0, below=1)
    norm_type: str = option("groupnorm", choices=("groupnorm", "layernorm"))
    t_interpolation: str = option("nearest", choices=("nearest", "trilinear"))
    l1_downsample_block: str = option("Downsample", aliases=("l1_dowmsample_block",), choices=_DOWNSAMPLES)
    l1_downsample_wavelet: str = option("HaarWaveletTransform2D", choices=_WAVELETS)
    l2_downsample_block: str = option(
        "Spatial2xTime2x3DDownsample", aliases=("l2_dowmsample_block",), choices=_DOWNSAMPLES[1:]
    )
    l2_downsample_wavelet: str = option("HaarWaveletTransform3D", choices=_WAVELETS[1:])
    l1_upsample_block: str = option("Upsample", choices=_UPSAMPLES)
    l1_upsample_wavelet: str = option("InverseHaarWaveletTransform2D", choices=_INVERSE_WAVELETS)
    l2_upsample_block: str = option("Spatial2xTime2x3DUpsample", choices=_UPSAMPLES[1:])
    l2_upsample_wavelet: str = option("InverseHaarWaveletTransform3D", choices=_INVERSE_WAVELETS[1:])
    # latent = (z - shift) * scale, per channel
    scale: tuple[float, ...] | None = option(None, at_least=-1e6, at_most=1e6)
    shift: tuple[float, ...] | None = option(None, at_least=-1e6, at_most=1e6)
    # only checked against the blocks: see `strides`
    vae_scale_factor: tuple[int, int, int] | None = option(None, at_least=1, at_most=64)
    use_tiling: bool = False  # encode and decode in temporal chunks; exact with layernorm
    use_spatial_tiling: bool = False  # decode in overlapping tiles too; not exact, memory no longer grows with the size
    spatial_tile: int = option(384, at_least=1, at_most=2**20)  # height and width of a tile, in pixels
    spatial_tile_overlap: int = option(96, at_least=1, at_most=2**20)  # least overlap of neighbours, in pixels
    dtype: str = option("fp32", choices=DTYPES)
    from_pretrained: str | None = None

    ACCEPTED: ClassVar[dict[str, str]] = {
        "t_chunk_enc": "chunk sizes follow from the length of each clip",
        "t_chunk_dec": "chunk sizes follow from the length of each clip",
        "vae_cp_size": "each rank encodes and decodes its own clips",
    }

    @property
    def strides(self) -> tuple[int, int, int]:
        """(t, h, w) compression: the first Haar transform halves all three; each lower level halves the axes of its
        block.
        """
        return (4, 8, 8) if self.l1_downsample_block == "Downsample" else (8, 8, 8)

    def problems(self):
        time_levels = {
            "l1_downsample_wavelet": self.l1_downsample_wavelet == "HaarWaveletTransform3D",
            "l1_upsample_block": self.l1_upsample_block == "Spatial2xTime2x3DUpsample",
            "l1_upsample_wavelet": self.l1_upsample_wavelet == "InverseHaarWaveletTransform3D",
        }
        halves_time = self.l1_downsample_block == "Spatial2xTime2x3DDownsample"
        for name, value in time_levels.items():
            if value != halves_time:
                yield (
                    name,
                    f"{getattr(self, name)} beside l1_downsample_block {self.l1_downsample_block}: "
                    "level 1 must halve time in all four or in none",
                )
        if self.vae_scale_factor is not None and self.vae_scale_factor != self.strides:
            yield (
                "vae_scale_factor",
                f"{list(self.vae_scale_factor)}, but these blocks compress by {list(self.strides)}",
            )
        for name in ("scale", "shift"):
            vector = getattr(self, name)
            if vector is not None and len(vector) != self.latent_dim:
                yield name, f"{len(vector)} values for latent_dim {self.latent_dim}"
        if self.scale is not None and 0.0 in self.scale:
            yield "scale", "holds a zero; decoding divides by it"
        if self.use_tiling and self.norm_type == "groupnorm":
            # Measured on the original: chunked group statistics change the mean by 20-30 %.
            yield "use_tiling", "is not exact with norm_type groupnorm (statistics per chunk); use false"
        if self.use_spatial_tiling and self.norm_type == "groupnorm":
            yield "use_spatial_tiling", "is far off with norm_type groupnorm (statistics per tile); use false"
        unit = self.strides[1]
        for name in ("spatial_tile", "spatial_tile_overlap"):
            if getattr(self, name) % unit:
                yield name, f"{getattr(self, name)}: must be a multiple of {unit} pixels"
        if 2 * self.spatial_tile_overlap > self.spatial_tile:
            yield (
                "spatial_tile_overlap",
                f"{self.spatial_tile_overlap}: at most half of spatial_tile {self.spatial_tile}",
            )
        if self.norm_type == "groupnorm":
            widths = {
                "base_channels": self.base_channels,
                "encoder_energy_flow_hidden_size": 2 * self.base_channels + self.encoder_energy_flow_hidden_size,
                "decoder_energy_flow_hidden_size": self.decoder_energy_flow_hidden_size,
            }
            for name, width in widths.items():
                if width % 32:
                    yield name, f"gives {width} channels, not a multiple of the 32 groups of groupnorm"


VIDEO_CHANNELS = 3
# A Haar transform's subbands, in the order in which released files name its filters.
SUBBANDS_2D = ("aa", "ad", "da", "dd")
SUBBANDS_3D = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v")


def parameters(config: WFVAEConfig) -> dict[str, Parameter]:
    """Every tensor of the state dict by name: weights, and the Haar filters, which are constants."""
    return {**dict(_encoder(config)), **dict(_decoder(config))}


def _encoder(config: WFVAEConfig) -> Iterator[tuple[str, Parameter]]:
    width, flow, blocks = config.base_channels, config.encoder_energy_flow_hidden_size, config.encoder_num_resblocks
    norm = config.norm_type
    yield from _convolution("encoder.down1.0", VIDEO_CHANNELS * len(SUBBANDS_3D), width, 2)
    for index in range(blocks):
        yield from _block_2d(f"encoder.down1.{1 + index}", width, norm)
    yield from _resample(f"encoder.down1.{1 + blocks}", config.l1_downsample_block == "Downsample", width)
    yield from _convolution("encoder.down2.0", width + flow, 2 * width, 2)
    for index in range(blocks):
        yield from _block_3d(f"encoder.down2.{1 + index}", 2 * width, 2 * width, norm)
    yield from _resample(f"encoder.down2.{1 + blocks}", config.l2_downsample_block == "Downsample", 2 * width)
    for level, wavelet in (("l1", config.l1_downsample_wavelet), ("l2", config.l2_downsample_wavelet)):
        yield from _convolution(f"encoder.connect_{level}", VIDEO_CHANNELS * len(_subbands(wavelet)), flow, 2)
    yield from _middle("encoder.mid", 2 * width + flow, 4 * width, 4 * width, config)
    yield from _norm("encoder.norm_out", 4 * width, norm)
    yield from _convolution("encoder.conv_out.conv", 4 * width, 2 * config.latent_dim, 3)
    levels = {"in": "3D", "l1": config.l1_downsample_wavelet, "l2": config.l2_downsample_wavelet}
    for level, wavelet in levels.items():
        yield from _wavelet(f"encoder.wavelet_transform_{level}", wavelet, forward=True)


def _decoder(config: WFVAEConfig) -> Iterator[tuple[str, Parameter]]:
    width, flow, blocks = config.base_channels, config.decoder_energy_flow_hidden_size, config.decoder_num_resblocks
    norm = config.norm_type
    yield from _convolution("decoder.conv_in.conv", config.latent_dim, 4 * width, 3)
    yield from _middle("decoder.mid", 4 * width, 4 * width, 4 * width + flow, config)
    for index in range(blocks):
        yield from _block_3d(f"decoder.up2.{index}", 4 * width, 4 * width, norm)
    yield from _resample(f"decoder.up2.{blocks}", config.l2_upsample_block == "Upsample", 4 * width)
    yield from _block_3d(f"decoder.up2.{blocks + 1}", 4 * width, 4 * width + flow, norm)
    for index in range(blocks):
        yield from _block_3d(f"decoder.up1.{index}", (2 if index else 4) * width, 2 * width, norm)
    yield from _resample(f"decoder.up1.{blocks}", config.l1_upsample_block == "Upsample", 2 * width)
    yield from _block_3d(f"decoder.up1.{blocks + 1}", 2 * width, 2 * width, norm)
    yield from _block_3d("decoder.layer.0", 2 * width, width, norm)
    yield from _block_3d("decoder.layer.1", width, width, norm)
    for level, wavelet in (("l1", config.l1_upsample_wavelet), ("l2", config.l2_upsample_wavelet)):
        for index in range(config.connect_res_layer_num):
            yield from _block_3d(f"decoder.connect_{level}.{index}", flow, flow, norm)
        last = f"decoder.connect_{level}.{config.connect_res_layer_num}"
        yield from _convolution(last, flow, VIDEO_CHANNELS * len(_subbands(wavelet)), 2)
    yield from _norm("decoder.norm_out", width, norm)
    yield from _convolution("decoder.conv_out", width, VIDEO_CHANNELS * len(SUBBANDS_3D), 2)
    levels = {"out": "3D", "l1": config.l1_upsample_wavelet, "l2": config.l2_upsample_wavelet}
    for level, wavelet in levels.items():
        yield from _wavelet(f"decoder.inverse_wavelet_transform_{level}", wavelet, forward=False)


def _middle(prefix: str, first: int, inner: int, last: int, config: WFVAEConfig):
    yield from _block_3d(f"{prefix}.0", first, inner, config.norm_type)
    if config.use_attention:
        yield from _norm(f"{prefix}.1.norm", inner, config.norm_type)
        for name in ("q", "k", "v", "proj_out"):
            yield from _convolution(f"{prefix}.1.{name}.conv", inner, inner, 3, kernel=1)
    yield from _block_3d(f"{prefix}.{2 if config.use_attention else 1}", inner, last, config.norm_type)


def _block_2d(prefix: str, width: int, norm: str):
    for number in (1, 2):
        yield from _norm(f"{prefix}.norm{number}", width, norm)
        yield from _convolution(f"{prefix}.conv{number}", width, width, 2)


def _block_3d(prefix: str, width_in: int, width_out: int, norm: str):
    for number, width in ((1, width_in), (2, width_out)):
        yield from _norm(f"{prefix}.norm{number}", width, norm)
        yield from _convolution(f"{prefix}.conv{number}.conv", width, width_out, 3)
    if width_in != width_out:
        yield from _convolution(f"{prefix}.nin_shortcut.conv", width_in, width_out, 3, kernel=1)


def _resample(prefix: str, per_frame: bool, width: int):
    """A down- or upsampler: a convolution of each frame, or a causal one over time too."""
    yield from _convolution(
        f"{prefix}.conv" if per_frame else f"{prefix}.conv.conv", width, width, 2 if per_frame else 3
    )


def _convolution(prefix: str, width_in: int, width_out: int, axes: int, kernel: int = 3):
    yield f"{prefix}.weight", Parameter((width_out, width_in, *axes * (kernel,)), None, "convolution")
    yield f"{prefix}.bias", Parameter((width_out,), None, "convolution")


def _norm(prefix: str, width: int, norm: str):
    inner = f"{prefix}.norm" if norm == "layernorm" else prefix
    yield f"{inner}.weight", Parameter((width,), None, "norm")
    yield f"{inner}.bias", Parameter((width,), None, "norm")


def _wavelet(prefix: str, wavelet: str, forward: bool):
    """The filters of a transform; only those of the forward 3D transform are parameters."""
    bands = _subbands(wavelet)
    shape = (1, 1, *(3 if bands == SUBBANDS_3D else 2) * (2,))
    for band in bands:
        stored = f"{prefix}.{band}_conv.conv.weight" if forward and bands == SUBBANDS_3D else f"{prefix}.{band}"
        yield stored, Parameter(shape, None, "wavelet")


def _subbands(wavelet: str) -> tuple[str, ...]:
    return SUBBANDS_3D if wavelet.endswith("3D") else SUBBANDS_2D


def is_constant(name: str) -> bool:
    """True for a Haar filter: it is the same in every file, and some files omit it."""
    return ".wavelet_transform_" in name or ".inverse_wavelet_transform_" in name


def describe(names: Iterable[str], shape_of: Callable[[str], Shape]) -> dict[str, object]:
    """Keys of the `ae` block that follow from names and shapes. Empty for weights of another network."""
    names = set(names)
    first, last, norm = "encoder.down1.0.weight", "encoder.conv_out.conv.weight", "encoder.norm_out"
    if not {first, last, "encoder.connect_l1.weight", "decoder.connect_l1.0.conv1.conv.weight"} <= names:
        return {}
    return {
        "base_channels": shape_of(first)[0],
        "latent_dim": shape_of(last)[0] // 2,
        "encoder_energy_flow_hidden_size": shape_of("encoder.connect_l1.weight")[0],
        "decoder_energy_flow_hidden_size": shape_of("decoder.connect_l1.0.conv1.conv.weight")[0],
        "norm_type": "layernorm" if f"{norm}.norm.weight" in names else "groupnorm",
        "use_attention": "encoder.mid.1.q.conv.weight" in names,
    }


def _part_of(name: str) -> str:
    """A child of encoder or decoder, or the top module."""
    match = re.match(r"(?:encoder|decoder)\.[^.]+", name)
    return match[0] if match else name.partition(".")[0]


def _split(name: str) -> None:
    return None


def _in_tiles(config: WFVAEConfig) -> bool | None:
    return None if config.norm_type == "groupnorm" else config.use_spatial_tiling


def _with_tiles(config: WFVAEConfig, tiles: bool) -> WFVAEConfig:
    return dataclasses.replace(config, use_spatial_tiling=tiles)


def published(node: Node) -> Node:
    """Rewrites an `ae` block of either published dialect in ours; reads `statistics` from the file that it names."""
    return _with_statistics(with_values(node, {"norm_type": {"aelayernorm": "layernorm"}}))


def statistics(shift: Sequence[float], scale: Sequence[float]) -> dict[str, list[float]]:
    """Content of the file that `ae.statistics` names: mean and 1 / deviation of each latent channel, six digits."""
    return {name: [float(f"{x:.6g}") for x in vector] for name, vector in (("shift", shift), ("scale", scale))}


def _with_statistics(node: Node) -> Node:
    """Replaces `statistics`, a file name, by the file's `shift` and `scale`."""
    if not isinstance(node.value, dict) or "statistics" not in node.value:
        return node
    value = dict(node.value)
    named = value.pop("statistics")
    if not isinstance(named.value, str) or not os.path.isfile(named.value):
        raise named.error(f"{named.plain()}: no such file; tools/eval_vae.py --write-statistics makes it")
    found = read_json(named.value)
    if not isinstance(found.value, dict) or set(found.value) != {"shift", "scale"}:
        raise found.error("expected an object with shift and scale, as tools/eval_vae.py --write-statistics writes it")
    for name, vector in found.value.items():
        if name in value:
            raise value[name].error(f"{named.path} gives it already; give one of them")
        value[name] = vector
    return dataclasses.replace(node, value=value)


FAMILY = Family(
    model_id="wfvae",
    title="WFVAE",
    config=WFVAEConfig,
    published=published,
    parameters=parameters,
    split=_split,
    dialects=(
        # MindSpeed-MM's class misspells one attribute; its published weights, converted from the original's, do not.
        Dialect(
            "WFVAE",
            "WFVAE",
            re.compile(r"encoder\.(wavelet_trans?form_in|conv_in|down[12])\."),
            Renaming({"encoder.wavelet_transform_in.*.conv.weight": "encoder.wavelet_tranform_in.*.conv.weight"}),
        ),
    ),
    describe=describe,
    part_of=_part_of,
    may_be_missing=is_constant,
    encode_bytes=encode_bytes,
    decode_bytes=decode_bytes,
    in_tiles=_in_tiles,
    with_tiles=_with_tiles,
)
