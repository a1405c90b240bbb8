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

    def __init__(self, optimizer, network: nn.Module, counts_whole: bool):
        """optimizer: Megatron's, distributed or not, over the parameters that are trained. counts_whole: True on the one TP
        rank that counts parameters which every TP rank has whole in the norm.
        """
        self.shards: list[MainShard] = []
        self._device = next(network.parameters()).device
        self._gradients: list[Tensor] = []  # in Megatron's buffers, where the backward pass and the data ranks sum them
        self._copied: list[Tensor] = []  # main weights that are not the network's own memory
        self._copies: list[Tensor] = []  # their places in the network
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            shard = _shard(optimizer, name, parameter)
            if shard is not None:
                self._add(shard, parameter)
        # In the optimizer's order, so that the sum is rounded as Megatron rounds it.
        self._counted = [
            main for main in optimizer.get_parameters() if counts_whole or getattr(main, "tensor_model_parallel", False)
        ]

    def _add(self, shard: MainShard, parameter: nn.Parameter) -> None:
        main, part = shard.main, slice(shard.start, shard.end)
        self.shards.append(shard)
        self._gradients.append(parameter.main_grad.view(-1)[part].view_as(main))  # pyright: ignore[reportAttributeAccessIssue]
        place = parameter.data.view(-1)[part].view_as(main)
        if place.data_ptr() != main.data_ptr():
            self._copied.append(main)
            self._copies.append(place)

    def drop_gradients(self) -> None:
        """Frees the main weights' gradients at the start of a step."""
        for shard in self.shards:
            shard.main.grad = None

    def take_gradients(self) -> None:
        """Gives each main weight its fp32 gradient: the buffer's memory if that is fp32, else a copy."""
        for shard, gradient in zip(self.shards, self._gradients, strict=True):
            shard.main.grad = gradient.float()

    def gradients(self) -> list[Tensor]:
        """Gradients of all main weights, after `take_gradients`."""
        return [shard.main.grad for shard in self.shards if shard.main.grad is not None]

    def squared_norm(self) -> Tensor:
        """Sum of squares of the gradients that this rank counts, fp32 [1]: over all ranks each number counts once."""
        counted = [main.grad for main in self._counted if main.grad is not None]
        if not counted:
            return torch.zeros(1, device=self._device)
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(counted))).square().view(1)

    @torch.no_grad()
    def to_network(self) -> None:
        """Copies the main weights to their places in the network on this rank."""
        if self._copied:
            torch._foreach_copy_(self._copies, self._copied)


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
