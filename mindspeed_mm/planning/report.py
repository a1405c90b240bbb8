"""A plan as a table, as JSON, and as the command that runs it."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.planning import layouts
from mindspeed_mm.planning.job import Job, read
from mindspeed_mm.planning.memory import GIB, USABLE, Layout, adapters_of, parts, rank_parameters

_NODE = 8  # most cards of a node


def plan(
    model_json: str | Path,
    data_json: str | Path,
    *,
    cards: int,
    memory_gib: float,
    text_tokens: int | None = None,
    micro_batch: int = 1,
    adapter: AdapterConfig | None = None,
) -> list[dict]:
    """The layouts of a training run that fit `cards` cards of memory_gib each, cheapest first; empty if none does.

    Each is a dict: cards, tensor, context, data, recompute ("none", "feed-forwards", "blocks"), gib (of one card, by part),
    total_gib, command. The JSONs' paths need not exist. text_tokens: real tokens of a caption; default: the longest one
    that the data JSON allows. adapter: to train; default: the model JSON's. Raises ConfigError for a mistake in a JSON.
    """
    return rows(read(model_json, data_json, text_tokens, micro_batch, adapter), cards, memory_gib)


def rows(job: Job, cards: int, memory_gib: float) -> list[dict]:
    """The layouts that fit, cheapest first: their sizes, GiB by part, and the command of each."""
    return [row(job, layout) for layout in layouts.fitting(job, cards, memory_gib)]


def row(job: Job, layout: Layout) -> dict:
    """One layout as plain values."""
    gib = {name: size / GIB for name, size in parts(job, layout).items()}
    return {
        "cards": layout.cards,
        "tensor": layout.tensor,
        "context": layout.context,
        "data": layout.data,
        "recompute": layout.recompute,
        "gib": gib,
        "total_gib": sum(gib.values()),
        "command": command(job, layout),
    }


def command(job: Job, layout: Layout) -> str:
    """The published script with this layout's variables, for each node; those of several nodes are the user's."""
    per_node = layout.cards if layout.cards <= _NODE else math.gcd(layout.cards, _NODE)
    nodes = layout.cards // per_node
    words = [f"TP={layout.tensor}", f"CP={layout.context}", f"NPUS_PER_NODE={per_node}"]
    words += [f"NNODES={nodes}", 'NODE_RANK="$NODE_RANK"', 'MASTER_ADDR="$MASTER_ADDR"'] if nodes > 1 else []
    words += [f"MBS={job.micro_batch}"] if job.micro_batch > 1 else []
    words += [] if layout.recompute == "feed-forwards" else ["RECOM_FFN_LAYERS=0"]
    words += [f"MM_MODEL={shlex.quote(job.model_json)}", f"MM_DATA={shlex.quote(job.data_json)}"]
    words += ["bash examples/opensoraplan1.5/pretrain_opensoraplan1_5.sh"]
    if layout.recompute == "blocks":
        words += ["--recompute-granularity full --recompute-method block --recompute-num-layers 1024"]
    if job.adapter.kind is not None:
        alpha = [] if job.adapter.alpha is None else [f"--adapter-alpha {job.adapter.alpha:g}"]
        words += [f"--adapter {job.adapter.kind} --adapter-rank {job.adapter.rank}", *alpha]
        words += [f"--adapter-targets {shlex.join(job.adapter.words)}"]
    return " ".join(words)


def table(found: Sequence[dict]) -> str:
    """GiB of one rank by part, a line for each layout."""
    names = list(found[0]["gib"])
    header = ["TP", "CP", "DP", "recompute", *names, "total"]
    lines = [header]
    for one in found:
        sizes = [f"{one['gib'][name]:.1f}" for name in names]
        lines.append(
            [
                str(one["tensor"]),
                str(one["context"]),
                str(one["data"]),
                one["recompute"],
                *sizes,
                f"{one['total_gib']:.1f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def text(job: Job, cards: int, memory_gib: float, found: Sequence[dict], most: int = 8) -> str:
    """The whole report for people. found: see `rows`; most: lines of the table."""
    frames, height, width = job.size
    adapters = sum(math.prod(parameter.shape) for parameter in adapters_of(job).values())
    trained = f", {adapters:,} more in an adapter ({job.adapter.kind}), which are trained alone" if adapters else ""
    lines = [
        f"{rank_parameters(job, 1):,} parameters in {job.dtype}{trained}; samples of {frames}x{height}x{width}: "
        f"{job.video_tokens:,} video and {job.text_tokens} text tokens; {cards} cards of {memory_gib:g} GiB, "
        f"of which {USABLE:.0%} count",
        "",
    ]
    if found:
        more = f"\n({len(found) - most} more)" if len(found) > most else ""
        return "\n".join([*lines, "GiB on each card:", table(found[:most]) + more, "", found[0]["command"]])
    least = row(job, layouts.closest(job, cards))
    lines += ["No layout fits. The smallest one, GiB on each card:", table([least]), "", *_advice(least)]
    return "\n".join(lines)


def _advice(least: dict) -> list[str]:
    """What makes a job fit, the largest part first."""
    ways = {
        "activations": "smaller clips (num_frames, max_height, max_width), or a smaller --micro-batch-size",
        "frozen": "stored features (load_video_features, load_text_features) leave the encoders out",
        "gradients": "more cards with a larger TP",
        "weights": "more cards with a larger TP",
        "moments": "more cards: DP shares the optimizer's state",
        "main weights": "more cards: DP shares the optimizer's state",
        "average": "training without --use-ema",
    }
    largest = sorted(least["gib"], key=least["gib"].get, reverse=True)[:3]
    return [f"{name} {least['gib'][name]:.1f} GiB: {ways[name]}" for name in largest]
