"""Config of the data: data.json (`--mm-data`). Names and defaults follow the original."""

import dataclasses
from typing import ClassVar

from mindspeed_mm.config.image_conditions import ImageConditions
from mindspeed_mm.config.model import TokenizerConfig
from mindspeed_mm.config.transforms import CenterCropResizeVideo, read_transforms
from mindspeed_mm.schema import Node, Notes, did_you_mean, option

VIDEO_READERS = ("decoder", "pyav", "decord", "torchcodec")
# Reader names of published configs that are replaced here: torchvision's is gone, MindSpeed-MM's is decord.
OLD_VIDEO_READERS = {"torchvision": "decoder", "DecordVideo": "decoder"}


def read_video_reader(node: Node, notes: Notes | None) -> str:
    name = node.value
    if isinstance(name, str) and name in OLD_VIDEO_READERS:
        if notes is not None:
            notes.remarks.append(
                f"{node.path} {name}: videos are read by the project's default; 'decord' asks for decord itself"
            )
        return OLD_VIDEO_READERS[name]
    if name not in VIDEO_READERS:
        known = (*VIDEO_READERS, *OLD_VIDEO_READERS)
        close = did_you_mean(name, known) if isinstance(name, str) else ""
        raise node.error(f"{name!r} is not one of {', '.join(map(repr, known))}{close}")
    return name


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """`basic_parameters`: the list of the data."""

    data_path: str  # data.txt: lines `folder,annotation file`
    data_storage_mode: str = option("combine", choices=("combine",))
    # folder written by tools/extract_features.py, for load_video_features and load_text_features
    feature_folder: str | None = None
    # folder of the indexes of long lists; "none": no indexes; None: ~/.cache/mindspeed_mm/lists
    list_index_folder: str | None = None

    ACCEPTED: ClassVar[dict[str, str]] = {
        "data_folder": "folders are given in data.txt",
        "return_type": "rows are always a list",
    }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """`train_pipeline`: transforms of videos and of images, in order."""

    video: tuple = option((), read=read_transforms)
    image: tuple = option((), read=read_transforms)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """`preprocess_parameters`: chooses clips, their frames and their size."""

    num_frames: int = option(16, at_least=1, at_most=2**20)
    frame_interval: int = option(1, at_least=1, at_most=2**20)  # only lengthens the window of the temporal crop
    max_height: int = option(480, at_least=1, at_most=2**16)  # sample size with force_resolution
    max_width: int = option(640, at_least=1, at_most=2**16)
    max_hxw: int | None = option(None, at_least=1)  # pixel budget without force_resolution
    min_hxw: int | None = option(None, at_least=0)  # clips with fewer pixels are dropped; default max_hxw // 4
    force_resolution: bool = True
    force_5_ratio: bool = False
    # number of sample sizes that are chosen from the ratios of the list's clips; 0: each clip keeps its own ratio
    auto_buckets: int = option(0, at_least=0, at_most=256)
    video_processor_type: str | None = option(None, choices=("OpensoraplanVideoProcessor",))  # see `keeps_every_speed`
    # MindSpeed-MM's aspect rule, instead of the next two: see `aspect_limits`
    hw_aspect_thr: float | None = option(None, at_least=1, at_most=1e6)
    max_h_div_w_ratio: float = option(2.0, above=0, at_most=1e12)
    min_h_div_w_ratio: float = option(0.5, at_least=0, at_most=1e6)
    hw_stride: int = option(16, at_least=1, at_most=2**16)
    ae_stride_t: int = option(8, at_least=1, at_most=64)
    # time, height, width; only checked against the autoencoder
    vae_scale_factor: tuple[int, int, int] | None = option(None, at_least=1, at_most=64)
    sp_size: int = option(1, at_least=1, at_most=2**16)  # the number of latent frames must be divisible by it
    train_fps: float = option(24.0, above=0, at_most=1e4)
    speed_factor: float = option(1.0, above=0, at_most=1e6)
    too_long_factor: float = option(5.0, above=0, at_most=1e12)
    drop_short_ratio: float = option(1.0, at_least=0, at_most=1)
    min_num_frames: int = option(29, at_least=1, at_most=2**20)
    seed: int = option(42, at_least=0, at_most=2**32 - 1)  # seed of the drop_short draw
    cfg: float = option(0.1, at_least=0, at_most=1)  # probability of dropping a caption
    use_aesthetic: bool = False
    trigger_word: str | None = None  # put before every caption that does not hold it; a source of data.txt may differ
    shuffle_tags: bool = False  # draw the order of a caption's comma-separated parts at each access
    keep_tags: int = option(0, at_least=0, at_most=1000)  # first parts that shuffle_tags leaves in front
    video_reader_type: str = option("decoder", read=read_video_reader)
    frame_index_folder: str | None = None  # folder that keeps frame indexes from run to run; None: in memory only
    image_reader_type: str = option("Image", choices=("Image",))
    # seconds for one clip; then its process is killed and the clip is a bad sample
    timeout: float = option(600.0, above=0, at_most=1e6)
    # temporal crops (and flips) of a clip: 0, new ones in every epoch; n, always the same n in turn
    fixed_crops: int = option(0, at_least=0, at_most=10_000)
    train_pipeline: PipelineConfig = PipelineConfig()

    ACCEPTED: ClassVar[dict[str, str]] = {
        "batch_size": "--micro-batch-size sets it",
        "gradient_accumulation_size": "--global-batch-size sets it",
        "train_sp_batch_size": "sequence parallelism does not change the batch",
        "image_processer_type": "images always become clips of one frame",
        "max_workers": "num_workers sets the number of processes that decode",
        "truncate_t_by_sp": "context parallel splits tokens, so that any number of frames can be shared",
    }

    @property
    def least_pixels(self) -> int:
        if self.min_hxw is not None:
            return self.min_hxw
        return 0 if self.max_hxw is None else self.max_hxw // 4  # `problems` refuses a config without both

    def trigger_of(self, stated: str | None) -> str | None:
        """The trigger word of a row whose source states one, or none (None)."""
        return self.trigger_word if stated is None else stated

    @property
    def keeps_every_speed(self) -> bool:
        """True for MindSpeed-MM's processor: it keeps long clips, and clips below `train_fps`, whose frames it
        repeats.
        """
        return self.video_processor_type is not None

    @property
    def aspect_limits(self) -> tuple[float, float]:
        """Least and greatest height / width; with hw_aspect_thr and without force_resolution, for the sample."""
        if self.hw_aspect_thr is None:
            return self.min_h_div_w_ratio, self.max_h_div_w_ratio
        target = self.max_height / self.max_width if self.force_resolution else 1.0
        return target / self.hw_aspect_thr, target * self.hw_aspect_thr

    def fixed_size(self, kind: str) -> tuple[int, int] | None:
        """(height, width) of all samples of a kind, or None if it depends on the clip.

        MindSpeed-MM's own file resizes to one size without force_resolution, so there the transform decides.
        """
        if self.force_resolution:
            return self.max_height, self.max_width
        sizes = [step.size for step in getattr(self.train_pipeline, kind) if isinstance(step, CenterCropResizeVideo)]
        return sizes[-1] if sizes and self.video_processor_type is not None else None

    def problems(self):
        if self.max_hxw is None and self.min_hxw is None:
            yield "max_hxw", "is missing; give max_hxw (or min_hxw with force_resolution), in pixels"
        if self.auto_buckets:
            for name in ("force_resolution", "force_5_ratio"):
                if getattr(self, name):
                    yield (
                        "auto_buckets",
                        f"{self.auto_buckets}: excludes {name} true, which chooses the sizes too; use false",
                    )
            if self.video_processor_type is not None:
                yield "auto_buckets", f"{self.auto_buckets}: excludes video_processor_type, which fixes the size"
        if self.max_hxw is None and not self.force_resolution:
            yield "max_hxw", "is missing; multi-resolution needs a pixel budget"
        if (self.num_frames - 1) % self.ae_stride_t:
            yield "num_frames", f"{self.num_frames} is not {self.ae_stride_t}n+1 (ae_stride_t {self.ae_stride_t})"
        if self.min_num_frames > self.num_frames > 1:
            yield (
                "min_num_frames",
                f"{self.min_num_frames} is more than num_frames {self.num_frames}: every clip would be dropped",
            )
        if self.keep_tags and not self.shuffle_tags:
            yield "keep_tags", f"{self.keep_tags}: only with shuffle_tags, which moves the other parts of a caption"
        if self.min_h_div_w_ratio > self.max_h_div_w_ratio:
            yield (
                "min_h_div_w_ratio",
                f"{self.min_h_div_w_ratio} is more than max_h_div_w_ratio {self.max_h_div_w_ratio}: every clip would be dropped",
            )
        if self.force_resolution:
            for kind in ("video", "image"):
                for transform in getattr(self.train_pipeline, kind):
                    if isinstance(transform, CenterCropResizeVideo) and transform.size != (
                        self.max_height,
                        self.max_width,
                    ):
                        yield (
                            "train_pipeline",
                            (
                                f"{kind} is resized to {transform.size[0]}x{transform.size[1]}, but force_resolution "
                                f"with max_height, max_width asks for {self.max_height}x{self.max_width}"
                            ),
                        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """`dataset_param`."""

    dataset_type: str = option("t2v", choices=("t2v",))
    basic_parameters: SourceConfig
    preprocess_parameters: PreprocessConfig
    # what of a clip the denoiser is shown, with predictor.image_mask_channels; None: nothing, text-to-video
    image_conditions: ImageConditions | None = None
    use_text_processer: bool = True
    enable_text_preprocessing: bool = option(True, aliases=("enable_text_preprocess",))
    use_clean_caption: bool = True
    # Keep Chinese in captions, for a multilingual encoder; the original always removes it.
    support_chinese: bool = False
    model_max_length: int = option(120, at_least=1, at_most=2**20)
    tokenizer_config: TokenizerConfig
    tokenizer_config_2: TokenizerConfig | None = None

    ACCEPTED: ClassVar[dict[str, str]] = {
        "use_feature_data": "load_video_features and load_text_features of the model JSON say it",
        "use_img_from_vid": "the original stores it without using it",
    }

    def problems(self):
        if not self.use_text_processer:
            yield "use_text_processer", "false: captions must be tokenized; use true"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CollateConfig:
    """`collate_param`: joins samples into a batch."""

    model_name: str = option("GroupLength", choices=("GroupLength", "open_sora_plan"))  # two names for the same collate
    batch_size: int = option(1, at_least=1)
    group_data: bool = False
    max_height: int = option(480, at_least=1, at_most=2**16)  # target size without group_data
    max_width: int = option(640, at_least=1, at_most=2**16)
    num_frames: int = option(13, at_least=1, at_most=2**20)
    ae_stride: int = option(8, at_least=1, at_most=64)
    ae_stride_t: int = option(4, at_least=1, at_most=64)
    patch_size: int = option(2, at_least=1, at_most=64)
    patch_size_t: int = option(1, at_least=1, at_most=64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """`dataloader_param`."""

    dataloader_mode: str = option("sampler", choices=("sampler",))
    sampler_type: str = option("LengthGroupedSampler", choices=("LengthGroupedSampler",))
    batch_size: int = option(1, at_least=1)
    num_workers: int = option(0, at_least=0, at_most=1024)
    shuffle: bool = True  # without group_data; grouped batches are always shuffled
    drop_last: bool = True
    pin_memory: bool = False
    group_data: bool = True
    group_frame: bool = False
    group_resolution: bool = False
    collate_param: CollateConfig = CollateConfig()

    ACCEPTED: ClassVar[dict[str, str]] = {
        "initial_global_step_for_sampler": "the position in the data is part of the checkpoint",
        "gradient_accumulation_size": "--global-batch-size sets it",
        "encoder_dp_size": "it follows from enable_encoder_dp and the layout",
    }

    def problems(self):
        for name in ("group_frame", "group_resolution"):
            if getattr(self, name):
                yield name, "true: use group_data true, which groups by frames and resolution together"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """data.json."""

    dataset_param: DatasetConfig
    dataloader_param: LoaderConfig

    def held_out(self, data_path: str | None) -> "DataConfig":
        """The same with `data_path` in place of its list, if that is not None, and without caption dropout and shuffled
        tags.
        """
        dataset = self.dataset_param
        sources = dataset.basic_parameters
        if data_path is not None:
            sources = dataclasses.replace(sources, data_path=data_path)
        preprocess = dataclasses.replace(dataset.preprocess_parameters, cfg=0.0, shuffle_tags=False, keep_tags=0)
        dataset = dataclasses.replace(dataset, basic_parameters=sources, preprocess_parameters=preprocess)
        return dataclasses.replace(self, dataset_param=dataset)
