"""What a network's blocks ask of the layout they run on: their linears, and where tokens and heads move.

`ParallelContext` answers with Megatron's layers over process groups, `Alone` with torch's own in a single process. So a
block knows neither, and a process without megatron-core can build it.
"""

from typing import Any, Protocol

from torch import Tensor

from mindspeed_mm.types import Drops


class Layout(Protocol):
    """Sizes and ranks of tensor (TP) and context parallel (CP), and what depends on them."""

    @property
    def tensor_size(self) -> int: ...

    @property
    def tensor_rank(self) -> int: ...

    @property
    def context_size(self) -> int: ...

    @property
    def context_rank(self) -> int: ...

    @property
    def sequence_parallel(self) -> bool: ...

    def column(self, in_features: int, out_features: int, *, bias: bool) -> Any:
        """A linear whose outputs are split over TP: [S,B,in] -> [S,B,out/TP]."""
        ...

    def row(self, in_features: int, out_features: int, *, bias: bool) -> Any:
        """A linear whose inputs are split over TP: [S,B,in/TP] -> [S,B,out]."""
        ...

    def condition(self, in_features: int, out_features: int) -> Any:
        """A linear of a condition [B,in] that every rank holds whole, in the condition's dtype: [B,out]."""
        ...

    def shared(self, condition: Tensor) -> Tensor:
        """A condition that goes into several `condition` linears: over TP its gradient is summed here, once for all."""
        ...

    def together(self, x: Tensor, *layers: Any, drops: Drops | None = None) -> tuple[Tensor, ...]:
        """Several `column` linears on one input. drops: for dropout of their adapters."""
        ...

    def split_heads(self, x: Tensor) -> Tensor:
        """[S/CP,B,H,D] -> [S,B,H/CP,D]: all tokens of a share of the heads."""
        ...

    def join_heads(self, x: Tensor) -> Tensor:
        """The inverse of `split_heads`."""
        ...
