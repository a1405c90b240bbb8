"""The formulas of a plan with the numbers of one layout."""

from mindspeed_mm.planning import exchanges
from mindspeed_mm.planning.cards import NODE, Card
from mindspeed_mm.planning.job import ITEMSIZE, Job
from mindspeed_mm.planning.memory import GIB, Layout, parts, state_bytes, trained_numbers
from mindspeed_mm.planning.times import (
    EFFICIENCY,
    HOST_LINK,
    START_S,
    exchange_seconds,
    offloaded_bytes,
    streamed_bytes,
    times,
)


def explain(job: Job, layout: Layout, card: Card) -> str:
    """Memory and seconds of a layout, a line for each formula."""
    lines = [f"TP {layout.tensor}, CP {layout.context}, DP {layout.data}, recompute {layout.recompute}:", ""]
    lines += _memory(job, layout)
    if card.is_timed:
        lines += ["", *_seconds(job, layout, card), "", *_exchanges(job, layout, card)]
    return "\n".join(lines)


def _memory(job: Job, layout: Layout) -> list[str]:
    found, item = parts(job, layout), ITEMSIZE[job.dtype]
    trained, ranks = trained_numbers(job, layout.tensor), layout.data * layout.context
    formulas = {
        "weights": f"the TP share of the denoiser in {item} bytes a number, an adapter in 4{_held(job)}",
        "gradients": f"{trained:,} trained numbers x 4 bytes",
        "main weights": f"{trained:,} x 4 / (DP x CP = {ranks}); none in fp32",
        "moments": f"{trained:,} x 8 / {ranks}",
        "average": f"{trained:,} x 4 / {ranks}",
        "activations": f"families/: the peak of a pass over {job.micro_batch} x ({job.video_tokens:,} + {job.text_tokens}) tokens",
        "encoding": f"{job.micro_batch} x {job.encode_bytes / GIB:.2f} GiB to encode a clip, less the activations",
        "frozen": "weights of the autoencoder and the text encoders",
        "update": "two parts of the optimizer's state, less the activations",
    }
    if job.cpu_offload:
        for name, size in state_bytes(job, layout).items():
            formulas[name] = f"{formulas[name]}: {size / GIB:.2f} GiB on the host"
    return [
        f"{name:<13} {size / GIB:>8.2f} GiB = {formulas.get(name, 'see docs/planning.md')}"
        for name, size in found.items()
    ]


def _held(job: Job) -> str:
    form, places = job.adapter.base_weights, job.adapter.stream_blocks
    packed = "" if form is None else f"; linears of the blocks in {form}"
    return packed if places is None else f"{packed}; {places} blocks at a time"


def _seconds(job: Job, layout: Layout, card: Card) -> list[str]:
    work, found, number = exchanges.work_of(job, layout), times(job, layout, card), job.micro_batches(layout.data)
    assert found is not None and card.tflops is not None
    peak = card.tflops * (0.5 if job.dtype == "fp32" else 1)
    formulas = {
        "products": f"{number} x {work.products:.3g} FLOP / ({peak:g} TFLOP/s x {EFFICIENCY['products']})",
        "recomputation": f"{number} x {work.again:.3g} FLOP / ({peak:g} TFLOP/s x {EFFICIENCY['products']})",
        "elementwise": f"{number} x {work.moved_bytes:.3g} bytes / ({card.bandwidth:g} GB/s x {EFFICIENCY['bytes']})",
        "optimizer": f"bytes of the update / ({card.bandwidth:g} GB/s x {EFFICIENCY['bytes']})",
        "exchanges": f"all of the list below, less {found.hidden:.3f} s beside products of the backward pass",
        "data": "pixels of a micro-batch from the host",
        "offloading": f"{offloaded_bytes(job, layout):,} bytes of state / {HOST_LINK:g} GB/s, both ways at once, less the optimizer",
        "streaming": f"{number} x {streamed_bytes(job, layout):,} bytes of blocks / {HOST_LINK:g} GB/s, less what runs beside",
    }
    for sparsity, operations in work.attention.items():
        formulas[f"attention k={sparsity}"] = (
            f"{number} x {operations:.3g} FLOP x 3.5/3 / ({peak:g} TFLOP/s x {EFFICIENCY['attention']})"
        )
    return [
        *(f"{name:<15} {value:>8.4f} s = {formulas[name]}" for name, value in found.parts.items()),
        f"{'step':<15} {found.seconds:>8.4f} s; MFU {found.mfu:.1%}: {work.products + sum(work.attention.values()):.3g} FLOP "
        f"of {number} micro-batches / step / {peak:g} TFLOP/s",
    ]


def _exchanges(job: Job, layout: Layout, card: Card) -> list[str]:
    """Every collective of a step, the slowest first."""
    network = card.network or card.link
    lines = [
        f"Collectives of a step on one rank; (G - 1) / G of the bytes at {card.link:g} GB/s inside a node of {NODE}, at "
        f"{network:g} GB/s a card between nodes, x {EFFICIENCY['links']}, and {START_S * 1e6:.0f} us each:"
    ]
    sizes, found = exchanges.group_sizes(layout), exchanges.of_step(job, layout)
    timed = sorted(((one.count * exchange_seconds(one, layout, card), one) for one in found), key=lambda pair: -pair[0])
    for seconds, one in timed:
        beside = ", beside products" if one.beside_products else ""
        lines.append(
            f"{seconds:>9.4f} s = {one.count} x {one.kind} of {one.bytes:,} bytes over {one.group} ({sizes[one.group]}){beside}"
        )
    return lines
