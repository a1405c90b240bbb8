"""The sampling pipeline, with random networks: layouts, guidance, seeds and failures."""

import numpy as np
import pytest
import torch
from ranks import run_ranks
from sampling_parts import MadeUpText, pipeline
from torch._dynamo.utils import counters

from mindspeed_mm.config.sample import PromptConfig, SamplingOptions
from mindspeed_mm.errors import SamplingError
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.sampling.pipeline import to_uint8
from mindspeed_mm.sampling.requests import Request


def request(pipe, seed=7, address=(0, 0), **line) -> Request:
    model = pipe.config.for_prompt(PromptConfig(**{"prompt": "a red circle", **line}))
    return Request(model, seed, address)


def latents_at(tensor: int, context: int, sequence_parallel: bool, guidance: bool) -> np.ndarray:
    parallel = ParallelContext.start(
        tensor_size=tensor,
        context_size=context,
        sequence_parallel=sequence_parallel,
        guidance_parallel=guidance,
    )
    pipe = pipeline(parallel)
    return pipe.denoise([request(pipe)], progress=False).numpy()


@pytest.mark.parametrize(
    "layout",
    [(2, 1, False, False), (2, 1, True, False), (1, 2, False, False), (1, 1, False, True), (1, 1, False, False)],
    ids=["tp2", "tp2-sp", "cp2", "cfg2", "dp2"],
)
def test_a_seed_gives_the_same_latents_at_every_layout(layout):
    pipe = pipeline()
    one = pipe.denoise([request(pipe)], progress=False).numpy()
    for found in run_ranks(latents_at, 2, *layout):
        assert np.abs(found - one).max() < 1e-4


def test_noise_belongs_to_the_prompt_and_the_sample_not_to_the_batch():
    pipe = pipeline()
    both = pipe.noise([request(pipe, 1, (0, 0)), request(pipe, 1, (5, 1))])
    assert torch.equal(both[1:], pipe.noise([request(pipe, 1, (5, 1))]))
    others = [pipe.noise([request(pipe, *of)]) for of in ((1, (5, 0)), (1, (4, 1)), (2, (5, 1)))]
    assert all(not torch.equal(both[1:], other) for other in others)


def test_guidance_pushes_away_from_the_negative_prompt():
    """The first step's velocity = without + scale (with - without)."""
    pipe = pipeline(guidance_rescale=0.0)
    wanted = request(pipe)
    noise, text = pipe.noise([wanted]), pipe.text([wanted.texts.negative, wanted.texts.positive])
    step = next(pipe.steps([wanted]))
    with torch.no_grad():
        without, with_prompt = (pipe.denoiser(noise, torch.ones(1), half) for half in text.chunk(2))
    clean = noise - (without + 3.0 * (with_prompt - without))  # sigma is 1 there
    assert torch.allclose(step.clean, clean, atol=1e-5)
    assert (step.clean - (noise - with_prompt)).abs().max() > 1e-2


def test_halves_in_one_batch_equal_halves_one_after_the_other():
    found = [
        pipe.denoise([request(pipe), request(pipe, 8)], progress=False)
        for pipe in (pipeline(options=SamplingOptions(guidance_mode=mode)) for mode in ("batched", "sequential"))
    ]
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_the_mode_of_guidance_follows_the_memory():
    pipe = pipeline()
    assert pipe.guidance_mode(request(pipe), 1) == "batched"
    pipe.memory_bytes = sum(parameter.nbytes for parameter in pipe.denoiser.parameters())
    assert pipe.guidance_mode(request(pipe), 1) == "sequential"
    assert pipe.guidance_mode(request(pipe, guidance_scale=1.0), 1) == "none"


def test_without_guidance_one_half_is_enough():
    pipe = pipeline()
    wanted = request(pipe, guidance_scale=1.0)
    assert not wanted.guided
    assert pipe.encode([wanted]).batch == 1
    assert pipe.denoise([wanted], progress=False).shape == (1, 4, 2, 8, 8)


def test_samples_of_a_batch_are_those_made_alone():
    pipe = pipeline()
    requests = [request(pipe, 7, (0, 0)), request(pipe, 7, (1, 0), prompt="a blue square")]
    together = pipe.denoise(requests, progress=False)
    alone = torch.cat([pipe.denoise([one], progress=False) for one in requests])
    assert (together - alone).abs().max() < 1e-5


def test_requests_of_two_sizes_are_no_batch():
    pipe = pipeline()
    with pytest.raises(ValueError, match="must have one size"):
        pipe.denoise([request(pipe), request(pipe, input_size=(1, 64, 64))], progress=False)


@pytest.mark.parametrize("bad", [1, 3])
def test_a_velocity_that_is_not_finite_is_named_with_its_step(bad):
    pipe = pipeline()
    forward, calls = pipe.denoiser.forward, []

    def sick(*arguments, **keywords):
        calls.append(1)
        velocity = forward(*arguments, **keywords)
        return velocity * float("nan") if len(calls) == bad else velocity

    pipe.denoiser.forward = sick
    with pytest.raises(SamplingError, match=rf"step {bad} of 4 \(sigma [01].\d+\): the velocity is not finite"):
        pipe.denoise([request(pipe)], progress=False)
    assert len(calls) == bad


def test_a_video_that_is_not_finite_names_the_autoencoder():
    pipe = pipeline()
    with torch.no_grad():
        pipe.autoencoder.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(SamplingError, match="the autoencoder: its video is not finite"):
        pipe.decode(torch.zeros(1, 4, 1, 4, 4))


def test_the_clean_estimate_of_the_last_step_is_the_result():
    pipe = pipeline()
    steps = list(pipe.steps([request(pipe)]))
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert steps[-1].sigma == 0.0
    assert torch.equal(steps[-1].clean, steps[-1].latents)
    assert pipe.preview(steps[0].clean).shape == (64, 64, 3)


def test_the_preview_is_the_first_frame_of_the_video():
    pipe = pipeline()
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    first, video = pipe.preview(latents).astype(int), pipe.decode(latents).astype(int)
    assert np.abs(first - video[0, 0]).max() <= 1


def test_a_step_cache_of_one_changes_nothing_and_of_two_a_little():
    def latents(step_cache):
        pipe = pipeline(options=SamplingOptions(step_cache=step_cache), num_inference_steps=10)
        return pipe.denoise([request(pipe)], progress=False)

    off = pipeline(num_inference_steps=10)
    reference = off.denoise([request(off)], progress=False)
    assert torch.equal(latents("1"), reference)
    for rule in ("2", "2+taylor", "auto:0.4", "auto:0.4+taylor"):
        error = (latents(rule) - reference).square().mean().sqrt() / reference.square().mean().sqrt()
        assert 1e-6 < error < 0.05, rule


def cached_at(tensor: int, context: int, sequence_parallel: bool, guidance: bool) -> np.ndarray:
    parallel = ParallelContext.start(
        tensor_size=tensor, context_size=context, sequence_parallel=sequence_parallel, guidance_parallel=guidance
    )
    pipe = pipeline(parallel, options=AUTO, num_inference_steps=10)
    return pipe.denoise([request(pipe)], progress=False).numpy()


AUTO = SamplingOptions(step_cache="auto:0.4", guidance_mode="sequential")


def test_ranks_of_every_layout_decide_alike_when_the_network_decides():
    pipe = pipeline(options=AUTO, num_inference_steps=10)
    one = pipe.denoise([request(pipe)], progress=False).numpy()
    for layout in ((2, 1, True, False), (1, 2, False, False), (1, 1, False, True)):
        for found in run_ranks(cached_at, 2, *layout):
            assert np.abs(found - one).max() < 1e-4


@pytest.mark.parametrize("rule", ["auto:0.4", "auto:0.3+taylor"])
def test_both_halves_of_guidance_reuse_at_the_same_steps(rule):
    """In one batch as one after the other: guidance would multiply what one of them reuses alone."""
    found = {}
    for mode, both in (("sequential", 2), ("batched", 1)):
        pipe = pipeline(options=SamplingOptions(step_cache=rule, guidance_mode=mode), num_inference_steps=10)
        passes, at_step, latents = [], [], []
        pipe.denoiser.transformer_blocks[1][0].register_forward_hook(lambda *_, passes=passes: passes.append(1))
        for step in pipe.steps([request(pipe)]):
            at_step.append(len(passes) / both)
            passes.clear()
            latents.append(step.latents)
        found[mode] = at_step, latents[-1]
    assert found["sequential"][0] == found["batched"][0] and {0, 1} == set(found["batched"][0])
    assert torch.allclose(found["sequential"][1], found["batched"][1], atol=1e-4)


@pytest.fixture(scope="module")
def euler() -> dict[int, torch.Tensor]:
    """Number of steps -> latents of the plain solver."""
    pipes = {steps: pipeline(num_inference_steps=steps) for steps in (16, 64)}
    return {steps: pipe.denoise([request(pipe)], progress=False) for steps, pipe in pipes.items()}


@pytest.mark.parametrize("solver", ["heun", "adams", "dpm++", "unipc"])
def test_solvers_agree_at_many_steps(solver, euler):
    other = pipeline(num_inference_steps=16, solver=solver)
    found = other.denoise([request(other)], progress=False)
    assert (found - euler[64]).norm() < (euler[16] - euler[64]).norm()


def test_outside_of_its_interval_guidance_costs_nothing():
    calls = []
    pipe = pipeline(options=SamplingOptions(guidance_mode="sequential"), guidance_interval=(0.5, 1.0), shift=1.0)
    pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    steps = list(pipe.steps([request(pipe)]))
    assert len(calls) == 2 + 2 + 2 + 1 and len(steps) == 4  # at 1, 0.75, 0.5 and 0.25
    narrow, alone = pipeline(guidance_interval=(0.0, 0.0)), pipeline(guidance_scale=1.0)
    found, wanted = (one.denoise([request(one)], progress=False) for one in (narrow, alone))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_pixels_are_rounded_and_clamped():
    video = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 0.999, 1.0, 3.0]).view(1, 1, 1, 1, 8).expand(1, 3, 1, 1, 8)
    assert to_uint8(video)[0, 0, 0, :, 0].tolist() == [0, 0, 64, 128, 159, 255, 255, 255]


def test_an_image_is_a_video_of_one_frame():
    pipe = pipeline(size=(1, 32, 32))
    assert pipe.noise([request(pipe)]).shape == (1, 4, 1, 4, 4)
    assert pipe("a red circle", progress=False).shape == (1, 32, 32, 3)


def test_a_call_may_change_size_steps_and_guidance():
    pipe = pipeline()
    video = pipe("a red circle", seed=1, size=(9, 32, 48), steps=2, guidance_scale=1.0, progress=False)
    assert video.shape == (9, 32, 48, 3)
    again = pipe("a red circle", seed=1, size=(9, 32, 48), steps=2, guidance_scale=1.0, progress=False)
    other = pipe("a red circle", seed=2, size=(9, 32, 48), steps=2, guidance_scale=1.0, progress=False)
    assert np.array_equal(video, again) and not np.array_equal(video, other)


def test_compiled_blocks_give_the_same_latents():
    """Traced by dynamo and run by the eager backend: inductor takes a minute on a CPU (benchmarks/sample.py has it)."""
    plain, compiled = pipeline(num_inference_steps=2), pipeline(num_inference_steps=2)
    compiled.denoiser.compile_blocks(backend="eager")
    counters.clear()
    expected = plain.denoise([request(plain)], progress=False)
    assert (compiled.denoise([request(compiled)], progress=False) - expected).abs().max() < 1e-5
    assert counters["stats"]["unique_graphs"] > 1  # one for each kind of block


def test_attention_in_int8_gives_nearly_the_same_latents():
    plain, rounded = pipeline(num_inference_steps=2), pipeline(num_inference_steps=2)
    rounded.denoiser.use_sage_attention(torch.device("cpu"))
    expected = plain.denoise([request(plain)], progress=False)
    off = (rounded.denoise([request(rounded)], progress=False) - expected).abs().max()
    assert 0 < off < 0.02 * expected.abs().max()


def test_made_up_text_depends_on_the_text():
    text = MadeUpText()
    assert torch.equal(text(["a", "b"]).sequence[1:], text(["b"]).sequence)
    assert not torch.equal(text(["a"]).pooled, text(["b"]).pooled)
