"""Makes all inputs of the quickstart: clips, text encoders, prompts to sample, and the JSON configs."""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without installing it

from clips import FPS, FRAMES, SIZE, Scene, scenes, write_clips
from tiny_encoders import CLIP_WIDTH, T5_WIDTH, write_encoders

from mindspeed_mm.schema import read_json

HERE = Path(__file__).resolve().parent
TOKENS = 16  # tokens of a caption; the grammar's have 10
PREDICTOR = {
    "model_id": "SparseUMMDiT",
    "num_layers": [2, 2, 2],
    "sparse_n": [1, 2, 1],
    "sparse1d": True,
    "double_ff": True,
    "skip_connection": True,
    "num_heads": 4,
    "head_dim": 16,
    "timestep_embed_dim": 128,
    "caption_channels": T5_WIDTH,
    "pooled_projection_dim": CLIP_WIDTH,
    "patch_size": 1,
    "patch_size_t": 1,
}
DIFFUSION = {"model_id": "OpenSoraPlan", "weighting_scheme": "logit_normal"}
GUIDANCE = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--clips", type=int, default=960, help="number of clips")
    parser.add_argument("--seen", type=int, default=16, help="prompts of combinations that the clips show")
    parser.add_argument("--unseen", type=int, default=8, help="prompts of combinations that no clip shows")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the clips, the text encoders and the choice of prompts"
    )
    parser.add_argument("--caption-dropout", type=float, default=0.1, help="share of captions that are dropped")
    parser.add_argument("--dense", action="store_true", help="full attention in every block, Skiparse off")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps")
    parser.add_argument("--weights", default="ema", choices=("ema", "live"), help="merged weights to sample with")
    options = parser.parse_args()
    out: Path = options.out
    data_list = write_clips(out / "data", options.clips, options.seed)
    t5, clip = write_encoders(out / "encoders", [scene.caption for scene in [*scenes(False), *scenes(True)]])
    for name in ("wfvae.pt", "wfvae_statistics.json"):
        shutil.copyfile(HERE / name, out / name)
    prompts = out / "prompts.txt"
    chosen = choose(options.seen, options.unseen, random.Random(options.seed))
    prompts.write_text("".join(f"{scene.caption}\n" for scene in chosen), encoding="utf-8")
    write_json(out / "data.json", data_config(data_list, t5, clip, out / "features", options.caption_dropout))
    shared = model_config(t5, clip, out, sparse=not options.dense)
    stored = {"load_video_features": True, "load_text_features": True}  # written by tools/extract_features.py
    write_json(out / "model.json", shared | stored | {"diffusion": DIFFUSION})
    merged = out / "merged" / {"ema": "model_ema.pt", "live": "model.pt"}[options.weights]
    predictor = {"predictor": {**shared["predictor"], "from_pretrained": str(merged)}}
    write_json(out / "sample.json", shared | predictor | sample_config(t5, clip, prompts, out, options.steps))
    print(f"prepared {out}")


def choose(seen: int, unseen: int, rng: random.Random) -> list[Scene]:
    """Scenes to sample: first some that are in the clips, then held-out ones."""
    return [*rng.sample(scenes(held_out=False), seen), *rng.sample(scenes(held_out=True), unseen)]


def model_config(t5: Path, clip: Path, out: Path, sparse: bool) -> dict:
    """Settings shared by training and sampling."""
    ae = read_json(HERE / "autoencoder.json").plain()["ae"]
    channels = {"in_channels": ae["latent_dim"], "out_channels": ae["latent_dim"]}
    return {
        "weight_dtype": "fp32",
        "ae": {**ae, "from_pretrained": str(out / "wfvae.pt"), "statistics": str(out / "wfvae_statistics.json")},
        "text_encoder": {"model_id": "T5", "from_pretrained": str(t5)},
        "text_encoder_2": {"model_id": "CLIPWithProjection", "from_pretrained": str(clip)},
        "predictor": {**PREDICTOR, **channels, "sparse1d": sparse},
    }


def sample_config(t5: Path, clip: Path, prompts: Path, out: Path, steps: int) -> dict:
    return {
        "tokenizer": {"from_pretrained": str(t5)},
        "tokenizer_2": {"from_pretrained": str(clip)},
        "diffusion": {**DIFFUSION, "num_inference_steps": steps, "guidance_scale": GUIDANCE, "guidance_rescale": 0.0},
        "pipeline_config": {"input_size": [FRAMES, SIZE, SIZE], "version": "none"},
        "prompt": str(prompts),
        "save_path": str(out / "samples"),
        "fps": FPS,
        "micro_batch_size": 12,
    }


def data_config(data_list: Path, t5: Path, clip: Path, features: Path, caption_dropout: float) -> dict:
    steps = [
        {"trans_type": "ToTensorVideo"},
        {"trans_type": "CenterCropResizeVideo", "param": {"size": [SIZE, SIZE], "interpolation_mode": "bicubic"}},
        {"trans_type": "ae_norm"},
    ]
    return {
        "dataset_param": {
            "dataset_type": "t2v",
            "basic_parameters": {"data_path": str(data_list), "feature_folder": str(features)},
            "preprocess_parameters": {
                "num_frames": FRAMES,
                "min_num_frames": FRAMES,
                "train_fps": FPS,
                "max_height": SIZE,
                "max_width": SIZE,
                "max_hxw": SIZE * SIZE,
                "min_hxw": SIZE * SIZE,
                "ae_stride_t": 8,
                "cfg": caption_dropout,
                "fixed_crops": 1,
                "train_pipeline": {"video": steps, "image": steps},
            },
            "model_max_length": TOKENS,
            "tokenizer_config": {"from_pretrained": str(t5)},
            "tokenizer_config_2": {"from_pretrained": str(clip)},
        },
        "dataloader_param": {"num_workers": 1, "group_data": True, "drop_last": True},
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
