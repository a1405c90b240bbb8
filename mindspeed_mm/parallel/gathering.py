"""Gathers new weights on every data rank during the forward pass, one unit of the network ahead.

With --overlap-param-gather Megatron's optimizer updates a shard of each bucket of weights on each data rank, and the
next forward pass gathers the buckets. Megatron waits for a bucket in a hook of every layer. Such hooks miss weights
that are read without calling their layer (one product for queries, keys and values; a norm and RoPE in one step), and
torch.compile cannot trace them. Here whole units have the hooks, so code inside a unit may read weights in any way.
"""

from collections.abc import Iterable, Sequence

from torch import nn

from mindspeed_mm.parallel.megatron import DistributedDataParallel


class Gathering:
    """Waits for the weights of a unit before it runs, and starts gathering those of the next one.

    Weights outside of all units are awaited before the network runs. A unit that runs again, in another micro-batch or
    in recomputation, already has its weights.
    """

    def __init__(self, ddp: DistributedDataParallel, units: Sequence[nn.Module]):
        """units: modules of the network in call order, none inside another."""
        ddp.disable_forward_pre_hook(param_sync=False)
        self._ddp = ddp
        inside = {parameter for unit in units for parameter in unit.parameters()}
        outside = (parameter for parameter in ddp.module.parameters() if parameter not in inside)
        groups = [self._groups(outside), *(self._groups(unit.parameters()) for unit in units)]
        for module, mine, following in zip((ddp.module, *units), groups, [*groups[1:], []], strict=True):
            module.register_forward_pre_hook(_wait_and_start(mine, following))

    def _groups(self, parameters: Iterable[nn.Parameter]) -> list:
        """Groups of buckets that hold the parameters, in Megatron's order of gathering: the last one first."""
        found = {id(self._ddp.param_to_bucket_group.get(parameter)) for parameter in parameters}
        return [group for group in reversed(self._ddp.bucket_groups) if id(group) in found]


def _wait_and_start(mine: list, following: list):
    def hook(module, arguments):
        for group in mine:
            group.finish_param_sync(skip_next_bucket_dispatch=True)
        for group in following:
            if not group.param_gather_dispatched:
                group.start_param_sync()

    return hook
