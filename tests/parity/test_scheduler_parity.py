"""Flow matching against the original's scheduler: sigmas exact, losses and trajectories to fp32 rounding."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mindspeed_mm as mm
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.solvers import SOLVERS, Point
from mindspeed_mm.diffusion import flow, guidance, schedule

ANY = LatentGrid(3, 6, 8)


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden("scheduler/scheduler.safetensors"))


@pytest.mark.parametrize("steps", [10, 30, 50])
@pytest.mark.parametrize(
    ("name", "block", "grid"),
    [
        ("noshift", {}, (1, 8, 8)),
        ("shift7", {"shift": 7.0}, (1, 8, 8)),
        ("linquad", {"use_linear_quadratic_schedule": True}, (1, 8, 8)),
        ("linquad", {"use_linear_quadratic_schedule": True, "shift": 7.0}, (1, 8, 8)),
        ("dynamic_32x32", {"use_dynamic_shifting": True}, (5, 32, 32)),
        ("dynamic_72x128", {"use_dynamic_shifting": True}, (5, 72, 128)),
    ],
)
def test_sampling_sigmas(tensors, name, block, grid, steps):
    sigmas = mm.sigma_grid({**block, "num_inference_steps": steps}, grid)
    assert torch.equal(sigmas, tensors[f"sigmas.{name}_{steps}"])


def test_sampling_ignores_a_static_shift_below_one_and_keeps_sigmas_above_epsilon(tensors):
    assert torch.equal(
        mm.sigma_grid({"shift": 0.5, "num_inference_steps": 10}, (1, 8, 8)), tensors["sigmas.shift0.5_10"]
    )
    sigmas = mm.sigma_grid({"shift": 7.0, "sigma_eps": 1e-3, "num_inference_steps": 10}, (1, 8, 8))
    assert torch.equal(sigmas, tensors["sigmas.shift7_10_eps1e-3"])


def test_shift(golden, tensors):
    sigma = tensors["shift.in"]
    assert torch.equal(schedule.shifted(sigma, 7.0), tensors["shift.static7"])
    assert torch.equal(schedule.shifted(sigma, 0.5), tensors["shift.static0.5"])
    assert torch.equal(schedule.shifted(sigma, 7.0, 0.01), tensors["shift.static7_eps0.01"])
    constants = json.loads(golden("scheduler/scheduler.json").read_text())["dynamic_shift_constants"]["shift_for"]
    for size, wanted in constants.items():
        height, width = map(int, size.split("x"))
        shift = schedule.shift_of(DiffusionConfig(use_dynamic_shifting=True), LatentGrid(9, height, width))
        assert shift == pytest.approx(wanted, rel=1e-12)
        if f"shift.dynamic_{size}" in tensors:
            assert torch.allclose(schedule.shifted(sigma, shift), tensors[f"shift.dynamic_{size}"], atol=1e-7, rtol=0)


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "uniform"])
def test_training_densities(tensors, scheme):
    generator = torch.Generator().manual_seed(42)
    drawn = schedule.draw(DiffusionConfig(weighting_scheme=scheme), ANY, 8, generator)
    assert torch.allclose(drawn, tensors[f"density.{scheme}"], atol=1e-7, rtol=0)


def test_training_draws_are_shifted_also_below_one():
    config = DiffusionConfig(weighting_scheme="uniform")
    plain = schedule.draw(config, ANY, 8, torch.Generator().manual_seed(1))
    low = schedule.draw(
        DiffusionConfig(weighting_scheme="uniform", shift=0.5), ANY, 8, torch.Generator().manual_seed(1)
    )
    assert torch.equal(low, schedule.shifted(plain, 0.5))
    assert (low < plain).all()


@pytest.mark.parametrize("scheme", ["logit_normal", "sigma_sqrt", "cosmap"])
def test_loss_and_its_weights(tensors, scheme):
    config = DiffusionConfig(weighting_scheme=scheme)
    assert torch.equal(flow.loss_weight(tensors["loss_weight.sigmas"], config), tensors[f"loss_weight.{scheme}"])
    target = flow.velocity(tensors["x0"], tensors["noise"])
    sigma = tensors["train_sigmas"].flatten()
    whole = flow.loss(tensors["model_output"], target, sigma, config)
    masked = flow.loss(tensors["model_output"], target, sigma, config, tensors["mask"].bool())
    assert whole.item() == pytest.approx(tensors[f"loss.nomask.{scheme}"].item(), rel=1e-6)
    assert masked.item() == pytest.approx(tensors[f"loss.mask.{scheme}"].item(), rel=1e-6)
    everywhere = torch.ones_like(tensors["mask"]).bool()
    assert flow.loss(tensors["model_output"], target, sigma, config, everywhere).item() == pytest.approx(
        whole.item(), rel=1e-6
    )


def test_a_mask_that_hides_everything_gives_zero_and_a_soft_mask_is_refused(tensors):
    target = flow.velocity(tensors["x0"], tensors["noise"])
    sigma = tensors["train_sigmas"].flatten()
    nothing = torch.zeros_like(tensors["mask"]).bool()
    assert flow.loss(tensors["model_output"], target, sigma, DiffusionConfig(), nothing) == 0
    with pytest.raises(ValueError, match="a position counts or does not"):
        flow.loss(tensors["model_output"], target, sigma, DiffusionConfig(), tensors["mask"])


@pytest.mark.parametrize("name", ["static7", "dynamic"])
def test_interpolation(tensors, name):
    sigma = tensors[f"q_sample.{name}.sigmas"].flatten()
    assert torch.equal(flow.interpolate(tensors["x0"], tensors["noise"], sigma), tensors[f"q_sample.{name}.x_t"])
    assert torch.allclose(1000 * sigma, tensors[f"q_sample.{name}.timesteps"])


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_rescaling(tensors, rescale):
    # With scale 0 the guided prediction is the first argument.
    found = guidance.combine(tensors["rescale.cfg"], tensors["rescale.text"], 0.0, rescale)
    assert torch.allclose(found, tensors[f"rescale.out_{rescale}"], atol=1e-6, rtol=0)


def toy_velocity(x, timestep, sequence, pooled):
    """The network of the recorded trajectories."""

    def of_sample(value):
        return value[:, None, None, None, None]

    return (
        0.1 * x
        + 0.02 * torch.sin(of_sample(timestep) / 100)
        + 0.3 * torch.tanh(x * of_sample(sequence.mean((1, 2, 3))))
        + 0.05 * of_sample(pooled.mean((1, 2)))
    )


def euler_step(latents, velocity, sigma, following):
    point = Point.at(sigma.item(), latents.float(), velocity)
    return SOLVERS["euler"].step([point], following.item(), None).latents


def test_sampling_trajectories(golden, tensors):
    samples = json.loads(golden("scheduler/scheduler.json").read_text())["samples"]
    assert len(samples) == 5
    for name, sample in samples.items():
        config = DiffusionConfig(**sample["config"])
        latents = tensors["toy.latents0"]
        sigmas = schedule.grid(config, LatentGrid(*latents.shape[2:]))
        assert torch.equal(sigmas, tensors[f"sample.{name}.sigmas"])
        for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            timestep = (1000 * sigma).expand(1)
            if sample["cfg_batch"]:  # the recorded batch is [without text, with text]
                both = toy_velocity(
                    latents.repeat(2, 1, 1, 1, 1), timestep.repeat(2), tensors["toy.enc2"], tensors["toy.pool2"]
                )
                velocity = guidance.combine(*both.chunk(2), config.guidance_scale, config.guidance_rescale)
            else:
                velocity = toy_velocity(latents, timestep, tensors["toy.enc1"], tensors["toy.pool1"])
            latents = euler_step(latents, velocity, sigma, following)
            assert torch.allclose(latents, tensors[f"sample.{name}.traj"][step], atol=2e-5, rtol=0), (name, step)
        assert torch.allclose(latents, tensors[f"sample.{name}.final"], atol=2e-5, rtol=0)


def test_euler_is_exact_on_a_constant_velocity():
    z0, noise = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    latents = noise
    sigmas = mm.sigma_grid({"num_inference_steps": 7, "shift": 7.0}, (3, 4, 4))
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        latents = euler_step(latents, flow.velocity(z0, noise), sigma, following)
    assert torch.allclose(latents, z0, atol=1e-5)
