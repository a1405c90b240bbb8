"""Memory of cards."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """One accelerator. memory_gib: what its maker states, in GiB."""

    name: str
    memory_gib: float


CARDS = {
    card.name: card
    for card in (
        Card("910b-64g", 64),
        Card("910b-32g", 32),
        Card("h200-141g", 131),  # 141 GB
        Card("h100-80g", 80),
        Card("a100-80g", 80),
        Card("a100-40g", 40),
        Card("4090-24g", 24),
    )
}
