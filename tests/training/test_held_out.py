"""When held-out losses no longer fall, and where only they rise."""

import types

import pytest

from mindspeed_mm.config.run import EvaluationConfig
from mindspeed_mm.schema import check
from mindspeed_mm.stopping import REASONS, place_of
from mindspeed_mm.training.held_out import HeldOutLosses
from mindspeed_mm.training.trainer import Trainer

BAND = "sigma 0.0-0.2"


def test_patience_counts_evaluations_since_the_lowest_loss():
    seen = HeldOutLosses()
    for iteration, loss in enumerate([3.0, 2.0, 2.5, float("nan"), 2.0], start=1):
        assert not seen.is_exhausted(3)
        seen.add(iteration, {"eval loss": loss})
    assert (seen.lowest, seen.waited, seen.iteration) == (2.0, 3, 5)
    assert seen.is_exhausted(3) and not seen.is_exhausted(4) and not seen.is_exhausted(None)
    again = HeldOutLosses()
    again.load_state_dict(seen.state_dict())
    assert again == seen
    again.add(6, {"eval loss": 1.9})
    assert not again.is_exhausted(1)


def test_averaged_weights_count_before_live_ones():
    seen = HeldOutLosses()
    seen.add(1, {"eval loss": 1.0, "ema eval loss": 5.0})
    seen.add(2, {"eval loss": 2.0, "ema eval loss": 4.0})
    assert (seen.lowest, seen.waited) == (4.0, 0)


def band(held_out: float, trained: float) -> dict[str, float]:
    return {f"eval loss {BAND}": held_out, "training clips loss": 9.0, f"training clips loss {BAND}": trained}


def test_a_band_is_warned_of_when_only_its_held_out_loss_rises():
    seen = HeldOutLosses()
    assert not seen.add(1, band(1.0, 0.9)) and not seen.add(2, band(0.8, 0.7))
    assert not seen.add(3, band(0.83, 0.5))  # less than 5 %
    assert not seen.add(4, band(0.9, 0.75))  # both rise
    again = HeldOutLosses()
    again.load_state_dict(seen.state_dict())
    (warning,) = again.add(5, band(0.96, 0.4))
    assert (
        "noise levels 0.0-0.2 the held-out loss 0.9600 is 20% above" in warning and "from 0.7000 to 0.4000" in warning
    )


def trainer(losses, iteration=0, patience=2, interval=10):
    """The parts of a trainer that an evaluation needs."""
    made = object.__new__(Trainer)
    settings = EvaluationConfig(patience=patience, interval=interval)
    made.config = types.SimpleNamespace(evaluation=settings)
    made.state = types.SimpleNamespace(iteration=iteration, held_out=HeldOutLosses())
    made.reports = types.SimpleNamespace(values=lambda *values: None)
    made.watchdog = types.SimpleNamespace(beat=lambda *values: None)
    made.evaluation = lambda: {"eval loss": losses.pop(0)}
    return made


def test_an_evaluation_that_a_checkpoint_lacks_is_repeated_once():
    losses = [1.0, 2.0, 3.0]
    made = trainer(losses, iteration=10)
    made._evaluate_again()
    made._evaluate_again()
    assert len(losses) == 2 and made.state.held_out.iteration == 10
    made.state.iteration = 15
    made._evaluate_again()
    assert len(losses) == 2 and made._out_of_patience() is None
    for made.state.iteration in (20, 30):
        made._evaluate(made.evaluation)
    assert made._out_of_patience() == "--patience" == REASONS[place_of("--patience")].name
    assert REASONS[place_of("--patience")].exit_code == 0


@pytest.mark.parametrize("name", ["patience", "overfit_check"])
def test_both_need_a_held_out_list(name):
    with pytest.raises(Exception, match="only with --eval-data"):
        check(EvaluationConfig(**{name: 1}))
