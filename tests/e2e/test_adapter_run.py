"""An adapter from training to sampling, as a user runs the programs."""

import json

import torch
from config_files import PREDICTOR
from programs import run

import mindspeed_mm as mm


def test_an_adapter_is_trained_and_sampled_with(world, tmp_path):
    base = tmp_path / "base.pt"
    torch.save({k: v for k, v in mm.build_denoiser(PREDICTOR, seed=3).state_dict().items() if v is not None}, base)
    for name in ("model", "sample"):
        block = json.loads((world / f"{name}.json").read_text())
        block["predictor"]["from_pretrained"] = str(base)
        (tmp_path / f"{name}.json").write_text(json.dumps(block))
    flags = ["--mm-data", world / "data.json", "--mm-model", tmp_path / "model.json", "--save", tmp_path / "run"]
    flags += ["--adapter", "lora", "--adapter-rank", 2, "--lr", 1e-2, "--train-iters", 2, "--log-interval", 1]
    flags += ["--tensor-model-parallel-size", 2, "--sequence-parallel", "--model_custom_precision"]
    flags += ["--mm-sample", tmp_path / "sample.json", "--sample-interval", 2, "--use-ema", "--seed", 1234]
    result = run("pretrain_opensoraplan.py", flags, 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "lora of rank 2 on" in result.stdout
    video = (tmp_path / "run" / "samples" / "iter_0000002" / "video_000000.mp4").read_bytes()

    def sampled(name: str, *more) -> bytes:
        flags = ["--mm-model", tmp_path / "sample.json", "--seed", 1234, "--save-path", tmp_path / name, *more]
        flags += ["--tensor-model-parallel-size", 2, "--sequence-parallel"]
        result = run("inference.py", flags, 2)
        assert result.returncode == 0, result.stdout + result.stderr
        return (tmp_path / name / "video_000000.mp4").read_bytes()

    assert sampled("same", "--adapter", tmp_path / "run", "--ema") == video
    assert sampled("without", "--adapter", f"{tmp_path / 'run'}=0") != video
