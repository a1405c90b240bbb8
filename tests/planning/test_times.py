"""Seconds on paper: parts follow from rates, the fastest layout comes first, and they are called estimates."""

import dataclasses
import json
from pathlib import Path

import pytest

import mindspeed_mm as mm
from mindspeed_mm import families
from mindspeed_mm.cli import planning
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import Collective
from mindspeed_mm.planning import exchanges, job, times
from mindspeed_mm.planning.cards import CARDS, card_of
from mindspeed_mm.planning.memory import Layout

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "opensoraplan1.5"
PUBLISHED = EXAMPLES / "model_opensoraplan1_5.json", EXAMPLES / "data.json"
H100 = CARDS["h100-80g"]


@pytest.fixture(scope="module")
def v1_5() -> job.Job:
    return job.read(*PUBLISHED)


def timed(run: job.Job, layout: Layout, card=H100) -> times.Times:
    found = times.times(run, layout, card)
    assert found is not None
    return found


def test_the_fastest_layout_comes_first():
    found = mm.plan(*PUBLISHED, cards=64, card="h100-80g")
    rates = [one["samples_per_second"] for one in found]
    assert rates == sorted(rates, reverse=True)
    assert all(one["step_seconds"] == pytest.approx(sum(one["seconds"].values())) for one in found)
    assert all(0.05 < one["mfu"] < times.EFFICIENCY["products"] for one in found)


def test_mfu_counts_what_a_log_line_counts(v1_5):
    """Three forward passes, without recomputation, of the operations that every rank repeats once."""
    family, layout = families.of_denoiser(v1_5.denoiser), Layout(4, 2, 8, "blocks")
    found = timed(v1_5, layout)
    forward = family.forward_flops(v1_5.denoiser, v1_5.grid, v1_5.text_tokens)
    counted = 3 * forward / 8 / found.seconds / (H100.tflops * 1e12)
    assert found.mfu == pytest.approx(counted, rel=0.01)


def test_recomputation_costs_time_and_no_operations_of_the_mfu(v1_5):
    plain, again = (timed(v1_5, Layout(8, 1, 8, recompute)) for recompute in ("none", "blocks"))
    assert plain.parts["recomputation"] == 0
    # a third of the three passes, at the rate of products
    assert again.parts["recomputation"] > plain.parts["products"] / 3
    assert again.samples_per_second < plain.samples_per_second
    assert again.parts["products"] == plain.parts["products"]


def test_each_rate_moves_its_own_parts(v1_5):
    layout = Layout(8, 1, 8, "none")
    base = timed(v1_5, layout)
    products = timed(v1_5, layout, card_of("h100-80g", tflops=2 * H100.tflops))
    assert products.parts["products"] == pytest.approx(base.parts["products"] / 2)
    assert products.parts["elementwise"] == base.parts["elementwise"]
    memory = timed(v1_5, layout, card_of("h100-80g", bandwidth=2 * H100.bandwidth))
    assert memory.parts["elementwise"] == pytest.approx(base.parts["elementwise"] / 2)
    slow = timed(v1_5, layout, card_of("h100-80g", link=H100.link / 10, network=1e9))
    assert slow.exchanges["tensor all-gather"] > 5 * base.exchanges["tensor all-gather"]
    assert slow.parts["products"] == base.parts["products"]


def test_what_leaves_a_node_passes_the_network():
    card = card_of("h100-80g", link=100, network=10)
    layout = Layout(tensor=4, context=2, data=4, recompute="none")  # 32 cards: 4 nodes of one data rank each
    gather = Collective("all-gather", "data_and_context", 10**9)
    seconds = times.exchange_seconds(gather, layout, card)
    # 8 ranks, of which 2 share a node and its ports
    assert seconds == pytest.approx(times.START_S + 7 / 8 / 20 / times.EFFICIENCY["links"], rel=1e-6)
    inside = times.exchange_seconds(Collective("all-gather", "tensor", 10**9), layout, card)
    assert inside == pytest.approx(times.START_S + 3 / 4 / 100 / times.EFFICIENCY["links"], rel=1e-6)
    twice = times.exchange_seconds(Collective("all-reduce", "tensor", 10**9), layout, card)
    assert twice - times.START_S == pytest.approx(2 * (inside - times.START_S))


def test_exchanges_beside_products_are_hidden_at_most_as_long_as_those_take(v1_5):
    layout = Layout(8, 1, 1, "none")
    for link in (450, 1e-3):
        found = timed(v1_5, layout, card_of("h100-80g", link=link))
        assert found.hidden <= 2 / 3 * found.parts["products"]
        assert found.parts["exchanges"] + found.hidden == pytest.approx(sum(found.exchanges.values()))
    assert found.hidden == 2 / 3 * found.parts["products"]


def test_a_global_batch_is_cut_into_micro_batches(v1_5):
    run = dataclasses.replace(v1_5, global_batch=64)
    four, one = timed(run, Layout(8, 1, 16, "none")), timed(v1_5, Layout(8, 1, 16, "none"))
    assert four.parts["products"] == pytest.approx(4 * one.parts["products"])
    assert four.parts["optimizer"] == one.parts["optimizer"]
    assert dataclasses.replace(v1_5, global_batch=10).micro_batches(16) == 0
    once = {(found.group, found.bytes): found.count for found in exchanges.of_step(v1_5, Layout(8, 1, 16, "none"))}
    for found in exchanges.of_step(run, Layout(8, 1, 16, "none")):
        if found.group == "data_and_context":
            assert found.count == once[found.group, found.bytes] == 1


def test_a_checkpoint_of_v1_5_is_as_large_as_measured(v1_5):
    """Issue: 153 GB with EMA, by the tensors that a run gathers."""
    assert times.checkpoint_bytes(v1_5) == pytest.approx(153e9, rel=0.01)


def test_cards_are_complete_and_can_be_changed():
    for name in ("h100-80g", "a100-80g", "910b-64g", "4090-24g", "cpu"):
        assert CARDS[name].is_timed
    assert card_of("cpu", memory_gib=512).memory_gib == 512
    assert not card_of(memory_gib=24).is_timed
    assert card_of(memory_gib=24, tflops=100, bandwidth=1000, link=25).is_timed
    with pytest.raises(ConfigError, match="h100-80g"):
        card_of("h100")


def test_the_command_says_estimates_explains_and_draws(capsys, tmp_path):
    files = ["--mm-model", str(PUBLISHED[0]), "--mm-data", str(PUBLISHED[1]), "--cards", "8", "--card", "h100-80g"]
    picture = tmp_path / "plan.png"
    planning.plan([*files, "--train-iters", "2000", "--explain", "--plot", str(picture)])
    said = capsys.readouterr().out
    assert "estimates, not measured" in said
    assert "reduce-scatter of" in said
    assert "card-hours" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    planning.plan([*files, "--train-iters", "2000", "--json"])
    first = json.loads(capsys.readouterr().out)[0]
    saves = 2 * first["checkpoint_seconds"]
    assert first["days"] == pytest.approx((2000 * first["step_seconds"] + saves) / 86400)
    assert first["card_hours"] == pytest.approx(first["days"] * 24 * 8)
    assert "TRAIN_ITERS=2000" in first["command"]
    with pytest.raises(SystemExit):
        planning.plan([*files, "--plot", str(tmp_path / "plan.txt")])
    assert "need a name that ends with .png" in capsys.readouterr().err
