"""Layouts of a number of cards, and those that fit, fastest first."""

from collections.abc import Iterator

from mindspeed_mm.planning.cards import Card
from mindspeed_mm.planning.job import Job
from mindspeed_mm.planning.memory import GIB, RECOMPUTE, USABLE, Layout, parts
from mindspeed_mm.planning.times import times


def candidates(job: Job, cards: int) -> Iterator[Layout]:
    """Every layout that the network, the sequence and the global batch allow: TP x CP divides the heads and the video tokens."""
    for model in _divisors(cards):
        for tensor in _divisors(model):
            context = model // tensor
            if _divides(job, tensor, context) and job.micro_batches(cards // model):
                for recompute in RECOMPUTE:
                    yield Layout(tensor, context, cards // model, recompute)


def fitting(job: Job, cards: int, card: Card) -> list[Layout]:
    """The layouts that fit, each with the least recomputation that fits.

    The order is by samples per second, or, for a card without rates, by `_cost`.
    """
    limit = USABLE * card.memory_gib * GIB
    found: dict[tuple[int, int], Layout] = {}
    for layout in candidates(job, cards):
        if sum(parts(job, layout).values()) <= limit:
            found.setdefault((layout.tensor, layout.context), layout)
    return sorted(found.values(), key=lambda layout: (_slowness(job, layout, card), _cost(layout)))


def closest(job: Job, cards: int) -> Layout | None:
    """The layout that needs the least memory; None if the global batch divides into no layout."""
    return min(candidates(job, cards), key=lambda layout: sum(parts(job, layout).values()), default=None)


def _slowness(job: Job, layout: Layout, card: Card) -> float:
    """Seconds of a sample."""
    found = times(job, layout, card)
    return 0.0 if found is None else 1 / found.samples_per_second


def _cost(layout: Layout) -> tuple[bool, int, int, int]:
    """Sorts layouts by what they cost, where seconds are unknown.

    Recomputing blocks repeats a third of a step's work, which is more than TP or CP over twice the cards costs.
    """
    sharers = layout.tensor * layout.context
    return layout.recompute == "blocks", sharers, RECOMPUTE.index(layout.recompute), layout.tensor


def _divides(job: Job, tensor: int, context: int) -> bool:
    split = tensor * context
    return job.denoiser.num_heads % split == 0 and job.video_tokens % split == 0


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
