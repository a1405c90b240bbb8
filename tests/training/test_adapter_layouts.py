"""A run that trains an adapter gives the same curve at every layout, and goes on exactly where it was stopped."""

from pathlib import Path

import pytest
from rank_runs import Layout, Run, curve
from ranks import run_ranks
from test_resume import stop_and_resume

from mindspeed_mm.config.run import CheckpointConfig
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.weights.adapters import open_adapter

STEPS = 3
TOLERANCE = 1e-5  # relative, of losses and gradient norms, fp32
TARGETS = ("attention", "feed_forward", "modulation", "text", "skip", "output")


def layout(kind: str, **options) -> Layout:
    return Layout(adapter=AdapterConfig(kind=kind, rank=3, alpha=6, targets=TARGETS), **options)


@pytest.fixture(scope="module")
def one_rank():
    return run_ranks(curve, 1, layout("dora", micro_batch=2), STEPS)[0]


def check(found, wanted, steps=STEPS):
    assert len(found) == steps
    for step, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert mine == pytest.approx(theirs, rel=TOLERANCE), step


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"tensor": 2, "micro_batch": 4}),
        (2, {"tensor": 2, "sequence_parallel": True, "micro_batch": 2}),
        (4, {"tensor": 2, "context": 2, "sequence_parallel": True, "micro_batch": 4, "overlap": True}),
        (1, {"recompute_blocks": 3, "distributed_optimizer": False}),
    ],
    ids=str,
)
def test_every_layout_gives_the_curve_of_one_rank(one_rank, ranks, options):
    """DoRA holds all that LoRA has."""
    for found in run_ranks(curve, ranks, layout("dora", **options), STEPS):
        check(found, one_rank)


def test_dropout_of_adapters_is_the_same_at_every_layout():
    def dropped(rate: float, **options) -> Layout:
        return Layout(adapter=AdapterConfig(kind="dora", rank=3, alpha=6, dropout=rate), **options)

    (plain,), (wanted,) = (run_ranks(curve, 1, dropped(rate, micro_batch=2), 2) for rate in (0.0, 0.3))
    assert wanted[0][0] == plain[0][0] and wanted[1] != plain[1]  # B is 0 in the first step
    for ranks, options in (
        (4, {"tensor": 2, "context": 2, "sequence_parallel": True, "micro_batch": 4}),
        (2, {"tensor": 2, "micro_batch": 2, "recompute_blocks": 3}),
    ):
        for found in run_ranks(curve, ranks, dropped(0.3, **options), 2):
            check(found, wanted, steps=2)


def test_the_loss_changes(one_rank):
    assert one_rank[0][1] > 0
    assert one_rank[-1][0] != one_rank[0][0]


@pytest.mark.parametrize(
    ("ranks", "options", "settings"),
    [
        (2, {"tensor": 2, "sequence_parallel": True, "dtype": "bf16", "micro_batch": 2}, {}),
        (1, {"micro_batch": 4}, {"format": "torch_dist"}),
    ],
    ids=str,
)
def test_resuming_is_exact_and_the_checkpoint_holds_the_adapter_alone(tmp_path, ranks, options, settings):
    checkpoint = CheckpointConfig(save=str(tmp_path), **settings)
    for different, resumed, straight in run_ranks(stop_and_resume, ranks, layout("lora", **options), checkpoint, True):
        assert not different
        assert resumed == straight
    adapter = open_adapter(tmp_path)
    assert len(adapter.layers) > 20
    assert set(adapter.weights) == {f"{layer}.{kind}" for layer in adapter.layers for kind in ("lora_A", "lora_B")}
    assert adapter.weights.shape("transformer_blocks.0.0.attn1.to_out.0.lora_A") == (3, 64)
    assert adapter.weights.shape("transformer_blocks.0.0.attn1.to_q.lora_B") == (64, 3)


def begin(layout: Layout, other: Layout, root: str) -> None:
    """Saves a run, and lets another one continue it."""
    run = Run(layout, CheckpointConfig(save=root))
    run.saver.save()
    Run(other).saver.resume(Path(root))


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        (layout("lora"), layout("dora"), "--adapter was lora, and is dora now"),
        (
            layout("lora"),
            Layout(adapter=AdapterConfig(kind="lora", rank=4, alpha=6, targets=TARGETS)),
            "--adapter-rank was 3",
        ),
        (layout("lora"), Layout(), "holds an adapter, not a network"),
        (Layout(), layout("lora"), "holds a whole network, not an adapter"),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(tmp_path, mine, theirs, message):
    with pytest.raises(Exception, match=message):
        run_ranks(begin, 1, mine, theirs, str(tmp_path))
