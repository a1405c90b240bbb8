"""Remembers held-out losses: when they no longer fall, and where they rise while those of training clips fall."""

import dataclasses
from collections.abc import Mapping

HELD_OUT, EMA_HELD_OUT, TRAINED_ON = "eval loss", "ema eval loss", "training clips loss"
_RISE = 1.05  # a band is warned of when its held-out loss is 5 % above its lowest


@dataclasses.dataclass(slots=True)
class HeldOutLosses:
    """The lowest held-out loss of a run and what came after it.

    lowest: of the averaged weights if there are some, which sampling takes. waited: evaluations since then. iteration: of the last
    evaluation. bands: noise levels -> (lowest held-out loss, loss of training clips at that evaluation).
    """

    lowest: float | None = None
    waited: int = 0
    iteration: int = 0
    bands: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def add(self, iteration: int, found: Mapping[str, float]) -> list[str]:
        """Takes the losses of an evaluation, by name. Returns warnings about overfitting. NaN counts as no progress."""
        self.iteration = iteration
        loss = found.get(EMA_HELD_OUT, found.get(HELD_OUT))
        if loss is not None:
            better = self.lowest is None or loss < self.lowest
            self.lowest, self.waited = (loss, 0) if better else (self.lowest, self.waited + 1)
        return [warning for name in found if (warning := self._of_band(name, found)) is not None]

    def _of_band(self, name: str, found: Mapping[str, float]) -> str | None:
        band = name.removeprefix(f"{TRAINED_ON} ")
        held_out = found.get(f"{HELD_OUT} {band}")
        if band == name or held_out is None:
            return None
        lowest, trained_then = self.bands.get(band, (float("inf"), float("inf")))
        trained = found[name]
        if held_out < lowest:
            self.bands[band] = held_out, trained
        elif held_out > _RISE * lowest and trained < trained_then:
            return (
                f"overfitting: at noise levels {band.removeprefix('sigma ')} the held-out loss {held_out:.4f} is "
                f"{held_out / lowest - 1:.0%} above its lowest, while that of training clips fell from {trained_then:.4f} to "
                f"{trained:.4f}; take an earlier checkpoint, train fewer steps, or use more clips or a lower rank"
            )
        return None

    def is_exhausted(self, patience: int | None) -> bool:
        """True after `patience` evaluations in a row without a lower loss."""
        return patience is not None and self.waited >= patience

    def state_dict(self) -> dict:
        return {**dataclasses.asdict(self), "bands": {band: list(pair) for band, pair in self.bands.items()}}

    def load_state_dict(self, state: Mapping) -> None:
        self.lowest, self.waited, self.iteration = state["lowest"], state["waited"], state["iteration"]
        self.bands = {band: (low, trained) for band, (low, trained) in state["bands"].items()}
