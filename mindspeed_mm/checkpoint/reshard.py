"""Between tensor-parallel layouts: shards of a parameter -> the whole -> shards.

How a parameter is split is given (`partition.partition_dims` reads it from the layers); this file knows no names.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mindspeed_mm import logs
from mindspeed_mm.errors import CheckpointError

_log = logs.get(__name__)


def merge(parts: list[Tensor], dim: int | None, name: str) -> Tensor:
    """The whole parameter. Of one that every rank holds, the last rank's is taken, as the original's converter does."""
    if dim is not None:
        return torch.cat(parts, dim)
    different = [rank for rank, part in enumerate(parts[:-1]) if not torch.equal(part, parts[-1])]
    if different:
        # Runs without --qk-layernorm of the original never exchanged the gradients of these.
        worst = max((parts[rank].float() - parts[-1].float()).abs().max().item() for rank in different)
        _log.warning(f"{name}: TP ranks hold different values (up to {worst:.2e}); the last rank's are taken")
    return parts[-1]


def merged(shards: list[dict], dim_of: Callable[[str], int | None], key: str) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters, one at a time, of the state dicts of all TP ranks; `key` names the files' part in messages."""
    names = [name for name, value in shards[0].items() if isinstance(value, Tensor)]
    for rank, shard in enumerate(shards):
        difference = {name for name, value in shard.items() if isinstance(value, Tensor)} ^ set(names)
        if difference:
            raise CheckpointError(
                f"{key} of TP rank {rank} differs from rank 0 in the names {some(sorted(difference))}"
            )
    for name in names:
        yield name, merge([shard[name] for shard in shards], dim_of(name), name)


def some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
