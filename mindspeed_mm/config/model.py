"""Configs of the networks: the blocks `predictor`, `ae`, `text_encoder`, `text_encoder_2` and `diffusion` of a model JSON.

Defaults are those of the original classes (Open-Sora Plan `mindspeed_mmdit`), so that a key which a published file
leaves out means what it meant there.
"""

import dataclasses
from typing import ClassVar

from mindspeed_mm.config.noise import WEIGHTINGS
from mindspeed_mm.schema import option

DTYPES = ("fp32", "bf16", "fp16")
_OBSOLETE_LOADER = {
    "hub_backend": "Hugging Face transformers is the only backend",
    "low_cpu_mem_usage": "weights are always read without a second copy in memory",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DenoiserConfig:
    """`predictor`: SparseUMMDiT, the U-shaped sparse multimodal DiT of the v1.5 report, section 3."""

    model_id: str = option("SparseUMMDiT", choices=("SparseUMMDiT",))
    # blocks per stage; an odd number of stages, even numbers of blocks
    num_layers: tuple[int, ...] = option((2, 4, 8, 4, 2), at_least=2, at_most=1024)
    sparse_n: tuple[int, ...] = option((1, 4, 16, 4, 1), at_least=1, at_most=4096)  # Skiparse sparsity k per stage
    sparse1d: bool = False  # false: dense attention, `sparse_n` is ignored
    double_ff: bool = False  # true: the text has a feed-forward layer of its own
    num_heads: int = option(16, at_least=1, at_most=4096)
    head_dim: int = option(88, at_least=16, at_most=4096)  # a multiple of 16: RoPE splits it 4:6:6 over t, h, w
    in_channels: int = option(at_least=1, at_most=2**20)
    out_channels: int | None = option(None, at_least=1, at_most=2**20)  # None: as in_channels
    patch_size: int = option(2, at_least=1, at_most=64)
    patch_size_t: int = option(1, at_least=1, at_most=64)
    timestep_embed_dim: int = option(512, at_least=2, at_most=2**20)
    caption_channels: int = option(at_least=1, at_most=2**20)  # width of the T5 features
    pooled_projection_dim: int = option(1024, at_least=1, at_most=2**20)  # width of the pooled CLIP features
    skip_connection: bool = False  # long skips from the first half of the stages to the second
    skip_connection_zero_init: bool = True  # skips start as the identity, without a norm
    attention_bias: bool = True
    activation_fn: str = option("gelu-approximate", choices=("gelu", "gelu-approximate"))
    dropout: float = option(0.0, at_least=0, below=1)
    norm_cls: str = option("layer_norm", choices=("layer_norm", "rms_norm"))
    norm_eps: float = option(1e-6, at_least=0, at_most=1)
    interpolation_scale_t: float = option(1.0, above=0, at_most=1e6)  # RoPE positions are divided by these
    interpolation_scale_h: float = option(1.0, above=0, at_most=1e6)
    interpolation_scale_w: float = option(1.0, above=0, at_most=1e6)
    explicit_uniform_rope: bool = False  # training draws a RoPE offset so that all of sample_size_* is seen
    # largest extents in tokens, for explicit_uniform_rope
    sample_size_t: int | None = option(None, at_least=1, at_most=2**20)
    sample_size_h: int | None = option(None, at_least=1, at_most=2**20)
    sample_size_w: int | None = option(None, at_least=1, at_most=2**20)
    from_pretrained: str | None = None

    ACCEPTED: ClassVar[dict[str, str]] = {
        "norm_elementwise_affine": "norms are always affine, as in the original, which ignores this key",
        "dtype": "the precision is set by weight_dtype and by --bf16 or --fp16",
    }

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def sparsities(self) -> tuple[int, ...]:
        """Sparsity per stage; all ones for a dense model."""
        return self.sparse_n if self.sparse1d else (1,) * len(self.num_layers)

    @property
    def velocity_channels(self) -> int:
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def interpolation_scale(self) -> tuple[float, float, float]:
        return self.interpolation_scale_t, self.interpolation_scale_h, self.interpolation_scale_w

    def problems(self):
        stages = len(self.num_layers)
        if stages < 3 or stages % 2 == 0:
            # The original ran a single stage twice, as the middle and again as the decoder.
            yield (
                "num_layers",
                f"{list(self.num_layers)} has {stages} stages; a U shape needs an odd number, at least 3",
            )
        if any(n % 2 for n in self.num_layers):
            yield (
                "num_layers",
                f"{list(self.num_layers)}: each stage needs an even number of blocks (single, then group skip)",
            )
        if len(self.sparse_n) != stages:
            yield (
                "sparse_n",
                f"{list(self.sparse_n)} has {len(self.sparse_n)} entries for {stages} stages of num_layers",
            )
        if self.head_dim % 16:
            yield "head_dim", f"{self.head_dim} is not a multiple of 16 (RoPE splits it 4:6:6 over t, h, w)"
        if self.patch_size_t != 1:
            yield "patch_size_t", f"{self.patch_size_t}: the original runs with 1 only"
        if self.timestep_embed_dim % 2:
            yield "timestep_embed_dim", f"{self.timestep_embed_dim}: must be even (sines and cosines)"
        if self.explicit_uniform_rope and None in (self.sample_size_t, self.sample_size_h, self.sample_size_w):
            yield "explicit_uniform_rope", "needs sample_size_t, sample_size_h and sample_size_w, in tokens"


_WAVELETS = ("HaarWaveletTransform2D", "HaarWaveletTransform3D")
_INVERSE_WAVELETS = ("InverseHaarWaveletTransform2D", "InverseHaarWaveletTransform3D")
_DOWNSAMPLES = ("Downsample", "Spatial2xTime2x3DDownsample")
_UPSAMPLES = ("Upsample", "Spatial2xTime2x3DUpsample")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
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
        """(t, h, w) compression: the first Haar transform halves all three, each level below halves what it says."""
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderConfig:
    """`text_encoder`, `text_encoder_2`: a frozen encoder, loaded by Hugging Face transformers from a local folder."""

    model_id: str = option(choices=("T5", "MT5", "CLIP", "CLIPWithProjection"))
    from_pretrained: str
    use_attention_mask: bool = True  # CLIPWithProjection never uses one, as the original
    dtype: str | None = option(None, choices=DTYPES)  # None: as weight_dtype

    ACCEPTED: ClassVar[dict[str, str]] = {
        **_OBSOLETE_LOADER,
        "output_key": "CLIPWithProjection gives text_embeds, the others last_hidden_state",
    }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """`tokenizer_config`, `tokenizer`: a Hugging Face tokenizer in a local folder."""

    autotokenizer_name: str = option("AutoTokenizer", choices=("AutoTokenizer", "T5Tokenizer", "CLIPTokenizer"))
    from_pretrained: str
    # None: 512 for the first tokenizer, the folder's own (77) for the second
    model_max_length: int | None = option(None, at_least=1, at_most=2**20)

    ACCEPTED: ClassVar[dict[str, str]] = _OBSOLETE_LOADER


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """`diffusion`: flow matching (2209.03003) with the sigma densities and shifts of SD3 (2403.03206, section 3.1)."""

    model_id: str = option("OpenSoraPlan", choices=("OpenSoraPlan",))
    weighting_scheme: str = option("logit_normal", choices=WEIGHTINGS)
    logit_mean: float = option(0.0, at_least=-100, at_most=100)
    logit_std: float = option(1.0, at_least=0, at_most=100)
    mode_scale: float = option(1.29, at_least=-100, at_most=100)
    sigma_eps: float = option(0.0, at_least=0, at_most=1e-2)  # sigmas are kept at or above this
    shift: float = option(1.0, above=0, at_most=1e6)
    use_dynamic_shifting: bool = False  # shift grows with the latent's height x width
    num_inference_steps: int | None = option(None, at_least=1, at_most=100_000)
    guidance_scale: float = option(4.5, at_least=-1e4, at_most=1e4)
    guidance_rescale: float = option(0.7, at_least=0, at_most=1)
    use_linear_quadratic_schedule: bool = False

    ACCEPTED: ClassVar[dict[str, str]] = {"device": "the device is chosen once, by --device"}

    def problems(self):
        if self.use_linear_quadratic_schedule and (self.num_inference_steps or 0) % 2:
            yield "num_inference_steps", f"{self.num_inference_steps}: a linear-quadratic schedule needs an even number"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveClipPatch:
    """`patch.adaptive_clip_grad_norm`: what --clip_grad_ema_decay says elsewhere."""

    clip_grad_ema_decay: float = option(0.99, above=0, below=1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """`patch`: where MindSpeed-MM sets what Open-Sora Plan has flags for. A flag that is given counts more."""

    ae_float32: bool = False  # the autoencoder in fp32, whatever --bf16 or --fp16 says
    adaptive_clip_grad_norm: AdaptiveClipPatch | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainModelConfig:
    """The model JSON of a training run (`--mm-model`)."""

    ae: AutoencoderConfig
    text_encoder: TextEncoderConfig
    text_encoder_2: TextEncoderConfig | None = None
    predictor: DenoiserConfig
    diffusion: DiffusionConfig
    weight_dtype: str = option("bf16", choices=DTYPES)  # text encoders and denoiser, with --model_custom_precision
    frames: int | None = option(None, at_least=1)  # only checked against num_frames of data.json
    allow_tf32: bool = False
    allow_internal_format: bool = False  # NPU: private memory formats
    load_video_features: bool = False
    load_text_features: bool = False
    enable_encoder_dp: bool = False  # share the frozen encoders' work over the TP x CP ranks
    patch: PatchConfig = PatchConfig()

    ACCEPTED: ClassVar[dict[str, str]] = {
        "model_max_length": "the length of captions is set in data.json",
        "tokenizer": "the tokenizers are set in data.json",
    }
