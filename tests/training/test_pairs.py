"""Runs that hold every pair of layouts and flags; those on one rank equal the plain run, and themselves after a resume.

The runs on several ranks and with torch.compile, which are slow, are in `benchmarks/layout_pairs.py`.
"""

import itertools

import pytest
from pairs import RANKS, TOLERANCES, attempt, covering, every_pair, farthest, label, plain, reference, refusal
from ranks import run_ranks

CASES = covering()


def test_the_runs_hold_every_pair_that_is_not_refused():
    held = {pair for case in CASES for pair in itertools.combinations(case.items(), 2)}
    assert [pair for pair in every_pair() if pair not in held and refusal(dict(pair)) is None] == []


@pytest.mark.parametrize(
    "case", [case for case in CASES if RANKS[case["layout"]] == 1 and not case["compile"]], ids=label
)
def test_a_run_equals_the_plain_one_and_itself_after_a_resume(case, tmp_path):
    wanted = run_ranks(plain, 1, reference(case))[0]
    for losses, resumed, different in run_ranks(attempt, RANKS[case["layout"]], case, tmp_path):
        assert farthest(losses, wanted) <= TOLERANCES[case["precision"]]
        assert resumed == losses[-len(resumed) :]
        assert different == []
