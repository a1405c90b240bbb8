"""Gradient clipping: the report's rule against the original's trace, where that is right, and its mends."""

import json
import math

import pytest

from mindspeed_mm.optim.adaptive_clip import AdaptiveClip, FixedClip


@pytest.mark.parametrize("trace", ["normal_then_spikes", "starts_above_one", "decay_0.9", "five_sigma_above_floor"])
def test_the_recorded_trace(golden, trace):
    recorded = json.loads(golden("predictor/adaptive_clip.json").read_text())[trace]
    clip = AdaptiveClip(recorded["decay"])
    kinds = set()
    for number, step in enumerate(recorded["steps"]):
        norm, after, state = float(step["grad_norm_in"]), float(step["grad_norm_after"]), step["state"]
        # Where the original raised its flag (which it never cleared) it left the gradients alone; we skip the step.
        left_alone = math.isclose(after, norm, rel_tol=1e-6)
        flagged = not math.isfinite(norm) or (number > 0 and norm > state["max_norm"] and left_alone)
        decision = clip.decide(norm)
        assert bool(decision.skip) == flagged, number
        if not flagged:
            assert norm * decision.scale == pytest.approx(after, rel=1e-5), number
        kinds.add("skip" if decision.skip else "clip" if decision.scale < 1 else "keep")
        assert clip.mean == pytest.approx(state["moving_avg_max_grad_norm"], rel=1e-5), number
        assert clip.variance == pytest.approx(state["moving_avg_max_grad_norm_var"], rel=1e-4, abs=1e-9), number
    assert kinds == ({"keep", "clip"} if trace == "decay_0.9" else {"keep", "clip", "skip"})


def test_a_clipped_norm_is_the_threshold_and_leaves_the_averages():
    clip = AdaptiveClip(0.99)
    clip.decide(0.2)
    before = clip.state_dict()
    decision = clip.decide(1.8)
    assert 1.8 * decision.scale == pytest.approx(decision.threshold, rel=1e-5)
    assert clip.state_dict() == before


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_first_norm_that_is_not_finite_is_skipped_and_poisons_nothing(norm):
    clip = AdaptiveClip(0.99)
    assert str(norm) in clip.decide(norm).skip
    assert clip.decide(0.2).skip is None
    assert clip.mean == pytest.approx(0.6)
    assert clip.decide(100.0).skip is not None


def test_a_first_norm_of_zero_does_not_make_the_threshold_zero():
    clip = AdaptiveClip(0.99)
    assert clip.decide(0.0).scale == 1.0
    assert clip.decide(0.2).scale == 1.0
    assert clip.mean == pytest.approx(0.6)


def test_beyond_five_sigma_the_step_is_skipped():
    clip = AdaptiveClip(0.99)
    clip.decide(0.3)
    assert clip.decide(4.9).skip is None
    decision = clip.decide(5.1)
    assert "5.1 is beyond 5" in decision.skip


def test_its_state_survives():
    clip = AdaptiveClip(0.9)
    for norm in (0.3, 0.2, 0.25):
        clip.decide(norm)
    other = AdaptiveClip(0.9)
    other.load_state_dict(clip.state_dict())
    assert other.decide(0.7) == clip.decide(0.7)


def test_the_fixed_limit():
    clip = FixedClip(1.0)
    assert clip.decide(0.5).scale == 1.0
    assert 4.0 * clip.decide(4.0).scale == pytest.approx(1.0, rel=1e-5)
    assert FixedClip(0.0).decide(1e6).scale == 1.0
    assert clip.decide(math.nan).skip is not None
