"""A plan as a table, as JSON, and as the command that runs it."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.planning import advice, layouts
from mindspeed_mm.planning.cards import NODE, Card, card_of
from mindspeed_mm.planning.job import Job, read
from mindspeed_mm.planning.memory import GIB, USABLE, Layout, adapters_of, parts, rank_parameters, state_bytes
from mindspeed_mm.planning.times import EFFICIENCY, Times, times

_HOUR = 3600


def plan(
    model_json: str | Path,
    data_json: str | Path,
    *,
    cards: int,
    card: str | Card | None = None,
    memory_gib: float | None = None,
    text_tokens: int | None = None,
    micro_batch: int = 1,
    adapter: AdapterConfig | None = None,
) -> list[dict]:
    """The layouts of a training run that fit, fastest first; empty if none does.

    card: a name of `planning.cards.CARDS`, or a Card; memory_gib: of one card, instead of the card's own. Without a card
    there are no seconds, and the order is by the work that a layout repeats and by the ranks that share a sample.

    Each is a dict: cards, tensor, context, data, micro_batches, recompute ("none", "feed-forwards", "blocks"), gib (of one
    card, by part), total_gib, command, and with a card: seconds (of a step, by part), step_seconds, exchange_seconds (by
    group and kind), hidden_seconds, mfu, samples_per_second, checkpoint_gb, checkpoint_seconds. Seconds are estimates from
    peak rates and efficiency factors; nothing is measured. The JSONs' paths need not exist. text_tokens: real tokens of a
    caption; default: the longest one that the data JSON allows. adapter: to train; default: the model JSON's. Raises
    ConfigError for a mistake in a JSON.
    """
    if not isinstance(card, Card):
        card = card_of(card, memory_gib)
    return rows(read(model_json, data_json, text_tokens, micro_batch, adapter), cards, card)


def rows(job: Job, cards: int, card: Card) -> list[dict]:
    """The layouts that fit, fastest first: their sizes, GiB and seconds by part, and the command of each."""
    return [row(job, layout, card) for layout in layouts.fitting(job, cards, card)]


def row(job: Job, layout: Layout, card: Card) -> dict:
    """One layout as plain values."""
    gib = {name: size / GIB for name, size in parts(job, layout).items()}
    return {
        "cards": layout.cards,
        "tensor": layout.tensor,
        "context": layout.context,
        "data": layout.data,
        "micro_batches": job.micro_batches(layout.data),
        "recompute": layout.recompute,
        "gib": gib,
        "total_gib": sum(gib.values()),
        **({"host_gib": sum(state_bytes(job, layout).values()) / GIB} if job.cpu_offload else {}),
        **_timed(job, layout, times(job, layout, card)),
        "command": command(job, layout),
    }


def _timed(job: Job, layout: Layout, found: Times | None) -> dict:
    """Seconds and what follows from them; empty for a card without rates."""
    if found is None:
        return {}
    values = {
        "seconds": found.parts,
        "step_seconds": found.seconds,
        "exchange_seconds": found.exchanges,
        "hidden_seconds": found.hidden,
        "mfu": found.mfu,
        "samples_per_second": found.samples_per_second,
        "checkpoint_gb": found.checkpoint_bytes / 1e9,
        "checkpoint_seconds": found.checkpoint_seconds,
    }
    if job.iterations is not None:
        saves = job.iterations // job.save_interval
        hours = (job.iterations * found.seconds + saves * found.checkpoint_seconds) / _HOUR
        values |= {"days": hours / 24, "card_hours": hours * layout.cards}
    return values


def command(job: Job, layout: Layout) -> str:
    """The published script with this layout's variables, for each node; those of several nodes are the user's."""
    per_node = layout.cards if layout.cards <= NODE else math.gcd(layout.cards, NODE)
    nodes, micro_batches = layout.cards // per_node, job.micro_batches(layout.data)
    words = [f"TP={layout.tensor}", f"CP={layout.context}", f"NPUS_PER_NODE={per_node}"]
    words += [f"NNODES={nodes}", 'NODE_RANK="$NODE_RANK"', 'MASTER_ADDR="$MASTER_ADDR"'] if nodes > 1 else []
    words += [f"MBS={job.micro_batch}"] if job.micro_batch > 1 else []
    words += [f"GRAD_ACC_STEP={micro_batches}"] if micro_batches > 1 else []
    words += [f"TRAIN_ITERS={job.iterations}"] if job.iterations is not None else []
    words += [] if layout.recompute == "feed-forwards" else ["RECOM_FFN_LAYERS=0"]
    words += [f"MM_MODEL={shlex.quote(job.model_json)}", f"MM_DATA={shlex.quote(job.data_json)}"]
    words += ["bash examples/opensoraplan1.5/pretrain_opensoraplan1_5.sh"]
    if layout.recompute == "blocks":
        words += ["--recompute-granularity full --recompute-method block --recompute-num-layers 1024"]
        words += [f"--cpu-offloading-num-layers {job.offloaded_blocks}"] if job.offloaded_blocks else []
    words += ["--optimizer-cpu-offload"] if job.cpu_offload else []
    if job.adapter.kind is not None:
        alpha = [] if job.adapter.alpha is None else [f"--adapter-alpha {job.adapter.alpha:g}"]
        words += [f"--adapter {job.adapter.kind} --adapter-rank {job.adapter.rank}", *alpha]
        words += [f"--adapter-targets {shlex.join(job.adapter.words)}"]
        words += [f"--base-weights {job.adapter.base_weights}"] if job.adapter.base_weights else []
        words += [f"--stream-blocks {job.adapter.stream_blocks}"] if job.adapter.stream_blocks else []
    return " ".join(words)


def table(found: Sequence[dict]) -> str:
    """GiB of one rank by part, a line for each layout."""
    names = list(found[0]["gib"])
    lines = [[*_LAYOUT, *names, "total"]]
    for one in found:
        lines.append([*_layout(one), *(f"{one['gib'][name]:.1f}" for name in names), f"{one['total_gib']:.1f}"])
    return _aligned(lines)


def time_table(found: Sequence[dict]) -> str:
    """Seconds of a step by part, a line for each layout with rates and, for a run, days."""
    names, run = list(found[0]["seconds"]), "days" in found[0]
    lines = [[*_LAYOUT, *names, "step", "samples/s", "MFU", *(["days", "card-hours"] if run else [])]]
    for one in found:
        values = [*_layout(one), *(f"{one['seconds'][name]:.3f}" for name in names), f"{one['step_seconds']:.2f}"]
        values += [f"{one['samples_per_second']:.3g}", f"{one['mfu']:.0%}"]
        lines.append([*values, *([f"{one['days']:.3g}", f"{one['card_hours']:.3g}"] if run else [])])
    return _aligned(lines)


_LAYOUT = ("TP", "CP", "DP", "recompute")


def _layout(one: dict) -> list[str]:
    return [str(one["tensor"]), str(one["context"]), str(one["data"]), one["recompute"]]


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def text(job: Job, cards: int, card: Card, found: Sequence[dict], most: int = 8) -> str:
    """The whole report for people. found: see `rows`; most: lines of each table."""
    lines = [_headline(job, cards, card), ""]
    if not found:
        return "\n".join([*lines, *_nothing_fits(job, cards, card)])
    more = f"\n({len(found) - most} more)" if len(found) > most else ""
    lines += ["GiB on each card:", table(found[:most]) + more, ""]
    if job.cpu_offload:
        lines += [
            f"The first one keeps {found[0]['host_gib']:.1f} GiB of the optimizer's state on the host for each card.",
            "",
        ]
    if card.is_timed:
        share = ", ".join(f"{name} {value:.0%}" for name, value in EFFICIENCY.items())
        lines += [f"Seconds of a step: estimates, not measured, from peak rates and assumed shares of them ({share}):"]
        lines += [time_table(found[:most]) + more, ""]
        first = found[0]
        lines += [f"A checkpoint: {first['checkpoint_gb']:.0f} GB in about {first['checkpoint_seconds']:.0f} s.", ""]
    return "\n".join([*lines, found[0]["command"]])


def _headline(job: Job, cards: int, card: Card) -> str:
    frames, height, width = job.size
    adapters = sum(math.prod(parameter.shape) for parameter in adapters_of(job).values())
    trained = f", {adapters:,} more in an adapter ({job.adapter.kind}), which are trained alone" if adapters else ""
    rates = ""
    if card.is_timed:
        rates = f", {card.tflops:g} TFLOP/s, {card.bandwidth:g} GB/s, links of {card.link:g} GB/s by data sheet"
    return (
        f"{rank_parameters(job, 1):,} parameters in {job.dtype}{trained}; samples of {frames}x{height}x{width}: "
        f"{job.video_tokens:,} video and {job.text_tokens} text tokens; {cards} cards of {card.memory_gib:g} GiB, "
        f"of which {USABLE:.0%} count{rates}"
    )


def _nothing_fits(job: Job, cards: int, card: Card) -> list[str]:
    smallest = layouts.closest(job, cards)
    if smallest is None:
        return [f"No layout of {cards} cards divides a global batch of {job.global_batch} into micro-batches."]
    least = row(job, smallest, card)
    lines = ["No layout fits. The smallest one, GiB on each card:", table([least]), "", *_largest(least), ""]
    ways = advice.advice(job, cards, card)
    if not ways:
        return [*lines, "No change that was tried makes it fit: cards with more memory do."]
    return [*lines, "It would fit with", *(f"- {way}" for way in ways)]


def _largest(least: dict) -> list[str]:
    """The largest parts, with what makes them smaller."""
    ways = {
        "activations": "smaller clips (num_frames, max_height, max_width), or a smaller --micro-batch-size",
        "encoding": "stored features (load_video_features), or a smaller --micro-batch-size",
        "frozen": "stored features (load_video_features, load_text_features) leave the encoders out",
        "gradients": "more cards with a larger TP",
        "weights": "more cards with a larger TP",
        "moments": "more cards: DP shares the optimizer's state; --optimizer-cpu-offload",
        "main weights": "more cards: DP shares the optimizer's state; --optimizer-cpu-offload",
        "update": "none",
        "average": "training without --use-ema",
    }
    largest = sorted(least["gib"], key=least["gib"].get, reverse=True)[:3]
    return [f"{name} {least['gib'][name]:.1f} GiB: {ways[name]}" for name in largest]
