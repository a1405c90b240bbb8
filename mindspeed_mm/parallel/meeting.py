"""Waits for other ranks as long as any of them makes progress; a collective's time limit would not fit slow disks.

Works through the store of all ranks: the first rank collects a plain value from each and announces the decision.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_mm.errors import RankLost
from mindspeed_mm.parallel.context import ParallelContext

_SHORT_S, _LONG_S = 0.005, 0.2  # between two looks, at first and later


def meet(
    occasion: str,
    parallel: ParallelContext,
    value: object = None,
    decide: Callable[[list], object] = lambda values: None,
    *,
    for_ever: bool = False,
) -> Any:
    """Gives every rank the first rank's decision from the values of all ranks, in rank order; collective.

    value and the result of `decide`: anything that JSON can hold. Raises RankLost if no rank has shown progress for
    `parallel.pulse.patience_s`, unless for_ever is set.
    """
    parallel.pulse.beat(f"the way to {occasion}")
    if parallel.world_size == 1:
        return decide([value])
    store, rank = parallel.pulse.store, parallel.rank
    number = store.add(f"meet/{occasion}/of rank {rank}", 1)  # number of this meeting, the same on every rank
    place = f"meet/{occasion}/{number}"
    store.set(f"{place}/{rank}", json.dumps(value))
    if parallel.is_first:
        keys = [f"{place}/{other}" for other in range(parallel.world_size)]
        _wait(keys, occasion, parallel, for_ever)
        decision = decide([json.loads(found) for found in store.multi_get(keys)])
        store.set(place, json.dumps(decision))
    else:
        _wait([place], occasion, parallel, for_ever)
        decision = json.loads(store.get(place))
    # Keeps the store alive until every rank has its answer: no rank may leave earlier.
    dist.all_reduce(torch.zeros(1), group=parallel.everyone)  # a barrier would also wait for the devices
    store.delete_key(f"{place}/{rank}")
    if parallel.is_first:
        store.delete_key(place)
    return decision


def _wait(keys: Sequence[str], occasion: str, parallel: ParallelContext, for_ever: bool) -> None:
    pulse, pause = parallel.pulse, _SHORT_S
    while not pulse.store.check(list(keys)):
        if not for_ever and pulse.idle_s() > pulse.patience_s:
            missing = [rank for rank, key in enumerate(keys) if not pulse.store.check([key])]
            raise RankLost(
                f"{occasion}: {ranks_of(missing)} not ready, and no rank has made progress for {pulse.patience_s:.0f} s; "
                "is a disk or a file system hanging?"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONG_S)


def ranks_of(ranks: Sequence[int]) -> str:
    """Names ranks: "rank 3 is" or "ranks 0-3, 7 are"."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {text} is" if len(ranks) == 1 else f"ranks {text} are"
