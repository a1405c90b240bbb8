"""What a file says of an adapter beside its tensors: its kind, and the network that it was trained on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mindspeed_mm.config.distillation import DISTILLED
from mindspeed_mm.errors import CheckpointError
from mindspeed_mm.families.adapters import AdapterConfig


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterRecord:
    """Facts about an adapter. base: fingerprint of the network's weights (`weights/fingerprint.py`); None: not known.

    distilled: what a file says of its distillation, as plain values; None for an adapter that has learned from clips.
    """

    config: AdapterConfig
    model_id: str
    base: str | None = None
    base_path: str | None = None  # where the weights were; for people, since files move
    distilled: object = None

    def plain(self) -> dict[str, Any]:
        """As plain values, for a file."""
        config = dataclasses.asdict(self.config)
        del config["stream_blocks"]  # changes no number
        config |= {"alpha": float(self.config.alpha or self.config.rank), "targets": list(self.config.words)}
        said = {} if self.distilled is None else {DISTILLED: self.distilled}
        return {**config, "model_id": self.model_id, "base": self.base, "base_path": self.base_path, **said}


def read_record(plain: object, origin: str) -> AdapterRecord:
    """The inverse of `plain`. Raises CheckpointError for values that it never writes."""
    wanted = {"kind": str, "rank": int, "alpha": (float, int, type(None)), "targets": list, "model_id": str}
    held = plain if isinstance(plain, Mapping) else {}
    for key, kind in wanted.items():
        if not isinstance(held.get(key), kind):
            raise CheckpointError(f"{origin}: what it says of its adapter is damaged: {key} is {held.get(key)!r}")
    dropout, base_weights = held.get("dropout"), held.get("base_weights")  # missing in older files
    config = AdapterConfig(
        kind=held["kind"],
        rank=held["rank"],
        alpha=held["alpha"],
        targets=tuple(map(str, held["targets"])),
        dropout=dropout if isinstance(dropout, float) else 0.0,
        base_weights=base_weights if isinstance(base_weights, str) else None,
    )
    return AdapterRecord(config, held["model_id"], held.get("base"), held.get("base_path"), held.get(DISTILLED))


def check_same(mine: AdapterRecord | None, held: object, origin: str = "the checkpoint") -> None:
    """Raises CheckpointError unless a run's adapter and that of a checkpoint are of one kind, size and base.

    held: what the checkpoint says; None: it holds a whole network.
    """
    if mine is None and held is None:
        return
    if mine is None:
        raise CheckpointError(
            f"{origin}: holds an adapter, not a network; give --adapter and the flags that it was trained with"
        )
    if held is None:
        raise CheckpointError(
            f"{origin}: holds a whole network, not an adapter; name it in predictor.from_pretrained as the base, and leave "
            "--load out"
        )
    theirs = read_record(held, origin)
    check_base(theirs, mine.base, origin)
    for key, flag in {"kind": "--adapter", "rank": "--adapter-rank", "alpha": "--adapter-alpha"}.items():
        now, then = mine.plain()[key], theirs.plain()[key]
        if now != then:
            raise CheckpointError(
                f"{origin}: {flag} was {then}, and is {now} now; give the same, or begin in another --save"
            )
    if set(theirs.config.words) != set(mine.config.words):
        raise CheckpointError(
            f"{origin}: --adapter-targets were {' '.join(theirs.config.words)}, and are {' '.join(mine.config.words)} now; "
            "give the same, or begin in another --save"
        )


def check_base(record: AdapterRecord, base: str | None, origin: str) -> None:
    """Raises CheckpointError if an adapter was trained on another base. base: fingerprint of the weights in use."""
    if None not in (record.base, base) and record.base != base:
        raise CheckpointError(
            f"{origin}: was trained on another base: its weights have fingerprint {record.base[:16]} "  # pyright: ignore
            f"({record.base_path}), those in use {base[:16]}"  # pyright: ignore
        )
