"""Several ranks make one sample behind one server: the first one leads, the others follow.

An order travels through the ranks' store, on which a rank may wait for hours; a collective would give up. Before each
block all ranks learn whether the leader wants to go on, so that they stop at the same place.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_mm import logs
from mindspeed_mm.errors import MMError, RankLost
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.meeting import meet
from mindspeed_mm.serving.maker import Check, SampleMaker, Tell
from mindspeed_mm.serving.worker import Stopped

_log = logs.get(__name__)
_FAREWELL_S = 5.0  # the others may be gone already, by the same signal


@contextlib.contextmanager
def leading(maker: SampleMaker, parallel: ParallelContext) -> Iterator["Leader"]:
    """A maker that takes the other ranks along; at its end they leave `follow`. On the first rank."""
    leader = Leader(maker, parallel)
    try:
        yield leader
    finally:
        farewell = threading.Thread(target=_order, args=(parallel, None), daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_S)


class Leader(SampleMaker):
    """The first rank's maker."""

    def __init__(self, maker: SampleMaker, parallel: ParallelContext):
        super().__init__(maker.config, maker.pipeline, maker.platform, maker.archive.weights)
        self.parallel = parallel

    def make(self, name: str, line: dict[str, Any], tell: Tell, check: Check) -> Callable[[], str]:
        """As of one rank. An error that the others do not have ends the process: they would wait for this rank."""
        _order(self.parallel, [name, line])
        try:
            return super().make(name, line, tell, lambda: _agree(self.parallel, check))
        except (MMError, Stopped):
            raise
        except Exception as error:
            _log.exception(f"{name}: {type(error).__name__}; the ranks end, and a start of the server goes on with it")
            os._exit(RankLost.exit_code)


def follow(maker: SampleMaker, parallel: ParallelContext) -> None:
    """Makes every sample with the first rank until it ends. On the other ranks."""
    while (order := _order(parallel)) is not None:
        name, line = order
        # An error of the request, or a stop: the first rank has it as well, and says it.
        with contextlib.suppress(MMError, Stopped):
            maker.make(name, line, lambda number, total, preview=None: None, lambda: _agree(parallel))


def _order(parallel: ParallelContext, order: Any = None) -> Any:
    """The first rank's order, on every rank."""
    return meet("a sample of the server", parallel, order, lambda orders: orders[0], for_ever=True)


def _agree(parallel: ParallelContext, check: Check = lambda: None) -> None:
    """Raises Stopped on every rank if the first one's `check` does."""
    stop = torch.zeros(1, dtype=torch.uint8)
    try:
        check()
    except Stopped:
        stop.fill_(1)
    dist.broadcast(stop, 0, group=parallel.everyone)
    if stop.item():
        raise Stopped
