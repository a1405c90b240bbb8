"""Checks settings against each other: layout, batch sizes, networks, clips, files.

Each error names the value, the rule and the fix, and the place if a JSON holds the value.
"""

import dataclasses
import os
from collections.abc import Callable

from mindspeed_mm import families, logs
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.launch import LaunchConfig
from mindspeed_mm.config.model import StoredFeatures, TrainModelConfig
from mindspeed_mm.config.optimizer import OptimizerSettings
from mindspeed_mm.config.sample import MAX_PIXELS, SampleModelConfig
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import AutoencoderConfig, DenoiserConfig
from mindspeed_mm.schema import Node, find

_log = logs.get(__name__)


def launch_config(launch: LaunchConfig, denoiser: DenoiserConfig, num_heads: Node) -> LaunchConfig:
    """The layout that the flags request; each rank must own whole heads."""
    tensor, context = launch.tensor_size, launch.context_size
    if denoiser.num_heads % tensor:
        raise num_heads.error(f"{denoiser.num_heads} heads do not divide by --tensor-model-parallel-size {tensor}")
    if denoiser.num_heads // tensor % context:
        raise num_heads.error(
            f"{denoiser.num_heads // tensor} heads per tensor-parallel rank do not divide by --context-parallel-size {context}"
        )
    if launch.sequence_parallel and tensor == 1:
        _log.info("--sequence-parallel has no effect with --tensor-model-parallel-size 1")
    return dataclasses.replace(launch, sequence_parallel=launch.sequence_parallel and tensor > 1)


def processes(given: int | None) -> int:
    """Number of ranks: the argument, else torchrun's."""
    if given is not None:
        return given
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE {text!r} of the environment: must be a number of processes; torchrun sets it")
    return int(text)


def data_ranks(launch: LaunchConfig, world_size: int | None) -> int:
    """DP size of a layout with this number of processes."""
    world = processes(world_size)
    model_size = launch.tensor_size * launch.context_size
    if world % model_size:
        raise ConfigError(
            f"{world} processes do not divide by --tensor-model-parallel-size {launch.tensor_size} x "
            f"--context-parallel-size {launch.context_size} = {model_size}; change --nproc_per_node or the layout"
        )
    return world // model_size


def check_batches(micro: int, total: int, data_size: int, data: DataConfig, data_node: Node) -> None:
    """Checks that the data ranks and the loader can divide the batch sizes."""
    check_total(micro, total, data_size)
    for path, size in {
        "dataloader_param.batch_size": data.dataloader_param.batch_size,
        "dataloader_param.collate_param.batch_size": data.dataloader_param.collate_param.batch_size,
    }.items():
        if size not in (1, micro):  # 1 is what the published files say whatever the flag
            raise find(data_node, path).error(f"{size}, but --micro-batch-size is {micro}")


def check_total(micro: int, total: int, data_size: int) -> None:
    """Raises ConfigError if the data ranks cannot divide a global batch into whole micro-batches."""
    if total % (micro * data_size):
        raise ConfigError(
            f"--global-batch-size {total} is not a multiple of --micro-batch-size {micro} x {data_size} data-parallel ranks"
        )


def decay_iters(optimizer: OptimizerSettings, train_iters: int) -> int:
    """Length of the decay of the learning rate, by default that of the run; must exceed the warm-up."""
    iterations = optimizer.lr_decay_iters or train_iters
    if optimizer.lr_warmup_iters >= iterations:
        raise ConfigError(f"--lr-warmup-iters {optimizer.lr_warmup_iters}: must be below --lr-decay-iters {iterations}")
    return iterations


def check_networks(ae: AutoencoderConfig, denoiser: DenoiserConfig, place: Callable[[str], Node]) -> None:
    """Checks the channels of the autoencoder's latents by the rules of the denoiser's family."""
    for key, problem in families.of_denoiser(denoiser).channel_problems(denoiser, ae.latent_dim):
        raise place(f"predictor.{key}").error(problem)
    channels = families.of_denoiser(denoiser).image_mask_channels(denoiser)
    if channels not in (0, ae.strides[0]):
        raise place("predictor.image_mask_channels").error(
            f"{channels}, but a latent of the autoencoder covers {ae.strides[0]} frames; use {ae.strides[0]}, or 0 for no images"
        )


def check_clips(data: DataConfig, data_node: Node, model: TrainModelConfig, launch: LaunchConfig) -> None:
    """Checks the sizes of the clips against the networks' strides and the layout."""
    clips = data.dataset_param.preprocess_parameters
    place = find(data_node, "dataset_param.preprocess_parameters")
    stride_t, stride_h, _ = model.ae.strides
    if clips.ae_stride_t != stride_t:
        raise find(place, "ae_stride_t").error(
            f"{clips.ae_stride_t}, but the autoencoder compresses time by {stride_t}"
        )
    if clips.vae_scale_factor not in (None, model.ae.strides):
        raise find(place, "vae_scale_factor").error(
            f"{list(clips.vae_scale_factor)}, but the autoencoder compresses by {list(model.ae.strides)}"
        )
    unit = stride_h * model.predictor.patch_size
    for kind in ("video", "image"):
        size = clips.fixed_size(kind)
        if not clips.force_resolution and size is not None and any(side % unit for side in size):
            raise find(place, "train_pipeline").error(
                f"{kind} is resized to {size[0]}x{size[1]}, not to multiples of {unit} (autoencoder x patch)"
            )
    if not clips.force_resolution:
        if clips.hw_stride % unit:
            raise find(place, "hw_stride").error(f"{clips.hw_stride} is not a multiple of {unit} (autoencoder x patch)")
    else:
        for name in ("max_height", "max_width"):
            if getattr(clips, name) % unit:
                raise find(place, name).error(
                    f"{getattr(clips, name)} is not a multiple of {unit} (autoencoder x patch)"
                )
        grid = LatentGrid.of_video(clips.num_frames, clips.max_height, clips.max_width, model.ae.strides)
        _check_split(grid.tokens(model.predictor.patch_size), data.dataset_param.model_max_length, launch, place)
    if model.frames is not None and model.frames != clips.num_frames:
        _log.warning(
            f"frames {model.frames} of the model JSON differs from num_frames {clips.num_frames}, which counts"
        )


def check_image_conditions(model: TrainModelConfig, data: DataConfig, model_node: Node, data_node: Node) -> None:
    """Ratios of image conditions and a network that takes them: both or neither."""
    takes, given = families.takes_images(model.predictor), data.dataset_param.image_conditions is not None
    if given and not takes:
        raise find(data_node, "dataset_param.image_conditions").error(
            f"the predictor has no inputs for images; give it image_mask_channels {model.ae.strides[0]} in the model JSON"
        )
    if takes and not given:
        raise find(model_node, "predictor.image_mask_channels").error(
            "the data JSON has no dataset_param.image_conditions; give their ratios, for example "
            '{"text": 2, "first": 3, "extend": 1}'
        )


def _check_split(video_tokens: int, text_tokens: int, launch: LaunchConfig, place: Node) -> None:
    parts = launch.context_size * (launch.tensor_size if launch.sequence_parallel else 1)
    for count, what in ((video_tokens, "video"), (text_tokens, "text")):
        if count % parts:
            raise place.error(
                f"{count} {what} tokens do not divide by {parts} (--context-parallel-size {launch.context_size}"
                + (f" x --sequence-parallel over {launch.tensor_size} ranks)" if launch.sequence_parallel else ")")
            )


def check_sample_size(
    model: SampleModelConfig, launch: LaunchConfig, place: Node, max_pixels: int = MAX_PIXELS
) -> None:
    """Raises at `place` if the networks or the layout cannot make videos of `model`'s input_size, or if it is too
    large.
    """
    frames, height, width = model.pipeline_config.input_size
    if frames * height * width > max_pixels:
        raise place.error(
            f"{frames} x {height} x {width} are {frames * height * width:,} pixels, more than --max-pixels {max_pixels:,}; "
            "request less, or raise --max-pixels if there is enough memory"
        )
    try:
        grid = model.latent_grid
    except ConfigError as error:
        raise place.error(str(error)) from None
    patch = model.predictor.patch_size
    if grid.height % patch or grid.width % patch:
        _, stride_h, stride_w = model.ae.strides
        raise place.error(f"height and width must be multiples of {stride_h * patch} and {stride_w * patch}")
    _check_split(grid.tokens(patch), 512, launch, place)


def check_train_files(model: TrainModelConfig, model_node: Node, data: DataConfig, data_node: Node) -> str:
    """Checks that all files for training exist. Returns the weights of the autoencoder."""
    files = {path: _weights_of(model, path) for path in ("ae", "text_encoder", "text_encoder_2", "predictor")}
    _check_paths(files, model_node)
    dataset = data.dataset_param
    paths = {"dataset_param.tokenizer_config.from_pretrained": dataset.tokenizer_config.from_pretrained}
    if dataset.tokenizer_config_2 is not None:
        paths["dataset_param.tokenizer_config_2.from_pretrained"] = dataset.tokenizer_config_2.from_pretrained
    paths["dataset_param.basic_parameters.data_path"] = dataset.basic_parameters.data_path
    for path, file in paths.items():
        _must_exist(file, find(data_node, path))
    if (model.text_encoder_2 is None) != (dataset.tokenizer_config_2 is None):
        raise find(model_node, "text_encoder_2").error("and tokenizer_config_2 of the data JSON: give both or neither")
    if model.text_encoder_2 is None and families.needs_pooled_text(model.predictor):
        raise find(model_node, "text_encoder_2").error(
            f"is missing; {model.predictor.model_id} needs pooled CLIP features"
        )
    if model.ae.from_pretrained is None:
        raise find(model_node, "ae.from_pretrained").error("is missing; training needs the weights of the autoencoder")
    return model.ae.from_pretrained


def stored_features(model: TrainModelConfig, data: DataConfig, data_node: Node) -> StoredFeatures | None:
    """The stored features that a run trains from, or None. The features themselves are checked when they are opened."""
    dataset = data.dataset_param
    if not (model.load_video_features or model.load_text_features):
        return None
    if dataset.basic_parameters.feature_folder is None:
        raise find(data_node, "dataset_param.basic_parameters.feature_folder").error(
            "is missing; load_video_features and load_text_features of the model JSON need the folder that "
            "tools/extract_features.py has filled"
        )
    if model.load_video_features and dataset.preprocess_parameters.fixed_crops < 1:
        raise find(data_node, "dataset_param.preprocess_parameters.fixed_crops").error(
            "0, new temporal crops in every epoch, but load_video_features of the model JSON is true; "
            "give the number of crops to store of each clip, for example 1"
        )
    if model.load_text_features and dataset.preprocess_parameters.shuffle_tags:
        raise find(data_node, "dataset_param.preprocess_parameters.shuffle_tags").error(
            "true (or --shuffle-tags), but load_text_features of the model JSON is true: every order of a caption's tags "
            "would need features of its own; use false, or encode captions while training"
        )
    if model.load_video_features and not data.dataloader_param.group_data:
        raise find(data_node, "dataloader_param.group_data").error(
            "false, but stored features cannot be padded to one size (load_video_features); use true"
        )
    return StoredFeatures(
        folder=dataset.basic_parameters.feature_folder,
        videos=model.load_video_features,
        texts=model.load_text_features,
    )


def check_sample_files(model: SampleModelConfig, node: Node, load: str | None) -> None:
    """Checks that all files for sampling exist. load: a checkpoint directory that replaces predictor.from_pretrained."""
    names = ("ae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    files = {path: _weights_of(model, path) for path in names}
    if load is None:
        files["predictor"] = model.predictor.from_pretrained
        if model.predictor.from_pretrained is None:
            raise find(node, "predictor.from_pretrained").error(
                "is missing; name the merged weights here, or a Megatron directory with --load"
            )
    if model.ae.from_pretrained is None:
        raise find(node, "ae.from_pretrained").error("is missing; sampling needs the weights of the autoencoder")
    _check_paths(files, node)


def _weights_of(model, name: str) -> str | None:
    part = getattr(model, name)
    return None if part is None else part.from_pretrained


def _check_paths(files: dict[str, str | None], node: Node) -> None:
    for name, file in files.items():
        if file is not None:
            _must_exist(file, find(node, f"{name}.from_pretrained"))


def _must_exist(file: str, place: Node) -> None:
    if not os.path.exists(file):
        raise place.error(f"{file}: no such file or directory")
