"""Everything that the quickstart trains on, made here: clips, text encoders, an autoencoder, and the JSON configs."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

import torch
from clips import BACKGROUNDS, COLOURS, DIRECTIONS, FPS, SHAPES, SIZE, caption, write_clips
from tiny_encoders import CLIP_WIDTH, T5_WIDTH, write_encoders

import mindspeed_mm as mm

FRAMES = 17  # of a training sample and of a sampled video: 8n+1
LATENT_CHANNELS = 8

AUTOENCODER = {
    "model_id": "wfvae",
    "base_channels": 16,
    "latent_dim": LATENT_CHANNELS,
    "encoder_num_resblocks": 1,
    "encoder_energy_flow_hidden_size": 16,
    "decoder_num_resblocks": 1,
    "decoder_energy_flow_hidden_size": 16,
    "connect_res_layer_num": 1,
    "norm_type": "layernorm",
    "t_interpolation": "trilinear",
    "l1_downsample_block": "Spatial2xTime2x3DDownsample",
    "l1_downsample_wavelet": "HaarWaveletTransform3D",
    "l1_upsample_block": "Spatial2xTime2x3DUpsample",
    "l1_upsample_wavelet": "InverseHaarWaveletTransform3D",
    "use_tiling": True,
    "dtype": "fp32",
}
PREDICTOR = {
    "model_id": "SparseUMMDiT",
    "num_layers": [2, 2, 2, 2, 2],
    "sparse_n": [1, 2, 4, 2, 1],
    "sparse1d": True,
    "double_ff": True,
    "skip_connection": True,
    "num_heads": 4,
    "head_dim": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "timestep_embed_dim": 64,
    "caption_channels": T5_WIDTH,
    "pooled_projection_dim": CLIP_WIDTH,
    "patch_size": 2,
    "patch_size_t": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--clips", type=int, default=64, help="number of clips (default 64)")
    options = parser.parse_args()
    out: Path = options.out
    data_list = write_clips(out / "data", options.clips)
    texts = [caption(c, s, d, b) for c in COLOURS for s in SHAPES for d in DIRECTIONS for b in BACKGROUNDS]
    t5, clip = write_encoders(out / "encoders", texts)
    autoencoder = write_autoencoder(out / "wfvae.pt")
    prompts = out / "prompts.txt"
    prompts.write_text(f"{caption('red', 'circle', 'left', 'dark')}\n{caption('blue', 'square', 'up', 'grey')}\n")
    write_json(out / "data.json", data_config(data_list, t5, clip))
    write_json(out / "model.json", model_config(t5, clip, autoencoder))
    write_json(
        out / "sample.json",
        sample_config(t5, clip, autoencoder, out / "merged" / "model_ema.pt", prompts, out / "samples"),
    )
    print(f"prepared {out}")


def write_autoencoder(path: Path) -> Path:
    """A WFVAE with fresh weights: it loses most of the picture, but has every shape right."""
    torch.manual_seed(0)
    torch.save(mm.build_autoencoder(AUTOENCODER).state_dict(), path)
    return path


def encoder_configs(t5: Path, clip: Path) -> dict:
    return {
        "text_encoder": {"model_id": "T5", "from_pretrained": str(t5)},
        "text_encoder_2": {"model_id": "CLIPWithProjection", "from_pretrained": str(clip)},
    }


def model_config(t5: Path, clip: Path, autoencoder: Path) -> dict:
    return {
        "weight_dtype": "fp32",
        "ae": {**AUTOENCODER, "from_pretrained": str(autoencoder)},
        **encoder_configs(t5, clip),
        "predictor": PREDICTOR,
        "diffusion": {"model_id": "OpenSoraPlan", "weighting_scheme": "logit_normal"},
    }


def sample_config(t5: Path, clip: Path, autoencoder: Path, weights: Path, prompts: Path, samples: Path) -> dict:
    return {
        "weight_dtype": "fp32",
        "ae": {**AUTOENCODER, "from_pretrained": str(autoencoder)},
        **encoder_configs(t5, clip),
        "tokenizer": {"from_pretrained": str(t5)},
        "tokenizer_2": {"from_pretrained": str(clip)},
        "predictor": {**PREDICTOR, "from_pretrained": str(weights)},
        "diffusion": {"model_id": "OpenSoraPlan", "num_inference_steps": 20, "guidance_scale": 4.0, "shift": 1.0},
        "pipeline_config": {"input_size": [FRAMES, SIZE, SIZE], "version": "none"},
        "prompt": str(prompts),
        "save_path": str(samples),
        "fps": FPS,
    }


def data_config(data_list: Path, t5: Path, clip: Path) -> dict:
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "CenterCropResizeVideo", "param": {"size": [SIZE, SIZE], "interpolation_mode": "bicubic"}},
        {"trans_type": "ae_norm"},
    ]
    return {
        "dataset_param": {
            "dataset_type": "t2v",
            "basic_parameters": {"data_path": str(data_list)},
            "preprocess_parameters": {
                "num_frames": FRAMES,
                "min_num_frames": FRAMES,
                "train_fps": FPS,
                "max_height": SIZE,
                "max_width": SIZE,
                "max_hxw": SIZE * SIZE,
                "min_hxw": SIZE * SIZE,
                "ae_stride_t": 8,
                "train_pipeline": {"video": steps, "image": steps},
            },
            "model_max_length": 32,
            "tokenizer_config": {"from_pretrained": str(t5)},
            "tokenizer_config_2": {"from_pretrained": str(clip)},
        },
        "dataloader_param": {"num_workers": 1, "group_data": True, "drop_last": True},
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    main()
