"""When a sampling step reuses the residuals of the inner blocks, and what it adds."""

import pytest
import torch

from mindspeed_mm.config.step_cache import CacheRule
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.models.step_cache import StepCache


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1", CacheRule()),
        (3, CacheRule(every=3)),
        ("auto:0.05", CacheRule(limit=0.05)),
        ("auto:1", CacheRule(limit=1.0)),
        ("2+taylor", CacheRule(every=2, forecast=True)),
        ("auto:0.2+taylor", CacheRule(limit=0.2, forecast=True)),
    ],
)
def test_rules_are_read(text, rule):
    assert CacheRule.read(text) == rule


@pytest.mark.parametrize(
    "text", ["0", "", "auto", "auto:", "auto:0", "auto:-1", "auto:nan", "2.5", "taylor", "auto:.+taylor"]
)
def test_other_rules_are_refused(text):
    with pytest.raises(ConfigError, match=r"must be N, auto:LIMIT"):
        CacheRule.read(text)


def test_the_number_of_a_step_decides_at_every_nth():
    assert [CacheRule(every=2).reuses(number, 10) for number in range(10)] == [
        *(False, False, True, False, True),
        *(False, True, False, True, False),
    ]
    assert [CacheRule(limit=0.1).reuses(number, 3) for number in range(3)] == [None, None, False]
    assert not any(CacheRule().reuses(number, 3) for number in range(3))


def run(cache, first, residual, sigma):
    """A pass of a network whose first stage adds `first` and whose inner blocks add `residual`; what the latter added."""
    stream = torch.full((4, 1, 2), 1.0)
    cache.reuse, cache.sigma = None, sigma
    if cache.reuses(first * torch.ones_like(stream)):
        return (cache.add(stream)[0] - stream).mean().item()
    cache.keep((stream,), (stream + residual,))
    return residual


def test_the_first_stage_decides_by_its_change_since_the_inner_blocks_ran():
    cache = StepCache(CacheRule(limit=0.1))
    found = [
        run(cache, first, residual, sigma)
        for first, residual, sigma in (
            (1.0, 5.0, 1.0),
            (1.05, 6.0, 0.9),
            (1.09, 7.0, 0.8),
            (1.12, 8.0, 0.7),
            (1.2, 9.0, 0.6),
        )
    ]
    assert found == pytest.approx([5.0, 5.0, 5.0, 8.0, 8.0]) and cache.runs == 2


def test_a_forecast_goes_on_as_a_line():
    cache = StepCache(CacheRule(limit=0.1, forecast=True))
    found = [
        run(cache, first, residual, sigma)
        for first, residual, sigma in ((1.0, 4.0, 1.0), (2.0, 5.0, 0.8), (2.5, 9.0, 0.7), (2.6, 7.0, 0.6))
    ]
    # the first stage went on as a line to 2.5, then left it: 3.0 was expected, and the limit is a tenth
    assert found == pytest.approx([4.0, 5.0, 5.5, 7.0]) and cache.runs == 3


def test_ranks_decide_together():
    """A rank whose own tokens have not changed runs with those whose tokens have."""
    cache = StepCache(CacheRule(limit=0.1), lambda sums: sums + torch.tensor([8.0, 8.0]))
    run(cache, 1.0, 5.0, 1.0)
    assert run(cache, 1.0, 6.0, 0.9) == 6.0


def test_only_the_deciding_samples_of_a_batch_decide():
    for changed, reused in ((1, True), (0, False)):
        cache = StepCache(CacheRule(limit=0.1), deciding=1)
        first = torch.ones(4, 2, 2)
        assert not cache.reuses(first)
        cache.keep((first,), (first,))
        now = first.clone()
        now[:, changed] = 9.0
        cache.reuse = None
        assert cache.reuses(now) == cache.reused == reused, changed


def test_an_empty_cache_says_so():
    with pytest.raises(ValueError, match="the step cache is empty"):
        StepCache().add(torch.zeros(1))
