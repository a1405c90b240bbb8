"""What would make a job fit: changes that are tried on paper, one by one and then together."""

import dataclasses
import itertools
from collections.abc import Iterator

from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.planning.cards import Card
from mindspeed_mm.planning.job import Job
from mindspeed_mm.planning.layouts import closest
from mindspeed_mm.planning.memory import GIB, USABLE, parts

_MOST_CARDS = 4096
_TOGETHER = 3  # most changes at once


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change of a job, in words."""

    words: str
    job: Job


def advice(job: Job, cards: int, card: Card) -> list[str]:
    """Lines that say what would fit: each single change that suffices, else the smallest set of them; more cards at last.

    Recomputation, TP and CP are not among them, since every plan tries them all.
    """
    lines = [change.words for change in _changes(job) if fits(change.job, cards, card)]
    if not lines:
        lines = [" + ".join(words) for words in _together(job, cards, card)][:1]
    more = next((count for count in _more(cards) if fits(job, count, card)), None)
    if more is not None:
        lines.append(f"{more} cards, as it is")
    return lines


def fits(job: Job, cards: int, card: Card) -> bool:
    """True if some layout fits."""
    layout = closest(job, cards)
    return layout is not None and sum(parts(job, layout).values()) <= USABLE * card.memory_gib * GIB


def _changes(job: Job) -> Iterator[Change]:
    """Single changes, those that cost least first."""
    if job.micro_batch > 1:
        yield Change("--micro-batch-size 1", dataclasses.replace(job, micro_batch=1))
    if job.frozen_bytes:
        stored = dataclasses.replace(job, frozen_bytes=0, encode_bytes=0)
        yield Change("stored features (load_video_features, load_text_features)", stored)
    if job.ema:
        yield Change("no --use-ema", dataclasses.replace(job, ema=False))
    if job.adapter.kind is None and not job.cpu_offload:
        yield Change(
            "--optimizer-cpu-offload, which copies the optimizer's state in every step",
            dataclasses.replace(job, cpu_offload=True),
        )
    if job.adapter.kind is None:
        yield Change(
            "--adapter lora, which trains little of it", dataclasses.replace(job, adapter=AdapterConfig(kind="lora"))
        )
    elif job.adapter.base_weights is None:
        adapter = dataclasses.replace(job.adapter, base_weights="nf4")
        yield Change("--base-weights nf4, which rounds the frozen network", dataclasses.replace(job, adapter=adapter))
    if job.adapter.kind is not None and job.adapter.stream_blocks is None:
        adapter = dataclasses.replace(job.adapter, stream_blocks=2)
        yield Change("--stream-blocks 2, which copies blocks in every pass", dataclasses.replace(job, adapter=adapter))
    for share, words in ((2, "half"), (4, "a quarter of")):
        t, h, w = job.grid
        frames, height, width = job.size
        if t >= share:
            grid, size = (t // share, h, w), ((frames - 1) // share + 1, height, width)
            yield Change(f"{words} the frames", dataclasses.replace(job, grid=grid, size=size))


def _together(job: Job, cards: int, card: Card) -> Iterator[list[str]]:
    """Sets of changes that fit, small ones first."""
    for number in range(2, _TOGETHER + 1):
        for chosen in itertools.combinations(range(len(list(_changes(job)))), number):
            changed, words = job, []
            for index in chosen:
                options = list(_changes(job))
                wanted = options[index].words
                step = next((one for one in _changes(changed) if one.words == wanted), None)
                if step is None:
                    break
                changed, words = step.job, [*words, wanted]
            if len(words) == number and fits(changed, cards, card):
                yield words


def _more(cards: int) -> Iterator[int]:
    count = 2 * cards
    while count <= _MOST_CARDS:
        yield count
        count *= 2
