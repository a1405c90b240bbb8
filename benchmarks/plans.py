"""Plans of v1.5 as tables: the fastest layout by cards, and what one, two and eight cards of a size can train.

    python benchmarks/plans.py > docs/benchmarks/plans.md

Needs no card. Every number comes from `mindspeed_mm.planning`: memory by tested formulas, seconds estimated from peak rates.
"""

import dataclasses
from pathlib import Path

from table import table

from mindspeed_mm import families
from mindspeed_mm.config.geometry import LatentGrid
from mindspeed_mm.families.adapters import AdapterConfig
from mindspeed_mm.planning import advice, job, report
from mindspeed_mm.planning.cards import CARDS, card_of
from mindspeed_mm.planning.layouts import closest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "opensoraplan1.5"
MODEL, DATA = EXAMPLES / "model_opensoraplan1_5.json", EXAMPLES / "data.json"
KINDS = ("910b-64g", "h100-80g", "a100-80g", "4090-24g")
NUMBERS = (8, 64, 512)
STRIDES = (8, 8, 8)  # of v1.5's autoencoder
MEMORIES = (16, 24, 32, 48, 80)
# frames, height, width, smallest first; one frame is an image
SIZES = (
    (1, 256, 256),
    (1, 576, 1024),
    (33, 256, 256),
    (49, 352, 640),
    (97, 352, 640),
    (65, 576, 1024),
    (121, 576, 1024),
)
GOALS = {
    "full": AdapterConfig(),
    "full, state on the host": AdapterConfig(),
    "LoRA": AdapterConfig(kind="lora"),
    "LoRA, int8": AdapterConfig(kind="lora", base_weights="int8"),
    "LoRA, nf4": AdapterConfig(kind="lora", base_weights="nf4"),
    "LoRA, 2 blocks": AdapterConfig(kind="lora", stream_blocks=2),
    "LoRA, nf4, 2 blocks": AdapterConfig(kind="lora", base_weights="nf4", stream_blocks=2),
}
HEAD = """# Plans of v1.5

Made by `python benchmarks/plans.py`, which needs no card; a test makes one row again. GiB come from formulas that are tested against
real steps. **Seconds are estimates from peak rates and assumed shares of them, not measured** ([planning.md](../planning.md)).
"""


def layout_row(kind: str, number: int) -> list[object]:
    """The fastest layout of a number of cards, at a micro-batch of one sample for each data rank."""
    found = report.rows(job.read(MODEL, DATA), number, CARDS[kind])
    if not found:
        return [kind, number, *["-"] * 8]
    one = found[0]
    layout = f"{one['tensor']} / {one['context']} / {one['data']}"
    hours = one["cards"] / one["samples_per_second"] / 3600 * 1000
    return [
        kind, number, layout, one["recompute"], f"{one['total_gib']:.1f}", f"{one['step_seconds']:.2f}",
        f"{one['seconds']['exchanges']:.2f}", f"{one['samples_per_second']:.3g}", f"{one['mfu']:.0%}", f"{hours:.3g}",
    ]  # fmt: skip


def size_row(memory: int, number: int, goal: str) -> list[object]:
    """The largest of `SIZES` that fits with stored features, and its memory."""
    run = dataclasses.replace(
        job.read(MODEL, DATA, adapter=GOALS[goal]), frozen_bytes=0, encode_bytes=0, cpu_offload="host" in goal
    )
    family, card = families.of_denoiser(run.denoiser), card_of(memory_gib=memory)

    def sized(size: tuple[int, int, int]) -> job.Job:
        latent = LatentGrid.of_video(*size, STRIDES)
        grid = family.extent(run.denoiser, (latent.frames, latent.height, latent.width))
        return dataclasses.replace(run, size=size, grid=grid)

    largest = next((one for one in map(sized, reversed(SIZES)) if advice.fits(one, number, card)), None)
    if largest is None:
        return [memory, number, goal, "-", "-", "-"]
    layout = closest(largest, number)
    assert layout is not None
    least = report.row(largest, layout, card)
    return [memory, number, goal, "x".join(map(str, largest.size)), f"{least['total_gib']:.1f}", least["recompute"]]


def main() -> None:
    print(HEAD)
    print(
        "## The fastest layout\n\n121x576x1024, bf16, EMA, whole network, one sample for each data rank, encoders on the card.\n"
    )
    header = ["card", "cards", "TP / CP / DP", "recompute", "GiB", "s / step", "of it exchanges", "samples / s", "MFU"]
    rows = [layout_row(kind, number) for kind in KINDS for number in NUMBERS]
    print(table([*header, "card-hours / 1,000 samples"], rows))
    print(
        "\n## What a card of a size can train\n\nThe largest of these sizes that fits, with stored features and the layout of"
    )
    print(
        "least memory; full is the whole network with EMA, LoRA has rank 16 on attention and feed-forwards. The base of a LoRA"
    )
    print(
        "is bf16; int8 and nf4 hold its linears in fewer bits (`--base-weights`), 2 blocks keeps the others on the host\n"
        "(`--stream-blocks 2`). State on the host is `--optimizer-cpu-offload`. `-`: not even one image of 256x256.\n"
    )
    few = [(number, goal) for number in (1, 2) for goal in GOALS] + [(8, goal) for goal in list(GOALS)[:3]]
    rows = [size_row(memory, number, goal) for memory in MEMORIES for number, goal in few]
    print(table(["GiB", "cards", "goal", "largest clip", "GiB used", "recompute"], rows))


if __name__ == "__main__":
    main()
