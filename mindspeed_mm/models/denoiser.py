"""What the rest of the package uses of a denoiser: training, sampling, weights and the API know this class alone."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.base import DenoiserConfig
from mindspeed_mm.models.step_cache import StepCache
from mindspeed_mm.parallel import partition
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.host_inputs import HostInputs
from mindspeed_mm.parallel.seeds import SampleDraws
from mindspeed_mm.types import ImageFeatures, Tensors, TextFeatures

# Blocks are compiled once per kind of block, and again when a number of tokens changes; torch's default limit is 8.
_RECOMPILE_LIMIT = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Conditions(Tensors):
    """All that the denoiser is conditioned on beside the noise level, for a batch of samples.

    Training, evaluation, encoder sharing, guidance and sampling pass it whole. A new condition is a field here, made
    where the samples are encoded and read by the network.
    """

    text: TextFeatures
    image: ImageFeatures | None = None  # what is known of the video; None: nothing

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.text.sequence.shape[0]


def _nothing() -> None:
    pass


class Denoiser(nn.Module):
    """Base of networks that predict the velocity noise - z0 of a noisy latent video.

    A network defines `velocity` and `blocks`, and the others where its own differ. Each linear that is split over TP is
    one of `parallel/linear.py`.
    """

    has_step_cache: ClassVar[bool] = False  # True if `velocity` uses the step cache that it is given
    # True if its linears know their tokens where `adapter_dropout` is not 0.
    has_adapter_dropout: ClassVar[bool] = False

    def __init__(
        self,
        config: DenoiserConfig,
        parallel: ParallelContext,
        *,
        recompute_blocks: int = 0,
        recompute_feed_forwards: int = 0,
    ):
        """recompute_blocks: number of first blocks that are recomputed as a whole in the backward pass.

        recompute_feed_forwards: number of first blocks whose feed-forwards alone are recomputed.
        """
        super().__init__()
        heads_split = parallel.tensor_size * parallel.context_size
        if config.num_heads % heads_split:
            raise ValueError(
                f"num_heads {config.num_heads} does not divide by tensor parallel {parallel.tensor_size} "
                f"x context parallel {parallel.context_size}"
            )
        self.config = config
        self.parallel = parallel
        self.recompute_blocks = recompute_blocks
        self.recompute_feed_forwards = recompute_feed_forwards
        self.adapter_dropout = 0.0  # largest rate of its adapters in training

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of the velocity."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditions: Conditions | TextFeatures,
        keep: Tensor | None = None,
        *,
        draws: SampleDraws | None = None,
        step_cache: StepCache | None = None,
        before_block: Callable[[], None] = _nothing,
    ) -> Tensor:
        """Velocity [B,C,T,H,W] at `latents` [B,C,T,H,W] and noise level `sigma` [B] in [0,1]; 1 is pure noise.

        conditions: text alone may be given as it is. keep: [B,T,H,W] bool, True at video (None: everywhere). draws:
        source of the network's random choices in training; None makes none. step_cache: lets sampling leave out the
        inner blocks. before_block: called before each block; an exception from it ends the pass.
        """
        if isinstance(conditions, TextFeatures):
            conditions = Conditions(conditions)
        return self.velocity(latents, sigma, conditions, keep, draws, step_cache, before_block)

    def velocity(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditions: Conditions,
        keep: Tensor | None,
        draws: SampleDraws | None,
        step_cache: StepCache | None,
        before_block: Callable[[], None],
    ) -> Tensor:
        """The network itself; see `forward`."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """All blocks, first to last."""
        raise NotImplementedError

    def keep_inputs_on_host(self, inputs: HostInputs) -> None:
        """Lets the inputs of recomputed blocks wait on the host. Raises ConfigError in a network that does not know how."""
        raise ConfigError(
            f"--cpu-offloading-num-layers {inputs.blocks}: a {type(self).__name__} does not; leave it out"
        )

    def use_sage_attention(self, device: torch.device) -> None:
        """Lets all blocks attend in int8 (`ops/sage.py`), in passes on `device`. Raises ConfigError where it cannot."""
        raise ConfigError(f"--sage-attention: a {type(self).__name__} does not; leave it out")

    def units(self) -> Sequence[nn.Module]:
        """Modules in call order; each reads its weights only within its own call.

        `Gathering` gathers their weights one by one, and all others before the first of them.
        """
        return self.blocks()

    def partial_gradients(self) -> Iterable[nn.Parameter]:
        """Parameters whose gradients are partial on each TP rank, so that they must be summed.

        These are parameters that are not split, but see only this rank's heads, or tokens under sequence parallel.
        """
        return ()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """torch.compile each block, in place: names of parameters stay. On one TP x CP rank each is a single graph.

        Raises ConfigError on an NPU, where torch.compile is not supported here.
        """
        device = self.device
        if device.type == "npu":
            raise ConfigError("--compile: torch.compile does not support npu here; leave it out")
        whole = self.parallel.tensor_size * self.parallel.context_size == 1  # collectives break the graph
        # On a CPU, RoPE's halves and the parts beside the text are written in place, not selected by masks.
        options = {"max_pointwise_cat_inputs": 1} if device.type == "cpu" and backend == "inductor" else None
        compiled: Any = torch.compile  # its overloads leave recompile_limit out
        for block in self.blocks():
            # Compiles the forward, not the call: the engine waits for weights in hooks of a block, which must not be
            # traced.
            block.forward = compiled(
                block.forward, backend=backend, fullgraph=whole, recompile_limit=_RECOMPILE_LIMIT, options=options
            )

    def initialize(self, seed: int) -> None:
        """Sets fresh weights, the same at every layout."""
        partition.fill(self, self.draw_weight, seed, self.parallel)

    def draw_weight(self, name: str, full: Tensor, generator: torch.Generator) -> None:
        """Fills one whole parameter, fp32 on the CPU: linears by their fan-in, split ones by N(0, 0.02), norms by 1."""
        module_name, _, kind = name.rpartition(".")
        module = self.get_submodule(module_name)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
            full.uniform_(-bound, bound, generator=generator)
        elif kind == "weight" and full.ndim > 1:
            full.normal_(0.0, 0.02, generator=generator)
        else:
            full.fill_(1.0 if kind == "weight" else 0.0)
