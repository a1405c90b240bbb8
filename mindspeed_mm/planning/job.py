"""What a plan has to know of a run: its network, the size of its samples, its precision and its optimizer."""

import dataclasses
import math
from pathlib import Path

from mindspeed_mm import families
from mindspeed_mm.config import data_dialects, model_dialects
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.adapters import AdapterConfig, layers_of
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.families.frozen_base import check_streaming
from mindspeed_mm.schema import build, read_json

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
# Parameters of the published text encoders: T5 v1.1 XL's encoder, and CLIP bigG's text tower.
TEXT_ENCODERS = 1_223_527_424 + 694_659_840


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A training run, without its layout."""

    model_json: str
    data_json: str
    denoiser: DenoiserConfig
    size: tuple[int, int, int]  # frames, height, width of a sample, in pixels
    grid: tuple[int, int, int]  # video tokens: t, h, w
    text_tokens: int
    dtype: str
    frozen_bytes: int  # weights of autoencoder and text encoders; 0 for those that stored features replace
    encode_bytes: int = 0  # peak of encoding one clip, beside the weights; 0 with stored features
    micro_batch: int = 1
    ema: bool = True
    distributed_optimizer: bool = True
    cpu_offload: bool = False  # main weights, moments and average are on the host
    offloaded_blocks: int = 0  # first recomputed blocks whose inputs wait on the host
    adapter: AdapterConfig = AdapterConfig()  # of kind None: the whole network is trained
    global_batch: int | None = None  # samples of a step; None: one micro-batch of each data rank
    iterations: int | None = None  # steps of the run, for its days
    save_interval: int = 1000

    @property
    def video_tokens(self) -> int:
        return math.prod(self.grid)

    def micro_batches(self, data: int) -> int:
        """Micro-batches of a step on each of `data` data ranks; 0 if the global batch does not divide into them."""
        if self.global_batch is None:
            return 1
        number, rest = divmod(self.global_batch, self.micro_batch * data)
        return 0 if rest else number


def read(
    model_json: str | Path,
    data_json: str | Path,
    text_tokens: int | None = None,
    micro_batch: int = 1,
    adapter: AdapterConfig | None = None,
) -> Job:
    """The job of a model and a data JSON. Their paths need not exist.

    text_tokens: real tokens of a caption; default: the longest caption that the data JSON allows. adapter: default: the
    model JSON's. Raises ConfigError for targets of the adapter that the network has not.
    """
    model = build(TrainModelConfig, model_dialects.model_node(read_json(model_json)))
    data = build(DataConfig, data_dialects.data_node(read_json(data_json)))
    job = made_of(model, data, text_tokens, micro_batch, adapter)
    return dataclasses.replace(job, model_json=str(model_json), data_json=str(data_json))


def made_of(
    model: TrainModelConfig,
    data: DataConfig,
    text_tokens: int | None = None,
    micro_batch: int = 1,
    adapter: AdapterConfig | None = None,
) -> Job:
    """As `read`, of configs that have been read; without the names of their files."""
    size = _largest(data)
    latent = LatentGrid.of_video(*size, model.ae.strides)
    family = families.of_denoiser(model.predictor)
    adapter = adapter or model.adapter or AdapterConfig()
    if adapter.kind is not None:
        parameters = family.parameters(model.predictor)
        layers_of(parameters, adapter.words)
        check_streaming(parameters, family.block_of, adapter.stream_blocks)
    return Job(
        model_json="",
        data_json="",
        denoiser=model.predictor,
        size=size,
        grid=family.extent(model.predictor, (latent.frames, latent.height, latent.width)),
        text_tokens=text_tokens or data.dataset_param.model_max_length,
        dtype=model.weight_dtype,
        frozen_bytes=_frozen_bytes(model),
        encode_bytes=_encode_bytes(model, size),
        micro_batch=micro_batch,
        adapter=adapter,
    )


def _largest(data: DataConfig) -> tuple[int, int, int]:
    """Frames, height and width of the largest sample."""
    clips = data.dataset_param.preprocess_parameters
    if clips.force_resolution:
        return clips.num_frames, clips.max_height, clips.max_width
    if clips.max_hxw is None:
        raise ConfigError("max_hxw is missing in data.json: with several resolutions it is the largest height x width")
    # a plan needs the area alone: the squarest size in whole strides that is not larger
    side = math.isqrt(clips.max_hxw) // clips.hw_stride * clips.hw_stride
    return clips.num_frames, side, clips.max_hxw // side // clips.hw_stride * clips.hw_stride


def _encode_bytes(model: TrainModelConfig, size: tuple[int, int, int]) -> int:
    """Peak of encoding a clip, with its pixels in fp32 and, in another precision, once more."""
    encode = families.of_config(model.ae).encode_bytes
    if model.load_video_features or encode is None:
        return 0
    item = ITEMSIZE[model.ae.dtype]
    pixels = 3 * math.prod(size)
    return encode(model.ae, size, item) + pixels * (4 if item == 4 else 4 + item)


def _frozen_bytes(model: TrainModelConfig) -> int:
    family = families.of_config(model.ae)
    autoencoder = sum(math.prod(parameter.shape) for parameter in family.parameters(model.ae).values())
    total = 0 if model.load_video_features else autoencoder * ITEMSIZE[model.ae.dtype]
    return total + (0 if model.load_text_features else TEXT_ENCODERS * ITEMSIZE[model.weight_dtype])
