"""The small world of `config_files`, said in MindSpeed-MM's words (branch 26.0.0): same keys as its published files."""

import json
from pathlib import Path

from config_files import AUTOENCODER, PREDICTOR

# What its launch script gives; paths and sizes are a test's own.
_TRAIN = (
    "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --context-parallel-size 1 "
    "--context-parallel-algo ulysses_cp_algo --micro-batch-size 1 --global-batch-size 1 --num-workers 3 --bf16 --lr 1e-5 "
    "--min-lr 1e-5 --adam-beta1 0.9 --adam-beta2 0.999 --adam-eps 1e-15 --lr-decay-style constant --weight-decay 1e-4 "
    "--lr-warmup-init 1e-5 --lr-warmup-iters 0 --clip-grad 1.0 --train-iters 2 --no-gradient-accumulation-fusion "
    "--normalization RMSNorm --use-fused-rmsnorm --qk-layernorm --no-load-optim --no-load-rng --no-save-optim "
    "--no-save-rng --use-distributed-optimizer --recompute-granularity full --recompute-method block "
    "--recompute-num-layers 32 --sequence-parallel --log-interval 1 --save-interval 10000 --eval-interval 10000 "
    "--eval-iters 10 --ckpt-format torch --distributed-backend nccl"
)
_SAMPLE = (
    "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --context-parallel-size 1 "
    "--context-parallel-algo ulysses_cp_algo --micro-batch-size 1 --global-batch-size 1 --sequence-parallel --fp16"
)
TRAIN_FLAGS, SAMPLE_FLAGS = _TRAIN.split(), _SAMPLE.split()


def _two(folder: Path, **more) -> list[dict]:
    """A T5 and a CLIP entry; lengths belong to each tokenizer."""
    common = {"hub_backend": "hf", "low_cpu_mem_usage": False, **more}
    return [{**common, "from_pretrained": str(folder / name)} for name in ("t5", "clip")]


def encoders(folder: Path) -> list[dict]:
    first, second = _two(folder, dtype="fp16")
    return [{**first, "model_id": "T5"}, {**second, "model_id": "CLIPWithProjection", "output_key": "text_embeds"}]


def tokenizers(folder: Path, length: int = 16) -> list[dict]:
    first, second = _two(folder, autotokenizer_name="AutoTokenizer")
    return [{**first, "model_max_length": length}, {**second, "model_max_length": 77}]


def model_block(folder: Path) -> dict:
    predictor = {key: value for key, value in PREDICTOR.items() if key != "patch_size"}
    return {
        "load_video_features": False,
        "load_text_features": False,
        "enable_encoder_dp": True,
        "ae": {
            **AUTOENCODER,
            "norm_type": "aelayernorm",
            "vae_scale_factor": [8, 8, 8],
            "use_tiling": True,
            "t_chunk_enc": 8,
            "t_chunk_dec": 4,
            "from_pretrained": str(folder / "vae.pt"),
        },
        "text_encoder": encoders(folder),
        "tokenizer": tokenizers(folder),
        "predictor": {
            **predictor,
            "patch_size_thw": [1, 2, 2],
            "norm_cls": "fp32_layer_norm",
            "norm_elementwise_affine": True,
            "dtype": "fp16",
        },
        "diffusion": {"model_id": "OpenSoraPlan", "weighting_scheme": "logit_normal", "use_dynamic_shifting": True},
        "patch": {"ae_float32": True, "adaptive_clip_grad_norm": {"clip_grad_ema_decay": 0.99}},
    }


def data_block(folder: Path, frames: int = 9, height: int = 32, width: int = 64) -> dict:
    resize = {
        "transform_size": {"max_height": height, "max_width": width},
        "interpolation_mode": "bicubic",
    }
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "CenterCropResizeVideo", "param": resize},
        {"trans_type": "ae_norm"},
    ]
    return {
        "dataset_param": {
            "dataset_type": "t2v",
            "basic_parameters": {"data_path": str(folder / "data.txt"), "data_storage_mode": "combine"},
            "preprocess_parameters": {
                "video_processor_type": "OpensoraplanVideoProcessor",
                "video_reader_type": "DecordVideo",
                "image_reader_type": "Image",
                "num_frames": frames,
                "min_num_frames": frames,
                "frame_interval": 1,
                "max_height": height,
                "max_width": width,
                "max_hxw": height * width,
                "min_hxw": height * width,
                "train_fps": 12,
                "speed_factor": 1.0,
                "drop_short_ratio": 0.0,
                "vae_scale_factor": [8, 8, 8],
                "cfg": 0.1,
                "hw_stride": 16,
                "force_resolution": False,
                "seed": 42,
                "hw_aspect_thr": 2.0,
                "use_aesthetic": True,
                "train_pipeline": {"video": steps, "image": steps},
            },
            "use_text_processer": True,
            "enable_text_preprocess": True,
            "tokenizer_config": tokenizers(folder),
        },
        "dataloader_param": {
            "dataloader_mode": "sampler",
            "sampler_type": "LengthGroupedSampler",
            "shuffle": True,
            "drop_last": True,
            "pin_memory": True,
            "group_frame": False,
            "group_resolution": False,
            "group_data": True,
            "initial_global_step_for_sampler": 0,
            "collate_param": {"model_name": "open_sora_plan"},
        },
    }


def sample_block(folder: Path) -> dict:
    model = model_block(folder)
    return {
        "micro_batch_size": 1,
        "frame_interval": 1,
        "save_path": str(folder / "samples"),
        "fps": 24,
        "prompt": "a red circle",
        "use_prompt_preprocess": True,
        "device": "npu",
        "dtype": "fp16",
        "pipeline_class": "OpenSoraPlanPipeline",
        "pipeline_config": {
            "use_attention_mask": True,
            "input_size": [9, 32, 32],
            "version": "v1.5",
            "model_type": "t2v",
        },
        "ae": {**model["ae"], "dtype": "fp16"},
        "text_encoder": encoders(folder),
        "tokenizer": tokenizers(folder, 512),
        "predictor": model["predictor"],
        "diffusion": {
            "model_id": "OpenSoraPlan",
            "num_inference_steps": 4,
            "guidance_scale": 7.0,
            "guidance_rescale": 0.7,
            "use_linear_quadratic_schedule": False,
            "use_dynamic_shifting": False,
            "shift": 7.0,
        },
    }


def write_all(folder: Path) -> Path:
    """pretrain_model.json, data.json and inference_model.json, with empty files where they name weights."""
    for name in ("t5", "clip", "release"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("vae.pt", "data.txt"):
        (folder / name).touch()
    write_configs(folder)
    return folder


def write_configs(folder: Path, **data) -> None:
    """The three JSONs alone. data: arguments of `data_block`."""
    blocks = {
        "pretrain_model": model_block(folder),
        "data": data_block(folder, **data),
        "inference_model": sample_block(folder),
    }
    for name, block in blocks.items():
        (folder / f"{name}.json").write_text(json.dumps(block, indent=1))
