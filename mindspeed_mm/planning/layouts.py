"""Layouts of a number of cards, and those that fit, cheapest first."""

from collections.abc import Iterator

from mindspeed_mm.planning.job import Job
from mindspeed_mm.planning.memory import GIB, RECOMPUTE, USABLE, Layout, parts


def candidates(job: Job, cards: int) -> Iterator[Layout]:
    """Every layout that the network and the sequence allow: TP x CP divides the heads and the video tokens."""
    for model in _divisors(cards):
        for tensor in _divisors(model):
            context = model // tensor
            if _divides(job, tensor, context):
                for recompute in RECOMPUTE:
                    yield Layout(tensor, context, cards // model, recompute)


def fitting(job: Job, cards: int, memory_gib: float) -> list[Layout]:
    """The layouts that fit, the cheapest first (see `_cost`), each with the least recomputation that fits."""
    limit = USABLE * memory_gib * GIB
    found: dict[tuple[int, int], Layout] = {}
    for layout in candidates(job, cards):
        if sum(parts(job, layout).values()) <= limit:
            found.setdefault((layout.tensor, layout.context), layout)
    return sorted(found.values(), key=_cost)


def closest(job: Job, cards: int) -> Layout:
    """The layout that needs the least memory."""
    return min(candidates(job, cards), key=lambda layout: sum(parts(job, layout).values()))


def _cost(layout: Layout) -> tuple[bool, int, int, int]:
    """Sorts layouts by what they cost.

    Recomputing blocks repeats a third of a step's work, which is more than TP or CP over twice the cards costs.
    """
    sharers = layout.tensor * layout.context
    return layout.recompute == "blocks", sharers, RECOMPUTE.index(layout.recompute), layout.tensor


def _divides(job: Job, tensor: int, context: int) -> bool:
    split = tensor * context
    return job.denoiser.num_heads % split == 0 and job.video_tokens % split == 0


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
