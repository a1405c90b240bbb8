"""Runs that hold every pair of layouts and flags equal the plain run on one rank, and themselves after a resume.

A dozen of them, on all layouts, run here. The others, and those with torch.compile, which are slow, are in
`benchmarks/layout_pairs.py`.
"""

import functools
import itertools

import pytest
from pairs import FACTORS, RANKS, TOLERANCES, attempt, covering, every_pair, farthest, label, plain, reference, refusal
from ranks import run_ranks

CASES = covering()


def a_dozen() -> list[dict]:
    """The runs without torch.compile: two per layout on one or two ranks, one per layout on four."""
    uncompiled = [case for case in CASES if not case["compile"]]
    return [
        case
        for layout, ranks in RANKS.items()
        for case in [case for case in uncompiled if case["layout"] == layout][: 2 if ranks < 4 else 1]
    ]


def test_the_runs_hold_every_pair_that_is_not_refused():
    held = {pair for case in CASES for pair in itertools.combinations(case.items(), 2)}
    every = list(every_pair())
    assert len(every) == sum(len(a) * len(b) for a, b in itertools.combinations(FACTORS.values(), 2))
    missing = [pair for pair in every if pair not in held]
    assert all(refusal(dict(pair)) for pair in missing)
    assert len(missing) == 1, missing  # --overlap-param-gather without its optimizer
    assert len(CASES) <= 30


def test_a_dozen_holds_each_value_of_each_factor_and_each_layout():
    held = {item for case in a_dozen() for item in case.items()}
    every = {(name, value) for name, values in FACTORS.items() for value in values}
    assert every - held == {("compile", True)}
    assert len(a_dozen()) >= 12


@functools.cache
def losses_of_the_plain_run(settings: tuple) -> list[float]:
    return run_ranks(plain, 1, dict(settings))[0]


@pytest.mark.parametrize("case", a_dozen(), ids=label)
def test_a_run_equals_the_plain_one_and_itself_after_a_resume(case, tmp_path):
    wanted = losses_of_the_plain_run(tuple(reference(case).items()))
    for losses, resumed, different in run_ranks(attempt, RANKS[case["layout"]], case, tmp_path):
        assert farthest(losses, wanted) <= TOLERANCES[case["precision"]]
        assert resumed == losses[-len(resumed) :]
        assert different == []
