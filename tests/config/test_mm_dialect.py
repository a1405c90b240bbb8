"""MindSpeed-MM 26.0.0's three JSONs load as they are, with its launch flags, and mean what they mean there."""

import json
from pathlib import Path

import mm_files
import pytest
from config_files import change

from mindspeed_mm.config.autoencoder import training_config
from mindspeed_mm.config.data import DataConfig
from mindspeed_mm.config.data_dialects import data_node
from mindspeed_mm.config.model import TrainModelConfig
from mindspeed_mm.config.model_dialects import model_node, sample_node
from mindspeed_mm.config.resolve import run_config, sample_config, serve_config
from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.data.lists.filters import filter_rows
from mindspeed_mm.data.lists.rows import Row
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import build, read_json

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "published" / "mm26"
PREPROCESS = "dataset_param.preprocess_parameters"


@pytest.fixture
def folder(tmp_path) -> Path:
    return mm_files.write_all(tmp_path)


def train(folder: Path, *more: str):
    files = ["--mm-model", folder / "pretrain_model.json", "--mm-data", folder / "data.json"]
    flags = [*files, "--load", folder / "release", "--save", folder / "save", *mm_files.TRAIN_FLAGS, *more]
    return run_config([str(flag) for flag in flags], world_size=1)


def load_data(folder: Path) -> DataConfig:
    return build(DataConfig, data_node(read_json(folder / "data.json")))


def test_training_reads_them_with_the_flags_of_the_launch_script(folder):
    config = train(folder)
    dataset = config.data.dataset_param
    assert dataset.model_max_length == 16 and dataset.tokenizer_config.from_pretrained.endswith("t5")
    assert dataset.tokenizer_config_2.model_max_length == 77
    clips = dataset.preprocess_parameters
    assert (clips.ae_stride_t, clips.video_reader_type, clips.seed) == (8, "decoder", 42)
    assert clips.train_pipeline.video[1].size == clips.train_pipeline.image[1].size == (32, 64)
    assert config.data.dataloader_param.num_workers == 3  # of the flags
    assert config.optimizer.clip_grad_ema_decay == 0.99 and config.precision.autoencoder == "fp32"


def test_sampling_and_the_page_read_them_too(folder):
    flags = [
        "--mm-model",
        str(folder / "inference_model.json"),
        "--load",
        str(folder / "release"),
        *mm_files.SAMPLE_FLAGS,
    ]
    config = sample_config(flags, world_size=1)
    assert config.model.weight_dtype == "fp16" and config.model.tokenizer_2.from_pretrained.endswith("clip")
    assert config.model.diffusion.guidance_scale == 7.0
    flags.remove("--micro-batch-size"), flags.remove("1")
    files = flags[:4]
    assert serve_config(files, world_size=1).sample.model.pipeline_config.input_size == (9, 32, 32)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published files")
def test_the_published_files_load():
    data = load_data(PUBLISHED)
    clips = data.dataset_param.preprocess_parameters
    assert (clips.num_frames, clips.aspect_limits, clips.fixed_size("video")) == (57, (0.5, 2.0), (288, 512))
    assert data.dataset_param.model_max_length == 512
    model = build(TrainModelConfig, model_node(read_json(PUBLISHED / "pretrain_model.json")))
    assert model.ae.strides == clips.vae_scale_factor
    sample = build(SampleModelConfig, sample_node(read_json(PUBLISHED / "inference_model.json")))
    assert sample.predictor == model.predictor


def keys_of(preprocess, *sizes, **facts) -> dict[tuple[int, int], str]:
    """(height, width) -> "TxHxW" of the rows that are kept, or the rule that dropped one."""
    facts = {"num_frames": 30, "fps": 30.0, **facts}
    rows = [
        Row(f"{height}x{width}.mp4", ("a",), height, width, start=0, crop=None, aesthetic=None, **facts)
        for height, width in sizes
    ]
    try:
        result = filter_rows(rows, preprocess, None)
    except Exception as error:
        return str(error)
    found = {(clip.row.height, clip.row.width): clip.key for clip in result.clips}
    for dropped in result.dropped:
        for path in dropped.rows:
            height, width = path.removesuffix(".mp4").split("x")
            found[int(height), int(width)] = dropped.rule
    return found


def test_the_aspect_rule_limits_the_sample_and_the_transform_sets_its_size(folder):
    change(folder / "data.json", f"{PREPROCESS}.max_hxw", 8192)
    clips = load_data(folder).dataset_param.preprocess_parameters
    assert keys_of(clips, (64, 128), (128, 64), (64, 64), (144, 48), (32, 48), (320, 640)) == {
        (64, 128): "9x32x64",
        (128, 64): "9x32x64",
        (64, 64): "9x32x64",
        (144, 48): "vid_aspect_mismatch",  # 3 : 1
        (32, 48): "vid_res_too_small",
        (320, 640): "9x32x64",
    }


def test_with_force_resolution_the_aspect_rule_is_around_the_target(folder):
    change(folder / "data.json", f"{PREPROCESS}.force_resolution", True)
    clips = load_data(folder).dataset_param.preprocess_parameters
    assert clips.aspect_limits == (0.25, 1.0)  # around 32 / 64
    found = keys_of(clips, (256, 256), (260, 256), (64, 256), (63, 256))
    assert found[256, 256] == "9x32x64" and found[260, 256] == found[63, 256] == "vid_aspect_mismatch"


def test_long_and_slow_clips_are_used_as_there(folder):
    clips = load_data(folder).dataset_param.preprocess_parameters
    assert keys_of(clips, (64, 128), num_frames=9000) == {(64, 128): "9x32x64"}
    assert keys_of(clips, (64, 128), num_frames=30, fps=6.0) == {(64, 128): "9x32x64"}  # each frame twice
    assert "too_long" in keys_of(clips, (64, 128), num_frames=2**31 - 1)  # a mistake, not a clip
    assert "too_long" in keys_of(clips, (64, 128), num_frames=1000, fps=1e-9)


def test_what_the_file_leaves_out_has_the_defaults_of_its_processor(folder):
    for key in ("vae_scale_factor", "hw_stride", "hw_aspect_thr"):
        change(folder / "data.json", f"{PREPROCESS}.{key}", KeyError)
    clips = load_data(folder).dataset_param.preprocess_parameters
    assert (clips.ae_stride_t, clips.hw_stride, clips.hw_aspect_thr) == (4, 32, 1.5)
    change(folder / "data.json", f"{PREPROCESS}.hw_aspect_thr", 0)
    assert load_data(folder).dataset_param.preprocess_parameters.hw_aspect_thr == 1.5


@pytest.mark.parametrize(
    "key, value, message",
    [
        (f"{PREPROCESS}.video_processor_type", "FluxProcessor", "'FluxProcessor' is not one of"),
        (f"{PREPROCESS}.hw_aspect_thr", 0.5, "hw_aspect_thr: 0.5: must be from 1 to 1000000"),
        (f"{PREPROCESS}.max_h_div_w_ratio", 1.0, "max_h_div_w_ratio: hw_aspect_thr limits the aspect ratio already"),
        (f"{PREPROCESS}.vae_scale_factor", [4, 8, 8], "the autoencoder compresses time by 8"),
        (f"{PREPROCESS}.vae_scale_factor", [8, 8, 16], "the autoencoder compresses by [8, 8, 8]"),
        (f"{PREPROCESS}.vae_scale_factor", 8, "vae_scale_factor: expected a list"),
        (f"{PREPROCESS}.ae_stride_t", 4, "ae_stride_t: 4, but"),
        (f"{PREPROCESS}.train_pipeline", [], "train_pipeline: expected an object"),
        ("dataset_param.model_max_length", 300, "300, but dataset_param.tokenizer_config[0].model_max_length is 16"),
        ("dataset_param.tokenizer_config", [], "0 entries; expected one for T5 and one for CLIP"),
        ("dataloader_param.group_frame", True, "group_frame: true: use group_data true"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, key, value, message):
    change(folder / "data.json", key, value)
    with pytest.raises(ConfigError) as caught:
        train(folder)
    assert message in str(caught.value)


def test_a_transform_size_without_sizes_is_refused(folder):
    content = json.loads((folder / "data.json").read_text())
    steps = content["dataset_param"]["preprocess_parameters"]["train_pipeline"]
    steps["video"][1]["param"]["transform_size"] = {"height": 3}
    (folder / "data.json").write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match="transform_size: expected max_height and max_width, or max_hxw; found height"
    ):
        train(folder)


def test_the_autoencoders_own_training_reads_them(folder):
    flags = ["--mm-model", folder / "pretrain_model.json", "--mm-data", folder / "data.json", "--save", folder / "save"]
    config = training_config([str(flag) for flag in [*flags, "--train-iters", 2, "--lr", "1e-4"]], world_size=1)
    assert config.autoencoder.norm_type == "layernorm"
