"""A student learns what its frozen teacher makes, alike at every layout, and goes on exactly where it was stopped."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from rank_runs import DENOISER, SEED, FakeBatch, FakeEncoders, Layout, Run, curve, negative_text
from ranks import run_ranks
from test_resume import stop_and_resume

from mindspeed_mm.config.distillation import DistillConfig
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.diffusion import guidance, schedule
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.files import layout as files
from mindspeed_mm.files import torch_state
from mindspeed_mm.training.distillation import GuidanceDistillation, StepDistillation, Teacher
from mindspeed_mm.weights import sources

STEPS = 3
TOLERANCE = 1e-5  # relative, of losses and gradient norms, fp32
GUIDANCE = DistillConfig(method="guidance", guidance=4.0, rescale=0.5)
FEW = DistillConfig(method="steps", guidance=3.0, rescale=0.0, steps=4, teacher_steps=2)
GRID = LatentGrid(2, 8, 8)
DIFFUSION = DiffusionConfig(shift=2.0, guidance_scale=3.0, guidance_rescale=0.0)


# ------------------------------------------------------------------------------------------------------------- targets


def sample(count: int = 4):
    return FakeEncoders()(FakeBatch(tuple(range(count))))


class Field:
    """A teacher whose velocity is known: `rate` times the latents. Remembers where it was asked."""

    passes, asked = 2, ()

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, latents, sigma, conditions, keep):
        self.asked = (*self.asked, sigma)
        return self.rate * latents


def few(teacher, steps: int = 4, teacher_steps: int = 3) -> StepDistillation:
    return StepDistillation(DIFFUSION, DENOISER, SEED, teacher, steps, teacher_steps)


def test_a_step_of_euler_on_the_target_ends_where_the_teacher_ends():
    teacher, point = Field(0.5), sample()
    levels = schedule.grid(dataclasses.replace(DIFFUSION, num_inference_steps=4), GRID)
    begin, end = levels[:-1], levels[1:]
    target = few(teacher).target(point, torch.zeros(0), point.latents, begin)
    width = (begin - end) / 3
    reached = point.latents * ((1 - 0.5 * width) ** 3)[:, None, None, None, None]
    torch.testing.assert_close(point.latents - (begin - end)[:, None, None, None, None] * target, reached)
    for number, sigma in enumerate(teacher.asked):
        torch.testing.assert_close(sigma, begin - number * width)


def test_only_the_beginnings_of_sampling_steps_are_trained():
    task, point = few(Field(0.0)), sample(40)
    seen = []
    task.loss(lambda latents, sigma, *_, **__: seen.append(sigma) or torch.zeros_like(latents), point)
    levels = schedule.grid(dataclasses.replace(DIFFUSION, num_inference_steps=4), GRID)
    assert set(seen[0].tolist()) == set(levels[:-1].tolist())
    inside = torch.tensor([1.0, 0.999, 0.81, 0.79, 0.01])  # levels are 1, 6/7, 2/3, 2/5, 0
    torch.testing.assert_close(task.level(inside, GRID), torch.tensor([1, 1, 6 / 7, 6 / 7, 2 / 5]))


def test_loss_weights_of_a_scheme_are_those_of_its_own_levels():
    weighted = dataclasses.replace(DIFFUSION, weighting_scheme="sigma_sqrt")
    task = dataclasses.replace(few(Field(0.5)), diffusion=weighted)
    assert task.loss(lambda x, *_, **__: 0 * x, sample()) == few(Field(0.5)).loss(lambda x, *_, **__: 0 * x, sample())


class Halves(torch.nn.Module):
    """A denoiser whose velocity is the mean of its text, so that the halves of guidance differ in a known way."""

    dtype = torch.float32

    def forward(self, latents, sigma, conditions, keep):
        assert len(latents) == len(sigma) == conditions.batch == len(keep)
        return latents * conditions.text.sequence.mean((1, 2))[:, None, None, None, None]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_target_is_the_guided_velocity_of_both_halves(rescale):
    diffusion = dataclasses.replace(DIFFUSION, guidance_rescale=rescale, guidance_interval=(0.3, 0.8))
    point, negative, sigma = sample(), negative_text(), torch.tensor([0.1, 0.4, 0.7, 0.9])
    task = GuidanceDistillation(diffusion, DENOISER, SEED, Teacher(Halves(), diffusion, negative))
    found = task.target(point, torch.zeros(0), point.latents, sigma)
    for index, level in enumerate(sigma.tolist()):
        latents = point.latents[index : index + 1]
        halves = [latents * text.mean() for text in (negative.sequence, point.conditions.text.sequence[index])]
        expected = guidance.combine(*halves, 3.0, rescale) if 0.3 <= level <= 0.8 else halves[1]
        torch.testing.assert_close(found[index : index + 1], expected)


def test_without_guidance_the_caption_alone_counts_in_one_pass():
    point = sample()
    teacher = Teacher(Halves(), DIFFUSION, None)
    found = teacher(point.latents, torch.full((4,), 0.5), point.conditions, point.keep)
    torch.testing.assert_close(
        found, point.latents * point.conditions.text.sequence.mean((1, 2))[:, None, None, None, None]
    )
    assert (teacher.passes, Teacher(Halves(), DIFFUSION, negative_text()).passes) == (1, 2)


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("distill", [GUIDANCE, FEW], ids=lambda one: one.method)
def test_two_ranks_give_the_curve_of_one(distill):
    one = run_ranks(curve, 1, Layout(distill=distill, micro_batch=2), STEPS)[0]
    two = Layout(distill=distill, tensor=2, sequence_parallel=True, micro_batch=4)
    for found in run_ranks(curve, 2, two, STEPS):
        assert found == [pytest.approx(step, rel=TOLERANCE) for step in one]
    plain = run_ranks(curve, 1, Layout(), 1)[0]
    assert one[0][0] != pytest.approx(plain[0][0], rel=1e-2)  # it learns something else than the clips


LORA = AdapterConfig(kind="lora", rank=3, targets=("attention", "feed_forward"))


def of_separate_teacher(layout: Layout, steps: int) -> tuple[list[float], list[float]]:
    """Losses of an adapter whose teacher is its own base, and of one whose teacher is a copy of the base."""
    shared = [result.loss for result in Run(layout).steps(steps)]
    run, base = Run(layout), Run(dataclasses.replace(layout, adapter=None, distill=DistillConfig()))
    teacher = run.step.objective.task.teacher
    teacher.network, teacher.context = base.network, contextlib.nullcontext
    return shared, [result.loss for result in run.steps(steps)]


def test_the_base_of_an_adapter_teaches_as_a_copy_of_it():
    layout = Layout(adapter=LORA, distill=GUIDANCE, micro_batch=4)
    shared, separate = run_ranks(of_separate_teacher, 1, layout, STEPS)[0]
    assert shared == separate
    assert shared[-1] < shared[0]


@pytest.mark.parametrize(
    ("ranks", "options", "settings"),
    [
        (1, {"distill": GUIDANCE, "adapter": LORA, "micro_batch": 4}, {}),
        (2, {"distill": FEW, "dtype": "bf16", "tensor": 2, "micro_batch": 4}, {"format": "torch_dist"}),
    ],
    ids=["guidance, adapter", "steps, TP 2"],
)
def test_resuming_is_exact_and_the_teacher_is_in_no_checkpoint(tmp_path, ranks, options, settings):
    checkpoint = CheckpointConfig(save=str(tmp_path), **settings)
    for different, resumed, straight in run_ranks(stop_and_resume, ranks, Layout(**options), checkpoint, True):
        assert not different
        assert resumed == straight
    directory = files.find(tmp_path).directory
    held = torch_state.load(files.state_files(directory)[0])
    assert held["distilled"] == options["distill"].record(DiffusionConfig(), "11").plain()
    assert not [name for name in held if "teacher" in name]
    assert sources.open_checkpoint(tmp_path).distilled == held["distilled"]


def begin(mine: Layout, theirs: Layout, root: str) -> None:
    """Saves a run, and lets another one continue it."""
    run = Run(mine, CheckpointConfig(save=root))
    run.saver.save()
    Run(theirs).saver.resume(Path(root))


def test_a_checkpoint_of_another_teacher_is_refused(tmp_path):
    with pytest.raises(Exception, match=r"learned from another teacher: .* fingerprint 11 "):
        run_ranks(begin, 1, Layout(distill=FEW), Layout(distill=FEW, teacher_seed=12), str(tmp_path))
