"""Seconds of a training step on paper: peak rates of a card times efficiencies. Nothing here is measured."""

import collections
import dataclasses
import math

from mindspeed_mm.families.base import Collective
from mindspeed_mm.planning import exchanges
from mindspeed_mm.planning.base_weights import weights_of
from mindspeed_mm.planning.cards import NODE, Card
from mindspeed_mm.planning.job import ITEMSIZE, Job
from mindspeed_mm.planning.memory import Layout, state_bytes, trained_numbers

# Shares of the peaks that a run is assumed to reach. They are assumptions; a measured step replaces them.
EFFICIENCY = {"products": 0.6, "attention": 0.45, "bytes": 0.7, "links": 0.7, "disk": 0.8}
START_S = 20e-6  # of a collective: its launch and the first hop
HOST_LINK = 25.0  # GB/s from a host to one card
DISK = 2.0  # GB/s that a node writes to shared storage
_FP32 = 4
_OPTIMIZER = 44  # bytes per owned number: gradient, main weight, moments, average read, three of them written, the norm


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a step by part; parts add up to `seconds`. Rates of the whole run."""

    parts: dict[str, float]
    exchanges: dict[str, float]  # seconds by group and kind, exposed or not
    hidden: float  # seconds of exchanges beside products
    mfu: float  # forward and backward without recomputation, share of the cards' peak
    samples_per_second: float
    checkpoint_bytes: int
    checkpoint_seconds: float

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def times(job: Job, layout: Layout, card: Card) -> Times | None:
    """Seconds of a step; None for a card without rates."""
    micro_batches = job.micro_batches(layout.data)
    if not card.is_timed:
        return None
    assert card.tflops is not None and card.bandwidth is not None
    work = exchanges.work_of(job, layout)
    peak = card.tflops * 1e12 * (0.5 if job.dtype == "fp32" else 1.0)
    parts = {"products": micro_batches * work.products / (peak * EFFICIENCY["products"])}
    for sparsity, operations in sorted(work.attention.items()):
        # the backward pass of a fused attention computes the scores again: 3.5 passes instead of 3
        seconds = operations * 3.5 / 3 / (peak * EFFICIENCY["attention"])
        parts[f"attention k={sparsity}"] = micro_batches * seconds
    parts["recomputation"] = micro_batches * work.again / (peak * EFFICIENCY["products"])
    rate = card.bandwidth * 1e9 * EFFICIENCY["bytes"]
    parts["elementwise"] = micro_batches * work.moved_bytes / rate
    streamed = micro_batches * streamed_bytes(job, layout) / (HOST_LINK * 1e9)
    if streamed:
        beside = sum(parts.values()) if (job.adapter.stream_blocks or 0) > 1 else 0.0
        parts["streaming"] = max(0.0, streamed - beside)
    parts["optimizer"] = _optimizer_bytes(job, layout) / rate
    if job.cpu_offload:  # the links carry both directions at once
        parts["offloading"] = max(0.0, offloaded_bytes(job, layout) / (HOST_LINK * 1e9) - parts["optimizer"])
    found: dict[str, float] = collections.defaultdict(float)
    hideable = exposed = 0.0
    for one in exchanges.of_step(job, layout):
        seconds = one.count * exchange_seconds(one, layout, card)
        found[f"{one.group} {one.kind}"] += seconds
        if one.beside_products:
            hideable += seconds
        else:
            exposed += seconds
    hidden = min(hideable, 2 / 3 * parts["products"])  # the backward pass's products
    parts["exchanges"] = exposed + hideable - hidden
    parts["data"] = micro_batches * _input_bytes(job) / (HOST_LINK * 1e9)
    total, samples = sum(parts.values()), job.micro_batch * micro_batches * layout.data
    useful = micro_batches * (work.products + sum(work.attention.values()))
    size = checkpoint_bytes(job)
    return Times(
        parts=parts,
        exchanges=dict(found),
        hidden=hidden,
        mfu=useful / total / peak,
        samples_per_second=samples / total,
        checkpoint_bytes=size,
        checkpoint_seconds=size / (DISK * 1e9 * EFFICIENCY["disk"] * math.ceil(layout.cards / NODE)),
    )


def streamed_bytes(job: Job, layout: Layout) -> int:
    """Bytes of blocks that a micro-batch copies from the host."""
    return weights_of(job, layout.tensor).moved(job.adapter.stream_blocks)


def offloaded_bytes(job: Job, layout: Layout) -> int:
    """Bytes of the optimizer's state that an update copies from the host, and as many back."""
    return sum(state_bytes(job, layout).values()) if job.cpu_offload else 0


def exchange_seconds(one: Collective, layout: Layout, card: Card) -> float:
    """Seconds of one collective over rings: (G - 1) / G of its bytes pass each link of G ranks, twice in an all-reduce.

    A group that leaves its node also passes the network, where its ranks of a node share their cards' ports. All-to-all
    has no ring: what leaves the node passes each card's own port.
    """
    assert card.link is not None
    size = exchanges.group_sizes(layout)[one.group]
    inside = _ranks_in_a_node(one.group, layout)
    network = card.network or card.link
    bytes_passed = one.bytes * (2 if one.kind == "all-reduce" else 1) * (size - 1) / size
    seconds = bytes_passed / (card.link * 1e9)
    if inside < size:
        ports = 1 if one.kind == "all-to-all" else inside
        seconds = max(seconds, bytes_passed / (network * 1e9 * ports))
    return START_S + seconds / EFFICIENCY["links"]


def _ranks_in_a_node(group: str, layout: Layout) -> int:
    """Ranks of a group in one node. Ranks count TP first, then CP, then DP."""
    node = min(NODE, layout.cards)
    sizes = exchanges.group_sizes(layout)
    stride = {"tensor": 1, "context": layout.tensor, "data": layout.tensor * layout.context}.get(group)
    if group == "data_and_context":
        stride = layout.tensor
    return max(1, min(sizes[group], node // (stride or 1)))


def checkpoint_bytes(job: Job) -> int:
    """A checkpoint: weights, fp32 main weights, two moments, the average. With an adapter, its own alone."""
    item = _FP32 if job.adapter.kind is not None else ITEMSIZE[job.dtype]
    return trained_numbers(job, 1) * (item + _FP32 * (3 + job.ema))


def _optimizer_bytes(job: Job, layout: Layout) -> int:
    """Bytes that a step's update moves, and the gradients that it clears."""
    numbers = trained_numbers(job, layout.tensor)
    owned = numbers // (layout.data * layout.context) if job.distributed_optimizer else numbers
    return owned * _OPTIMIZER + numbers * (_FP32 + ITEMSIZE[job.dtype])


def _input_bytes(job: Job) -> int:
    """A micro-batch's pixels on their way to the card."""
    frames, height, width = job.size
    return job.micro_batch * frames * height * width * 3
