"""A plan as a picture: a bar for each layout, its memory stacked by part."""

from collections.abc import Sequence
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.errors import ConfigError
from mindspeed_mm.planning.cards import Card
from mindspeed_mm.planning.memory import USABLE


def draw(found: Sequence[dict], card: Card, file: str | Path, most: int = 16) -> None:
    """Writes the first `most` layouts of `report.rows` as PNG, PDF or SVG, by the file's ending. Raises ConfigError for
    another ending.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = found[:most]
    file = Path(file)
    if file.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--plot {file}: need a name that ends with .png, .pdf or .svg")
    labels = [f"TP {one['tensor']}\nCP {one['context']}\nDP {one['data']}\n{one['recompute']}" for one in shown]
    figure, panel = plt.subplots(figsize=(2 + 0.9 * len(shown), 5.5), layout="constrained")
    below = [0.0] * len(shown)
    for index, name in enumerate(shown[0]["gib"]):
        heights = [one["gib"][name] for one in shown]
        panel.bar(range(len(shown)), heights, bottom=below, label=name, color=f"C{index}", width=0.7)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    panel.axhline(card.memory_gib, color="black", linewidth=1, label=f"{card.name}: {card.memory_gib:g} GiB")
    panel.axhline(USABLE * card.memory_gib, color="black", linestyle="--", linewidth=1, label=f"{USABLE:.0%} of it")
    panel.set_xticks(range(len(shown)), labels, fontsize=8)
    panel.set_ylabel("GiB on each card, planned")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic.replacing(file) as opened:
        figure.savefig(opened, dpi=110, format=file.suffix[1:].lower())
    plt.close(figure)
