"""A complete, valid set of config files and stand-in weights in a folder, for tests that then break one thing."""

import json
from pathlib import Path

AUTOENCODER = {
    "model_id": "wfvae",
    "base_channels": 8,
    "latent_dim": 4,
    "encoder_num_resblocks": 1,
    "encoder_energy_flow_hidden_size": 8,
    "decoder_num_resblocks": 1,
    "decoder_energy_flow_hidden_size": 8,
    "connect_res_layer_num": 1,
    "norm_type": "layernorm",
    "t_interpolation": "trilinear",
    "l1_dowmsample_block": "Spatial2xTime2x3DDownsample",
    "l1_downsample_wavelet": "HaarWaveletTransform3D",
    "l1_upsample_block": "Spatial2xTime2x3DUpsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
    "dtype": "fp32",
}
PREDICTOR = {
    "num_layers": [2, 2, 2],
    "sparse_n": [1, 2, 1],
    "sparse1d": True,
    "double_ff": True,
    "skip_connection": True,
    "num_heads": 2,
    "head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "timestep_embed_dim": 16,
    "caption_channels": 64,
    "pooled_projection_dim": 32,
}
TRAIN_FLAGS = ["--train-iters", "4", "--lr", "1e-3"]


def encoder_blocks(folder: Path) -> dict:
    return {
        "text_encoder": {"model_id": "T5", "from_pretrained": str(folder / "t5")},
        "text_encoder_2": {"model_id": "CLIPWithProjection", "from_pretrained": str(folder / "clip")},
    }


def model_block(folder: Path) -> dict:
    return {
        "weight_dtype": "fp32",
        "ae": {**AUTOENCODER, "from_pretrained": str(folder / "vae.pt")},
        **encoder_blocks(folder),
        "predictor": PREDICTOR,
        "diffusion": {"weighting_scheme": "logit_normal"},
    }


def data_block(folder: Path, frames: int = 9, height: int = 32, width: int = 32) -> dict:
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "CenterCropResizeVideo", "param": {"size": [height, width], "interpolation_mode": "bicubic"}},
        {"trans_type": "ae_norm"},
    ]
    return {
        "dataset_param": {
            "basic_parameters": {"data_path": str(folder / "data.txt")},
            "preprocess_parameters": {
                "num_frames": frames,
                "min_num_frames": frames,
                "max_height": height,
                "max_width": width,
                "max_hxw": height * width,
                "min_hxw": 0,
                "max_h_div_w_ratio": 10.0,
                "min_h_div_w_ratio": 0.1,
                "too_long_factor": 100.0,
                "train_fps": 8,
                "train_pipeline": {"video": steps, "image": steps},
            },
            "model_max_length": 16,
            "tokenizer_config": {"from_pretrained": str(folder / "t5")},
            "tokenizer_config_2": {"from_pretrained": str(folder / "clip")},
        },
        "dataloader_param": {"num_workers": 0, "group_data": True},
    }


def sample_block(folder: Path) -> dict:
    return {
        **model_block(folder),
        "tokenizer": {"from_pretrained": str(folder / "t5")},
        "tokenizer_2": {"from_pretrained": str(folder / "clip")},
        "predictor": {**PREDICTOR, "from_pretrained": str(folder / "model.pt")},
        "diffusion": {"num_inference_steps": 4, "guidance_scale": 3.0, "shift": 3.0},
        "pipeline_config": {"input_size": [9, 32, 32], "version": "v1.5"},
        "prompt": "a red circle",
        "save_path": str(folder / "samples"),
    }


def write_all(folder: Path) -> Path:
    """model.json, data.json and sample.json, with empty files where they name weights."""
    for name in ("t5", "clip"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("vae.pt", "model.pt", "data.txt"):
        (folder / name).touch()
    for name, block in (("model", model_block), ("data", data_block), ("sample", sample_block)):
        (folder / f"{name}.json").write_text(json.dumps(block(folder), indent=1))
    return folder


def change(path: Path, dotted: str, value) -> None:
    """Set one key of a JSON file, or remove it with value KeyError."""
    content = json.loads(path.read_text())
    *parents, last = dotted.split(".")
    block = content
    for key in parents:
        block = block[key]
    if value is KeyError:
        del block[last]
    else:
        block[last] = value
    path.write_text(json.dumps(content, indent=1))
