"""Config of a sampling job: the inference JSON and the flags of `inference.py`."""

import dataclasses
from typing import ClassVar

from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import (
    DTYPES,
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    TextEncoderConfig,
    TokenizerConfig,
)
from mindspeed_mm.config.reader import option
from mindspeed_mm.config.run import LaunchConfig

TEMPLATES = ("v1.2", "v1.3", "v1.5")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """`pipeline_config`."""

    input_size: tuple[int, int, int]  # frames, height, width of the video
    version: str = "v1.5"  # of the prompt template; others than v1.2, v1.3, v1.5 leave the prompt as it is
    use_attention_mask: bool = True
    model_type: str = option("t2v", choices=("t2v",))

    def problems(self):
        if not self.use_attention_mask:
            yield "use_attention_mask", "false: the text's padding would be read as words; use true"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleModelConfig:
    """The inference JSON (`--mm-model`)."""

    ae: AutoencoderConfig
    text_encoder: TextEncoderConfig
    text_encoder_2: TextEncoderConfig | None = None
    tokenizer: TokenizerConfig
    tokenizer_2: TokenizerConfig | None = None
    predictor: DenoiserConfig
    diffusion: DiffusionConfig
    pipeline_config: PipelineConfig
    prompt: str = ""  # a prompt, or a file with one prompt per line
    negative_prompt: str = ""  # added to the template's
    use_prompt_template: bool = True
    use_prompt_preprocess: bool = True
    clean_caption: bool = True
    num_samples_per_prompt: int = 1
    micro_batch_size: int = 1
    fps: int = 24
    frame_interval: int = 1
    save_path: str = "./opensoraplan_samples"
    weight_dtype: str = option("fp16", choices=DTYPES)  # text encoders and denoiser

    ACCEPTED: ClassVar[dict[str, str]] = {
        "model_max_length": "T5 reads 512 tokens and CLIP 77, as the original, whatever this key says",
        "device": "the device is chosen once, by --device",
        "pipeline_class": "there is one pipeline",
        "dtype": "weight_dtype sets it",
        "frames": "pipeline_config.input_size sets it",
        "allow_tf32": "only training sets it",
        "allow_internal_format": "only training sets it",
        "load_video_features": "sampling has no stored features",
        "load_text_features": "sampling has no stored features",
        "enable_encoder_dp": "prompts are shared over the data ranks",
    }

    @property
    def latent_grid(self) -> LatentGrid:
        return LatentGrid.of_video(*self.pipeline_config.input_size, self.ae.strides)

    def problems(self):
        for name in ("num_samples_per_prompt", "micro_batch_size", "fps", "frame_interval"):
            if getattr(self, name) < 1:
                yield name, f"{getattr(self, name)}: must be at least 1"
        if self.text_encoder_2 is None or self.tokenizer_2 is None:
            yield "text_encoder_2", "is missing (with tokenizer_2); v1.5 needs pooled CLIP features"
        if self.diffusion.num_inference_steps is None:
            yield "diffusion", "num_inference_steps is missing, for example 50"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Everything that decides a sampling job."""

    launch: LaunchConfig
    model: SampleModelConfig
    seed: int = 1234
    load: str | None = None  # a Megatron checkpoint directory, instead of predictor.from_pretrained
    use_ema: bool = False  # with `load`
