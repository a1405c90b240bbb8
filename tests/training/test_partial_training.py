"""A run that trains some parameters leaves the others as they are, in every bit, and resumes exactly."""

import pytest
import torch
from rank_runs import Layout, Run
from ranks import run_ranks
from test_resume import stop_and_resume

from mindspeed_mm.config.run import CheckpointConfig

ONLY = ("norm_out", "attn1.to_q", "norm")  # split and whole ones, with partial gradients and without


def moved(layout: Layout) -> tuple[list[str], list[str]]:
    """Names of the parameters that two steps changed, and of those that have an optimizer state."""
    run = Run(layout)
    before = {name: value.detach().clone() for name, value in run.network.named_parameters()}
    run.steps(2)
    run.engine.publish()
    changed = [name for name, value in run.network.named_parameters() if not torch.equal(value, before[name])]
    return changed, [shard.name for shard in run.engine.main_shards()]


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(1, {"distributed_optimizer": False}), (2, {"tensor": 2, "sequence_parallel": True, "micro_batch": 2})],
    ids=str,
)
def test_only_the_named_parameters_move(ranks, options):
    for changed, held in run_ranks(moved, ranks, Layout(train_only=ONLY, **options)):
        assert "transformer_blocks.0.0.attn1.to_q.weight" in changed
        assert "norm_out.linear.weight" in changed
        assert not [name for name in changed if "to_k." in name or "ff." in name or "patch_embed" in name]
        assert changed == held


@pytest.mark.parametrize("settings", [{}, {"format": "torch_dist"}], ids=str)
def test_resuming_is_exact(tmp_path, settings):
    layout = Layout(train_only=ONLY, micro_batch=4, lr_multipliers=("attn1.to_q=0.1", "norm=3"))
    checkpoint = CheckpointConfig(save=str(tmp_path), **settings)
    for different, resumed, straight in run_ranks(stop_and_resume, 1, layout, checkpoint, True):
        assert not different
        assert resumed == straight


def steps_of(layout: Layout) -> tuple[dict[str, float], float]:
    """Largest change of each parameter in the first step, which AdamW makes about as large as the learning rate; and the
    reported rate.
    """
    run = Run(layout, optimizer={"weight_decay": 0.0})
    before = {name: value.detach().clone() for name, value in run.network.named_parameters()}
    (result,) = run.steps(1)
    run.engine.publish()
    changes = {name: (value - before[name]).abs().max().item() for name, value in run.network.named_parameters()}
    return changes, result.report.learning_rate


def test_a_factor_multiplies_the_learning_rate_of_its_parameters():
    words = ("attention=0.1", "transformer_blocks.0.0.attn1.to_q=0.5")
    ((changes, rate),) = run_ranks(steps_of, 1, Layout(micro_batch=4, lr_multipliers=words))
    assert rate == pytest.approx(1e-2)
    assert changes["transformer_blocks.0.0.attn1.to_q.weight"] == pytest.approx(5e-3, rel=0.02)
    assert changes["transformer_blocks.0.0.attn1.to_k.weight"] == pytest.approx(1e-3, rel=0.02)
    assert changes["norm_out.linear.weight"] == pytest.approx(1e-2, rel=0.02)
