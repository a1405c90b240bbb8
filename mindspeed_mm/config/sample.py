"""Config of a sampling job: the inference JSON, the lines of a prompts file and the flags of `mindspeed-mm sample`."""

import dataclasses
import os
from collections.abc import Iterator
from typing import ClassVar

from mindspeed_mm import families
from mindspeed_mm.config.adapter_choice import AdapterChoice
from mindspeed_mm.config.api import ApiConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.guidance_rules import RULES
from mindspeed_mm.config.image_inputs import ImageInputs
from mindspeed_mm.config.launch import LaunchConfig, RanksConfig
from mindspeed_mm.config.model import DiffusionConfig, TextEncoderConfig, TokenizerConfig
from mindspeed_mm.config.solvers import SOLVERS
from mindspeed_mm.config.step_cache import CacheRule
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import DTYPES, AutoencoderConfig, DenoiserConfig
from mindspeed_mm.schema import check, flag, group, option, switches


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """`pipeline_config`."""

    input_size: tuple[int, int, int] = option(at_least=1, at_most=2**20)  # frames, height, width of the video
    # version of the prompt template; versions other than v1.2, v1.3, v1.5 leave the prompt unchanged
    version: str = "v1.5"
    use_attention_mask: bool = True
    model_type: str = option("t2v", choices=("t2v",))

    def problems(self):
        if not self.use_attention_mask:
            yield "use_attention_mask", "false: the text's padding would be read as words; use true"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleModelConfig:
    """The inference JSON (`--mm-model`)."""

    ae: AutoencoderConfig = option(read=families.read_autoencoder)
    text_encoder: TextEncoderConfig
    text_encoder_2: TextEncoderConfig | None = None
    tokenizer: TokenizerConfig
    tokenizer_2: TokenizerConfig | None = None
    predictor: DenoiserConfig = option(read=families.read_denoiser)
    diffusion: DiffusionConfig
    pipeline_config: PipelineConfig
    prompt: str = ""  # a prompt, or a file with one prompt per line
    negative_prompt: str = ""  # added to the template's
    images: ImageInputs = ImageInputs()  # what every sample starts from, unless its prompt says otherwise
    keep_known_pixels: bool = False  # put the known pixels of images and clips into the finished sample
    use_prompt_template: bool = True
    use_prompt_preprocess: bool = True
    clean_caption: bool = True
    support_chinese: bool = False  # keep Chinese in prompts, for a multilingual text encoder
    # limit for a file of prompts; the original uses the first 1000 of any file
    max_prompts: int = option(1000, at_least=1)
    num_samples_per_prompt: int = option(1, at_least=1, at_most=100_000)
    micro_batch_size: int = option(1, at_least=1, at_most=2**16)
    fps: int = option(24, at_least=1, at_most=10_000)
    frame_interval: int = option(1, at_least=1, at_most=10_000)
    save_path: str = "./opensoraplan_samples"
    weight_dtype: str = option("fp16", choices=DTYPES)  # dtype of text encoders and denoiser

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

    @property
    def rate(self) -> int:
        """Frames per second of the written videos."""
        return self.fps // self.frame_interval

    def for_prompt(self, line: "PromptConfig") -> "SampleModelConfig":
        """This config with the values of a line of the prompts file. Raises ConfigError if they do not fit."""
        named = {name: getattr(line, name) for name in OF_DIFFUSION}
        given = {name: value for name, value in named.items() if value is not None}
        diffusion, pipeline = dataclasses.replace(self.diffusion, **given), self.pipeline_config
        check(line)
        check(diffusion)
        if line.input_size is not None:
            pipeline = dataclasses.replace(pipeline, input_size=line.input_size)
        negative = self.negative_prompt if line.negative_prompt is None else line.negative_prompt
        keeps = self.keep_known_pixels if line.keep_known_pixels is None else line.keep_known_pixels
        return dataclasses.replace(
            self,
            diffusion=diffusion,
            pipeline_config=pipeline,
            prompt=line.prompt,
            negative_prompt=negative,
            images=line.images if line.files else self.images,
            keep_known_pixels=keeps,
        )

    def problems(self):
        if self.fps < self.frame_interval:
            yield "fps", f"{self.fps} with frame_interval {self.frame_interval}: less than one frame a second"
        if (self.text_encoder_2 is None) != (self.tokenizer_2 is None):
            yield "text_encoder_2", "and tokenizer_2: give both or neither"
        if self.text_encoder_2 is None and families.needs_pooled_text(self.predictor):
            yield (
                "text_encoder_2",
                f"is missing (with tokenizer_2); {self.predictor.model_id} needs pooled CLIP features",
            )
        if self.diffusion.num_inference_steps is None:
            yield "diffusion", "num_inference_steps is missing, for example 50"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig(ImageInputs):
    """One line of a prompts file in JSON lines; the job's settings replace missing keys.

    A line that gives any image takes none of the job's.
    """

    prompt: str
    negative_prompt: str | None = option(None, aliases=("negative",))
    # seed of this line's samples, wherever it stands in the file
    seed: int | None = option(None, at_least=0, at_most=2**63 - 1)
    # frames, height, width
    input_size: tuple[int, int, int] | None = option(None, aliases=("size",), at_least=1, at_most=2**20)
    guidance_scale: float | None = option(None, aliases=("guidance",), at_least=-1e4, at_most=1e4)
    guidance_rescale: float | None = option(None, at_least=0, at_most=1)
    guidance_rule: str | None = option(None, choices=RULES)
    guidance_interval: tuple[float, float] | None = option(None, at_least=0, at_most=1)
    solver: str | None = option(None, choices=SOLVERS)
    num_inference_steps: int | None = option(None, aliases=("steps",), at_least=1, at_most=100_000)
    keep_known_pixels: bool | None = None

    @property
    def images(self) -> ImageInputs:
        """What its samples start from."""
        return ImageInputs(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ImageInputs)})

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from ImageInputs.problems(self)
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name) or ""
            if len(text) > LONGEST_TEXT:
                yield name, f"{len(text)} characters; at most {LONGEST_TEXT}, of which T5 reads some 2,500"
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                yield name, "holds half a surrogate pair, which is no character; write the whole character, in UTF-8"


# Keys of a prompt that replace keys of the diffusion block.
OF_DIFFUSION = (
    *("guidance_scale", "guidance_rescale", "guidance_rule", "guidance_interval"),
    *("num_inference_steps", "solver"),
)
LONGEST_TEXT = 20_000  # characters of a caption or prompt that are read; T5 reads some 2,500
GUIDANCE_MODES = ("auto", "batched", "sequential")


MAX_PIXELS = 400_000_000  # 121 x 1088 x 1920 are 253 million; their video in fp32 takes 12 bytes each


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """Settings of speed and memory. Only `step_cache`, see `CacheRule`, and `sage_attention` change the video."""

    guidance_mode: str = flag(
        "auto",
        "--cfg-mode",
        choices=GUIDANCE_MODES,
        help="compute both halves of guidance in one batch, or one after the other; default: by the device's memory",
    )
    # None: by the device's memory
    offload: bool | None = switches(
        None,
        {
            "--offload": (True, "keep inactive components in host memory; default: by the device's memory"),
            "--no-offload": (False, "keep all components on the device"),
        },
    )
    spatial_tiles: str = flag(
        "auto",
        "--spatial-tiles",
        choices=("auto", "on", "off"),
        help="decode large frames in overlapping tiles, which is not exact (ae.use_spatial_tiling); default: as the JSON says, "
        "or on where whole frames do not fit the device's memory",
    )
    memory_gib: float | None = flag(
        None,
        "--memory-gib",
        above=0,
        unit="GiB",
        help="memory of the device that the choices of this section count on; default: what is free at the start",
    )
    compile: bool = flag(False, "--compile", help="torch.compile the denoiser's blocks (CUDA, CPU)")
    sage_attention: bool = flag(
        False,
        "--sage-attention",
        help="faster on CUDA, and another video: attention rounds queries and keys to int8 (SageAttention); needs the package "
        "sageattention. A CPU rounds them, too, and is slower",
    )
    step_cache: str = flag(
        "1",
        "--step-cache",
        metavar="RULE",
        help="faster, and another video: N runs the denoiser's inner stages at every N-th step only, auto:LIMIT when its first "
        "stage has changed by more than this share (such as 0.05); +taylor behind either lets what is reused go on as a line, "
        "from which the change then counts; 1 runs them at every step",
    )
    max_pixels: int = flag(
        MAX_PIXELS,
        "--max-pixels",
        at_least=1,
        at_most=2**62,
        help="largest frames x height x width of a sample; larger ones are refused at the start",
    )

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of `memory_gib`."""
        return None if self.memory_gib is None else int(self.memory_gib * 2**30)

    @property
    def cache_rule(self) -> CacheRule:
        """Raises ConfigError."""
        return CacheRule.read(self.step_cache)

    def problems(self):
        try:
            CacheRule.read(self.step_cache)
        except ConfigError as error:
            yield "step_cache", str(error).partition(": ")[2]


_OUTPUT, _SAMPLING = "weights and output", "steps and guidance"
_WEIGHTS = {
    "--bf16": ("bf16", "bf16 weights, instead of the JSON's weight_dtype"),
    "--fp16": ("fp16", "fp16 weights, instead of the JSON's weight_dtype"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleFlags:
    """Flags of both sampling programs."""

    mm_model: str = flag("", "--mm-model", required=True, metavar="JSON", help="inference JSON: networks and settings")
    seed: int = flag(1234, "--seed", at_least=0, at_most=2**63 - 1, help="seed of all random numbers")
    launch: LaunchConfig = group(LaunchConfig, "device and layout")
    load: str | None = flag(
        None,
        "--load",
        metavar="DIR",
        section=_OUTPUT,
        help="load the denoiser from this Megatron checkpoint directory, instead of predictor.from_pretrained",
    )
    use_ema: bool = flag(
        False, "--ema", section=_OUTPUT, help="use the EMA weights of --load, and of runs that --adapter names"
    )
    adapters: tuple[str, ...] = flag(
        (),
        "--adapter",
        metavar="DIR[=SCALE]",
        section=_OUTPUT,
        help="add this adapter, SCALE times its size (default 1): PEFT's folder, or a run that trained one; several may be "
        "given",
    )
    save_path: str | None = flag(
        None,
        "--save",
        published=("--save-path",),
        metavar="DIR",
        section=_OUTPUT,
        help="output directory, instead of the JSON's save_path",
    )
    weight_dtype: str | None = switches(None, _WEIGHTS, section=_OUTPUT)
    num_inference_steps: int | None = flag(
        None,
        "--steps",
        at_least=1,
        at_most=100_000,
        section=_SAMPLING,
        help="sampling steps; default: those that distilled weights were made for, or the JSON's",
    )
    guidance_scale: float | None = flag(
        None,
        "--guidance",
        at_least=-1e4,
        at_most=1e4,
        section=_SAMPLING,
        help="guidance scale, 1 for none; default: as above",
    )
    options: SamplingOptions = group(SamplingOptions, "speed and memory")

    def problems(self):
        if self.load is not None and not os.path.isdir(self.load):
            yield "load", f"{self.load}: no such directory"
        if self.use_ema and self.load is None and not self.adapters:
            yield (
                "use_ema",
                "only with --load or --adapter; merged EMA weights (model_ema.pt) are named by predictor.from_pretrained",
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JobFlags(SampleFlags):
    """The flags of `mindspeed-mm sample`."""

    prompt: str | None = flag(
        None,
        "--prompt",
        metavar="TEXT|FILE",
        section="the job",
        may_be_empty=True,
        help="prompts to use instead of the JSON's; .txt: a prompt per line; .jsonl: an object per line with prompt and, "
        "optionally, negative_prompt, seed, input_size, guidance_scale, guidance_rescale, num_inference_steps; .json: a list of "
        "these; .csv: the same as columns",
    )
    max_prompts: int | None = flag(
        None,
        "--max-prompts",
        at_least=1,
        section="the job",
        help="largest number of prompts in a file; more are refused; default: the JSON's, or 1000",
    )
    micro_batch_size: int | None = flag(
        None, "--micro-batch-size", at_least=1, section="the job", help="prompts sampled together; default: the JSON's"
    )
    resume: bool = flag(False, "--resume", section="the job", help="skip samples that exist with the same settings")
    images: ImageInputs = group(ImageInputs, "images")
    keep_known_pixels: bool = flag(
        False,
        "--keep-known-pixels",
        section="images",
        help="put the known pixels of images and clips into the finished sample; default: as the autoencoder decodes them",
    )
    ranks: RanksConfig = group(RanksConfig, "starting processes")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServeFlags(SampleFlags):
    """The flags of `mindspeed-mm serve`."""

    host: str = flag("127.0.0.1", "--host", metavar="ADDRESS", section="the server", help="address to listen at")
    port: int = flag(
        7860, "--port", at_least=0, at_most=2**16 - 1, section="the server", help="port to listen at; 0: any free port"
    )
    max_queue: int = flag(
        16, "--max-queue", at_least=1, section="the server", help="largest number of waiting requests"
    )
    api: ApiConfig = group(ApiConfig, "the API")
    ranks: RanksConfig = group(RanksConfig, "starting processes")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """All settings of a sampling job."""

    launch: LaunchConfig
    model: SampleModelConfig
    options: SamplingOptions = SamplingOptions()
    seed: int = 1234
    load: str | None = None  # a Megatron checkpoint directory, instead of predictor.from_pretrained
    use_ema: bool = False  # with `load`, and of adapters that are runs
    resume: bool = False  # skip samples that exist with the same settings
    adapters: tuple[AdapterChoice, ...] = ()
    fixed: tuple[str, ...] = ()  # keys of the diffusion block that flags gave; distilled weights do not change them


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """The server of the page and the API: sampling settings and the address to listen at."""

    sample: SampleConfig
    host: str
    port: int
    max_queue: int
    api: ApiConfig = ApiConfig()
