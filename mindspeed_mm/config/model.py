"""The model JSON of a training run: networks (`families/`), text encoders, and flow matching.

Defaults are those of the original classes (Open-Sora Plan `mindspeed_mmdit`), so that a key omitted in a published
file keeps its meaning.
"""

import dataclasses
from typing import ClassVar

from mindspeed_mm import families
from mindspeed_mm.config.guidance_rules import RULES
from mindspeed_mm.config.noise import WEIGHTINGS
from mindspeed_mm.config.solvers import SOLVERS
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.families.base import DTYPES, AutoencoderConfig, DenoiserConfig
from mindspeed_mm.families.text_encoders import TEXT_ENCODERS
from mindspeed_mm.schema import option

_OBSOLETE_LOADER = {
    "hub_backend": "Hugging Face transformers is the only backend",
    "low_cpu_mem_usage": "weights are always read without a second copy in memory",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderConfig:
    """`text_encoder`, `text_encoder_2`: a frozen encoder, loaded by Hugging Face transformers from a local folder."""

    model_id: str = option(choices=TEXT_ENCODERS)
    from_pretrained: str
    use_attention_mask: bool = True  # CLIPWithProjection never uses one, as in the original
    dtype: str | None = option(None, choices=DTYPES)  # None: weight_dtype

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
    guidance_rule: str = option("cfg", choices=RULES)
    # noise levels between which guidance applies; outside, the half with the prompt counts alone
    guidance_interval: tuple[float, float] = option((0.0, 1.0), at_least=0, at_most=1)
    use_linear_quadratic_schedule: bool = False
    solver: str = option("euler", choices=SOLVERS)
    # [[steps, shift], ...]: shift of sampling in up to so many steps, instead of `shift`
    shift_of_steps: tuple[tuple[float, float], ...] = option((), above=0, at_most=1e6)

    ACCEPTED: ClassVar[dict[str, str]] = {"device": "the device is chosen once, by --device"}

    @property
    def sampling_shift(self) -> float:
        """The shift of sampling in `num_inference_steps` steps: that of the first entry with at least as many."""
        fitting = [item for item in sorted(self.shift_of_steps) if item[0] >= (self.num_inference_steps or 0)]
        return fitting[0][1] if fitting else self.shift

    def guides_at(self, sigma: float) -> bool:
        """True if guidance applies at a noise level."""
        low, high = self.guidance_interval
        return self.guidance_scale > 1 and low <= sigma <= high

    def problems(self):
        if self.guidance_interval[0] > self.guidance_interval[1]:
            yield "guidance_interval", f"{list(self.guidance_interval)}: the first noise level is the lower one"
        if self.shift_of_steps and self.use_dynamic_shifting:
            yield "shift_of_steps", "with use_dynamic_shifting, which computes the shift from the size; use one of them"
        if self.use_linear_quadratic_schedule and (self.num_inference_steps or 0) % 2:
            yield "num_inference_steps", f"{self.num_inference_steps}: a linear-quadratic schedule needs an even number"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveClipPatch:
    """`patch.adaptive_clip_grad_norm`: MindSpeed-MM's form of --clip_grad_ema_decay."""

    clip_grad_ema_decay: float = option(0.99, above=0, below=1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """`patch`: MindSpeed-MM's settings for which Open-Sora Plan has flags. An explicit flag takes precedence."""

    ae_float32: bool = False  # the autoencoder in fp32, even with --bf16 or --fp16
    adaptive_clip_grad_norm: AdaptiveClipPatch | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainModelConfig:
    """The model JSON of a training run (`--mm-model`)."""

    ae: AutoencoderConfig = option(read=families.read_autoencoder)
    text_encoder: TextEncoderConfig
    text_encoder_2: TextEncoderConfig | None = None
    predictor: DenoiserConfig = option(read=families.read_denoiser)
    diffusion: DiffusionConfig
    weight_dtype: str = option("bf16", choices=DTYPES)  # text encoders and denoiser, with --model_custom_precision
    frames: int | None = option(None, at_least=1)  # only checked against num_frames of data.json
    allow_tf32: bool = False
    allow_internal_format: bool = False  # NPU: private memory formats
    load_video_features: bool = False
    load_text_features: bool = False
    enable_encoder_dp: bool = False  # share the frozen encoders' work over the TP x CP ranks
    patch: PatchConfig = PatchConfig()
    adapter: AdapterConfig | None = None  # also as `predictor.adapter`; the flags take precedence

    ACCEPTED: ClassVar[dict[str, str]] = {
        "model_max_length": "the length of captions is set in data.json",
        "tokenizer": "the tokenizers are set in data.json",
    }


@dataclasses.dataclass(frozen=True, slots=True)
class StoredFeatures:
    """Features of a list that replace encoders while a run trains: their folder, and which of them it takes."""

    folder: str
    videos: bool
    texts: bool
