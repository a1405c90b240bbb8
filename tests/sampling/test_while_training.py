"""Samples in the middle of training: the networks are the trainer's, and so are the ranks."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ranks import run_ranks

from mindspeed_mm.config.sample import SampleModelConfig
from mindspeed_mm.models.build import build_autoencoder, build_denoiser
from mindspeed_mm.models.text.encoders import TextEncoders
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.sampling.while_training import TrainingSamples
from mindspeed_mm.schema import build, read_json
from mindspeed_mm.weights import load_autoencoder, load_denoiser


def samples(small_model: Path, folder: Path, prompts: Path, parallel: ParallelContext) -> TrainingSamples:
    model = build(SampleModelConfig, read_json(small_model / "sample.json"))
    model = dataclasses.replace(model, prompt=str(prompts), weight_dtype="fp16")  # not what the denoiser has
    denoiser = build_denoiser(model.predictor, parallel, seed=None)
    load_denoiser(denoiser, model.predictor.from_pretrained)
    autoencoder = build_autoencoder(model.ae)
    load_autoencoder(autoencoder, model.ae.from_pretrained)
    encoders = TextEncoders(model.text_encoder, model.text_encoder_2, torch.float32)
    return TrainingSamples(model, denoiser.train(), autoencoder, encoders, torch.device("cpu"), folder, seed=3)


def prompts_file(folder: Path) -> Path:
    file = folder / "prompts.txt"
    file.write_text("a red circle\na blue square\na green triangle\n")
    return file


def test_a_call_writes_videos_and_a_sheet_and_changes_nothing(small_model, tmp_path):
    sampler = samples(small_model, tmp_path / "samples", prompts_file(tmp_path), ParallelContext.current())
    before = {name: value.clone() for name, value in sampler.denoiser.state_dict().items() if value is not None}
    state = torch.get_rng_state()
    written = sampler(20)
    names = ["video_000000.mp4", "video_000001.mp4", "video_000002.mp4", "contact_sheet.png"]
    assert written == [tmp_path / "samples" / "iter_0000020" / name for name in names]
    assert all(path.stat().st_size > 500 for path in written)
    assert np.asarray(Image.open(written[-1])).shape[2] == 3
    assert sampler.denoiser.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, sampler.denoiser.state_dict()[name]) for name, value in before.items())
    again = sampler(40)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]
    with torch.no_grad():
        sampler.denoiser.proj_out.weight.mul_(1.5)
    assert sampler(60)[0].read_bytes() != written[0].read_bytes()


def test_weights_that_are_not_finite_do_not_stop_training(small_model, tmp_path, caplog):
    sampler = samples(small_model, tmp_path / "samples", prompts_file(tmp_path), ParallelContext.current())
    with torch.no_grad():
        sampler.denoiser.proj_out.bias.fill_(float("nan"))
    assert sampler(1) == []
    assert "iter_0000001/video_000002: step 1 of 4" in caplog.text


def test_a_disk_that_takes_nothing_does_not_stop_training(small_model, tmp_path, caplog):
    sampler = samples(small_model, tmp_path / "samples", prompts_file(tmp_path), ParallelContext.current())
    (tmp_path / "samples").write_text("a file where the folder has to be")
    assert sampler(1) == []
    assert "iter_0000001/video_000002: " in caplog.text


def test_each_step_and_each_video_is_a_sign_of_progress(small_model, tmp_path, monkeypatch):
    sampler = samples(small_model, tmp_path / "samples", prompts_file(tmp_path), ParallelContext.current())
    signs = []
    monkeypatch.setattr(sampler.denoiser.parallel.pulse, "beat", signs.append)
    sampler(1)
    signs = [sign for sign in signs if not sign.startswith("the way to")]  # where ranks meet
    assert signs == [*(f"denoising step {step} of 4" for step in range(1, 5)), "decoding a video"] * 3


def on_two_ranks(small_model: Path, folder: Path, tensor: int) -> list[str]:
    parallel = ParallelContext.start(tensor_size=tensor)
    sampler = samples(small_model, folder, folder.parent / "prompts.txt", parallel)
    return [path.name for path in sampler(5)]


def test_data_ranks_share_the_prompts_and_tensor_ranks_a_video(small_model, tmp_path):
    prompts = prompts_file(tmp_path)
    one = samples(small_model, tmp_path / "one", prompts, ParallelContext.current())(5)
    written = run_ranks(on_two_ranks, 2, small_model, tmp_path / "dp2", 1)
    assert written == [["video_000000.mp4", "video_000002.mp4", "contact_sheet.png"], ["video_000001.mp4"]]
    assert all((tmp_path / "dp2" / "iter_0000005" / path.name).read_bytes() == path.read_bytes() for path in one)
    written = run_ranks(on_two_ranks, 2, small_model, tmp_path / "tp2", 2)
    assert written == [[path.name for path in one], []]
