"""A job with distilled weights takes their steps and guidance; flags and keys of a prompt count more."""

import json

import torch
from test_job import flags, read, sample

from mindspeed_mm.config.distillation import DistillConfig
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.sampling.pipeline import T2VPipeline

RECORD = DistillConfig(method="steps", steps=2).record(DiffusionConfig(), None)


def distilled(small_model, tmp_path):
    """The folder of an inference JSON whose weights are a student's; the JSON says 4 steps with guidance."""
    weights = torch.load(small_model / "model.pt", weights_only=True)
    torch.save({**weights, "distilled": RECORD.plain()}, tmp_path / "model.pt")
    block = json.loads((small_model / "sample.json").read_text())
    assert block["diffusion"]["num_inference_steps"] == 4
    block["predictor"]["from_pretrained"] = str(tmp_path / "model.pt")
    (tmp_path / "sample.json").write_text(json.dumps(block))
    return tmp_path


def test_a_job_takes_steps_and_guidance_from_the_weights(small_model, tmp_path):
    folder = distilled(small_model, tmp_path)
    prompts = [{"prompt": "a red circle", "size": [1, 32, 32]}, {"prompt": "x", "size": [1, 32, 32], "steps": 3}]
    sample(flags(folder, tmp_path / "samples", prompts, "--guidance", "2.5"))
    records = [read(tmp_path / "samples", f"image_00000{number}") for number in (0, 1)]
    found = [one["sample"]["settings"]["diffusion"] for one in records]
    assert [(one["num_inference_steps"], one["guidance_scale"]) for one in found] == [(2, 2.5), (3, 2.5)]


def test_so_does_a_pipeline_and_what_it_saves(small_model, tmp_path):
    pipeline = T2VPipeline.from_config(distilled(small_model, tmp_path) / "sample.json")
    assert (pipeline.config.diffusion.num_inference_steps, pipeline.config.diffusion.guidance_scale) == (2, 1.0)
    pipeline.save_pretrained(tmp_path / "saved", copy_encoders=False)
    again = T2VPipeline.from_pretrained(tmp_path / "saved")
    assert (again.config.diffusion, again.distilled) == (pipeline.config.diffusion, RECORD)
