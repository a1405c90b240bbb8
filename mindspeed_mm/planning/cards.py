"""What cards and their links can do by their makers' data sheets."""

import dataclasses

from mindspeed_mm.errors import ConfigError

NODE = 8  # most cards of a node


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """One accelerator: peaks, none of them measured here. None: unknown, so no seconds can be planned.

    memory_gib: what the maker states, in GiB. tflops: dense bf16 products, TFLOP/s. bandwidth: of its memory, GB/s.
    link: between cards of a node, network: between nodes; GB/s of one card in one direction.
    """

    name: str
    memory_gib: float
    tflops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    network: float | None = None

    @property
    def is_timed(self) -> bool:
        """True if seconds can be planned."""
        return None not in (self.tflops, self.bandwidth, self.link)


# Links: NVLink 4 (900 GB/s both ways) and 3 (600), HCCS of eight cards (392 both ways), PCIe 4 x16, which a 4090 has alone.
# Networks: 400 Gb/s a card beside H100 and H200, 200 beside A100 and 910B, one 100 Gb/s port for 8 cards otherwise.
_CARDS = (
    Card("910b-64g", 64, 376, 1600, 196, 25),
    Card("910b-32g", 32, 280, 800, 196, 25),
    Card("h200-141g", 131, 989, 4800, 450, 50),  # 141 GB
    Card("h100-80g", 80, 989, 3350, 450, 50),
    Card("a100-80g", 80, 312, 2039, 300, 25),
    Card("a100-40g", 40, 312, 1555, 300, 25),
    Card("4090-24g", 24, 165, 1008, 32, 1.6),
    # one process of a server: eight cores with AVX-512 in fp32, an eighth of its memory's bandwidth
    Card("cpu", 32, 0.8, 40, 10, 1.6),
)
CARDS = {card.name: card for card in _CARDS}


def card_of(
    name: str | None = None,
    memory_gib: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
    link: float | None = None,
    network: float | None = None,
) -> Card:
    """The card of this name, with the values that are given instead of its own. Raises ConfigError for an unknown name, and
    for neither name nor memory.
    """
    given = {"memory_gib": memory_gib, "tflops": tflops, "bandwidth": bandwidth, "link": link, "network": network}
    given = {key: value for key, value in given.items() if value is not None}
    if name is None and memory_gib is None:
        raise ConfigError("give a card or its memory_gib")
    if name is not None and name not in CARDS:
        raise ConfigError(f"card {name!r}: need one of {', '.join(CARDS)}, or memory_gib")
    card = Card(f"card of {memory_gib:g} GiB", memory_gib or 0.0) if name is None else CARDS[name]
    return dataclasses.replace(card, **given)
