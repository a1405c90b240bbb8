"""The fp32 main weights of this rank, with their gradients and their places in the network, listed once.

Megatron's own methods look up each parameter's shard again in every step, and call several small operators for it. On
a small network this takes longer than the forward pass; on an accelerator it is thousands of launches. The memory of
gradients and weights never moves, so here the views into it are made once, and a step passes whole lists to torch.
"""

import torch
from torch import Tensor, nn

from mindspeed_mm.parallel.engine import MainShard
from mindspeed_mm.parallel.megatron import DistributedOptimizer


class MainWeights:
    """Main weights of the trained parameters, in the network's order, with the methods of a step that pass over all of them."""

    def __init__(self, optimizer, network: nn.Module, counts_whole: bool, on_host: bool = False):
        """optimizer: Megatron's, distributed or not, over the parameters that are trained. counts_whole: True on the one TP
        rank that counts parameters which every TP rank has whole in the norm. on_host: see `host_state.py`; then torch's
        AdamW finds no gradients.
        """
        self.shards: list[MainShard] = []
        self.places: list[Tensor | None] = []  # of the shards in the network; None: the shard is the network's memory
        self._on_host = on_host
        self._device = next(network.parameters()).device
        # gradients in Megatron's buffers, where the backward pass and the data ranks sum them
        self._sums: list[Tensor] = []
        self._gradients: list[Tensor] = []  # the same in fp32, from `take_gradients` to `drop_gradients`
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            shard = _shard(optimizer, name, parameter)
            if shard is not None:
                self._add(shard, parameter)
        # In the optimizer's order, so that the sum is rounded as Megatron rounds it.
        numbers = {id(shard.main): number for number, shard in enumerate(self.shards)}
        self._counted = [
            numbers[id(main)]
            for main in optimizer.get_parameters()
            if counts_whole or getattr(main, "tensor_model_parallel", False)
        ]
        self._copied = [shard.main for shard, place in zip(self.shards, self.places, strict=True) if place is not None]
        self._copies = [place for place in self.places if place is not None]

    def _add(self, shard: MainShard, parameter: nn.Parameter) -> None:
        main, part = shard.main, slice(shard.start, shard.end)
        self.shards.append(shard)
        self._sums.append(parameter.main_grad.view(-1)[part].view_as(main))  # pyright: ignore[reportAttributeAccessIssue]
        place = parameter.data.view(-1)[part].view_as(main)
        self.places.append(None if place.data_ptr() == main.data_ptr() else place)

    def drop_gradients(self) -> None:
        """Frees the main weights' gradients at the start of a step."""
        self._gradients = []
        for shard in self.shards:
            shard.main.grad = None

    def take_gradients(self) -> None:
        """Gives each main weight its fp32 gradient: the buffer's memory if that is fp32, else a copy."""
        self._gradients = [gradient.float() for gradient in self._sums]
        if not self._on_host:
            for shard, gradient in zip(self.shards, self._gradients, strict=True):
                shard.main.grad = gradient

    def gradients(self) -> list[Tensor]:
        """Gradients of all main weights, after `take_gradients`."""
        return self._gradients

    def squared_norm(self) -> Tensor:
        """Sum of squares of the gradients that this rank counts, fp32 [1]: over all ranks each number counts once."""
        counted = [self._gradients[number] for number in self._counted]
        if not counted:
            return torch.zeros(1, device=self._device)
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(counted))).square().view(1)

    @torch.no_grad()
    def to_network(self) -> None:
        """Copies the main weights to their places in the network on this rank."""
        if self._copied:
            torch._foreach_copy_(self._copies, self._copied)

    @torch.no_grad()
    def from_network(self) -> None:
        """Copies the network's weights into the main weights of this rank."""
        if self._copied:
            torch._foreach_copy_(self._copied, self._copies)


def _shard(optimizer, name: str, parameter: nn.Parameter) -> MainShard | None:
    """The part of a parameter that this rank updates; None if other data ranks own all of it."""
    if not isinstance(optimizer, DistributedOptimizer):
        main = getattr(parameter, "main_param", parameter)
        return MainShard(name, main, 0, parameter.numel(), parameter.shape)
    if parameter not in optimizer.model_param_group_index_map:
        return None
    group, order = optimizer.model_param_group_index_map[parameter]
    main = optimizer.param_groups[group]["params"][order]
    part = optimizer._get_model_param_range_map(parameter)["param"]
    return MainShard(name, main, part.start, part.end, parameter.shape)
