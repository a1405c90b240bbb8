"""Rules of guidance: what stands for the prediction without prompt."""

import pytest
import torch

from mindspeed_mm.config.guidance_rules import RULES
from mindspeed_mm.config.model import DiffusionConfig
from mindspeed_mm.config.sample import PromptConfig
from mindspeed_mm.diffusion import guidance
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.schema import check

GENERATOR = torch.Generator().manual_seed(0)
WITHOUT, WITH, LATENTS = (torch.randn(2, 4, 3, 8, 8, generator=GENERATOR) for _ in range(3))
SIGMA = 0.6


def dot(first, second):
    return (first * second).flatten(1).sum(1)


@pytest.mark.parametrize("rule", RULES)
def test_a_scale_of_one_is_the_prediction_with_prompt(rule):
    found = guidance.combine(RULES[rule](WITHOUT, WITH, LATENTS, SIGMA), WITH, 1.0)
    assert torch.allclose(found, WITH, atol=1e-6)


def test_plain_guidance_is_as_it_was():
    assert RULES["cfg"](WITHOUT, WITH, LATENTS, SIGMA) is WITHOUT


def test_cfg_zero_scales_to_the_least_distance():
    base = RULES["cfg-zero"](WITHOUT, WITH, LATENTS, SIGMA)
    assert torch.allclose(dot(WITH - base, WITHOUT), torch.zeros(2), atol=1e-3)
    again = RULES["cfg-zero"](3 * WITHOUT, WITH, LATENTS, SIGMA)  # whatever its size was
    assert torch.allclose(base, again, atol=1e-5)


def test_apg_moves_the_clean_estimate_at_right_angles_to_it():
    found = guidance.combine(RULES["apg"](WITHOUT, WITH, LATENTS, SIGMA), WITH, 5.0)
    clean, moved = LATENTS - SIGMA * WITH, LATENTS - SIGMA * found
    assert torch.allclose(dot(moved - clean, clean), torch.zeros(2), atol=1e-2)
    assert (moved - clean).abs().max() > 0.5
    plain = LATENTS - SIGMA * guidance.combine(WITHOUT, WITH, 5.0)
    assert (dot(plain - clean, clean).abs() > 10).all()


def test_guidance_applies_within_its_interval():
    config = DiffusionConfig(guidance_scale=4.0, guidance_interval=(0.2, 0.8))
    assert [config.guides_at(sigma) for sigma in (0.1, 0.2, 0.5, 0.8, 0.9)] == [False, True, True, True, False]
    assert not DiffusionConfig(guidance_scale=1.0).guides_at(0.5)
    with pytest.raises(ConfigError, match="the first noise level is the lower one"):
        check(DiffusionConfig(guidance_interval=(0.8, 0.2)))


def test_the_shift_follows_the_number_of_steps():
    shifts = ((8.0, 5.0), (4.0, 7.0), (20.0, 3.0))
    found = [
        DiffusionConfig(num_inference_steps=steps, shift=1.5, shift_of_steps=shifts).sampling_shift
        for steps in (2, 4, 5, 8, 20, 21)
    ]
    assert found == [7.0, 7.0, 5.0, 5.0, 3.0, 1.5]


def test_a_prompt_may_choose_its_solver_and_rule():
    with pytest.raises(ConfigError, match="'heunn' is not one of"):
        check(PromptConfig(prompt="a", solver="heunn"))
