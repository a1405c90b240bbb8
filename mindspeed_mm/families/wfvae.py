"""WFVAE, the video autoencoder (WF-VAE, 2411.17459), without tensors.

The network is in `models/wfvae/`; a test holds `parameters` equal to it. Nothing of it is split over TP.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from mindspeed_mm.config.model import AutoencoderConfig
from mindspeed_mm.families.base import Dialect, Family, Parameter, Renaming, Shape

VIDEO_CHANNELS = 3
# A Haar transform's subbands, in the order in which released files name its filters.
SUBBANDS_2D = ("aa", "ad", "da", "dd")
SUBBANDS_3D = ("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v")


def parameters(config: AutoencoderConfig) -> dict[str, Parameter]:
    """Every tensor of the state dict by name: weights, and the Haar filters, which are constants."""
    return {**dict(_encoder(config)), **dict(_decoder(config))}


def _encoder(config: AutoencoderConfig) -> Iterator[tuple[str, Parameter]]:
    width, flow, blocks = config.base_channels, config.encoder_energy_flow_hidden_size, config.encoder_num_resblocks
    norm = config.norm_type
    yield from _convolution("encoder.down1.0", VIDEO_CHANNELS * len(SUBBANDS_3D), width, 2)
    for index in range(blocks):
        yield from _block_2d(f"encoder.down1.{1 + index}", width, norm)
    yield from _downsample(f"encoder.down1.{1 + blocks}", config.l1_downsample_block, width)
    yield from _convolution("encoder.down2.0", width + flow, 2 * width, 2)
    for index in range(blocks):
        yield from _block_3d(f"encoder.down2.{1 + index}", 2 * width, 2 * width, norm)
    yield from _downsample(f"encoder.down2.{1 + blocks}", config.l2_downsample_block, 2 * width)
    for level, wavelet in (("l1", config.l1_downsample_wavelet), ("l2", config.l2_downsample_wavelet)):
        yield from _convolution(f"encoder.connect_{level}", VIDEO_CHANNELS * len(_subbands(wavelet)), flow, 2)
    yield from _middle("encoder.mid", 2 * width + flow, 4 * width, 4 * width, config)
    yield from _norm("encoder.norm_out", 4 * width, norm)
    yield from _convolution("encoder.conv_out.conv", 4 * width, 2 * config.latent_dim, 3)
    levels = {"in": "3D", "l1": config.l1_downsample_wavelet, "l2": config.l2_downsample_wavelet}
    for level, wavelet in levels.items():
        yield from _wavelet(f"encoder.wavelet_transform_{level}", wavelet, forward=True)


def _decoder(config: AutoencoderConfig) -> Iterator[tuple[str, Parameter]]:
    width, flow, blocks = config.base_channels, config.decoder_energy_flow_hidden_size, config.decoder_num_resblocks
    norm = config.norm_type
    yield from _convolution("decoder.conv_in.conv", config.latent_dim, 4 * width, 3)
    yield from _middle("decoder.mid", 4 * width, 4 * width, 4 * width + flow, config)
    for index in range(blocks):
        yield from _block_3d(f"decoder.up2.{index}", 4 * width, 4 * width, norm)
    yield from _upsample(f"decoder.up2.{blocks}", config.l2_upsample_block, 4 * width)
    yield from _block_3d(f"decoder.up2.{blocks + 1}", 4 * width, 4 * width + flow, norm)
    for index in range(blocks):
        yield from _block_3d(f"decoder.up1.{index}", (2 if index else 4) * width, 2 * width, norm)
    yield from _upsample(f"decoder.up1.{blocks}", config.l1_upsample_block, 2 * width)
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


def _middle(prefix: str, first: int, inner: int, last: int, config: AutoencoderConfig):
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


def _downsample(prefix: str, block: str, width: int):
    per_frame = block == "Downsample"
    yield from _convolution(
        f"{prefix}.conv" if per_frame else f"{prefix}.conv.conv", width, width, 2 if per_frame else 3
    )


def _upsample(prefix: str, block: str, width: int):
    per_frame = block == "Upsample"
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
    """The filters of a transform; only those of the forward 3D transform are parameters of their own."""
    bands = _subbands(wavelet)
    shape = (1, 1, *(3 if bands == SUBBANDS_3D else 2) * (2,))
    for band in bands:
        stored = f"{prefix}.{band}_conv.conv.weight" if forward and bands == SUBBANDS_3D else f"{prefix}.{band}"
        yield stored, Parameter(shape, None, "wavelet")


def _subbands(wavelet: str) -> tuple[str, ...]:
    return SUBBANDS_3D if wavelet.endswith("3D") else SUBBANDS_2D


def is_constant(name: str) -> bool:
    """Whether a tensor is a Haar filter: the same in every file, and left out of some."""
    return ".wavelet_transform_" in name or ".inverse_wavelet_transform_" in name


def describe(names: Iterable[str], shape_of: Callable[[str], Shape]) -> dict[str, object]:
    """Keys of the `ae` block that follow from names and shapes. Empty if these are no WFVAE's weights."""
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


def _split(name: str) -> None:
    return None


FAMILY = Family(
    model_id="wfvae",
    title="WFVAE",
    config=AutoencoderConfig,
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
    may_be_missing=is_constant,
)
