"""SparseUMMDiT: the U-shaped sparse multimodal DiT ("SUV") of Open-Sora Plan v1.5.

Notable choices, all the original's:
- an odd number of stages; each stage of the second half takes the output of its mirror stage over a long skip;
- within a stage, blocks alternate single skip and group skip at the stage's sparsity (Skiparse);
- video and text have their own weights but attend jointly (MM-DiT, 2403.03206); the condition (sigma, pooled text)
  modulates every norm;
- activations are [S,B,D]; parameter names are the published checkpoints'.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.families.base import Grid
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.denoiser import Conditions, Denoiser
from mindspeed_mm.models.sparse_ummdit.block import Block, skip_join
from mindspeed_mm.models.sparse_ummdit.dropout import Places
from mindspeed_mm.models.sparse_ummdit.embeddings import PatchEmbed, TimeTextEmbed, unpatchify
from mindspeed_mm.models.sparse_ummdit.masks import keys_of, patch_keep, used_columns, without_padding
from mindspeed_mm.models.sparse_ummdit.modulation import FinalNorm
from mindspeed_mm.models.sparse_ummdit.norms import NORMS
from mindspeed_mm.models.step_cache import StepCache
from mindspeed_mm.ops import rope3d, sage
from mindspeed_mm.parallel.collectives import check_divisible, join_tokens, split_tokens, token_parts
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.host_inputs import HostInputs, HostPass
from mindspeed_mm.parallel.recompute import maybe_recompute
from mindspeed_mm.parallel.seeds import SampleDraws
from mindspeed_mm.types import ImageFeatures, TextFeatures, sent


class SparseUMMDiT(Denoiser):
    """See the module; `Denoiser` says how it is called."""

    config: SparseUMMDiTConfig
    has_step_cache = True
    has_adapter_dropout = True

    def __init__(
        self,
        config: SparseUMMDiTConfig,
        parallel: ParallelContext,
        *,
        recompute_blocks: int = 0,
        recompute_feed_forwards: int = 0,
    ):
        super().__init__(
            config, parallel, recompute_blocks=recompute_blocks, recompute_feed_forwards=recompute_feed_forwards
        )
        self._host_inputs: HostInputs | None = None
        width = config.hidden_size
        self.patch_embed = PatchEmbed(config.in_channels, width, config.patch_size)
        self.image_embed = None  # further input channels; at 0, as they begin, the network is the one without them
        if config.image_channels:
            self.image_embed = PatchEmbed(config.image_channels, width, config.patch_size, bias=False)
        self.time_text_embed = TimeTextEmbed(config.timestep_embed_dim, config.pooled_projection_dim)
        self.caption_projection = nn.Linear(config.caption_channels, width)
        self.transformer_blocks = nn.ModuleList(
            _stage(config, parallel, stage) for stage in range(len(config.num_layers))
        )
        if config.skip_connection:
            decoder_stages = range(len(config.num_layers) // 2)
            self.skip_norm_linear = nn.ModuleList(skip_join(config) for _ in decoder_stages)
            self.skip_norm_linear_enc = nn.ModuleList(skip_join(config) for _ in decoder_stages)
        self.norm_final = NORMS[config.norm_cls](width, config.norm_eps)
        self.norm_out = FinalNorm(width, config.timestep_embed_dim, config.norm_cls, config.norm_eps, parallel)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.velocity_channels)

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
        text = conditions.text
        extent = self._check(latents, sigma, text, keep)
        self._check_image(conditions.image, latents)
        tokens = math.prod(extent)
        columns = used_columns(text.keep, token_parts(self.parallel))
        text = without_padding(text.to(dtype=self.dtype), columns)
        places = self._dropout_places(draws, tokens, columns, latents.device)

        condition = self.parallel.shared(F.silu(self.time_text_embed(sigma, text.pooled)))
        video = split_tokens(self._embed(latents, conditions.image), self.parallel)
        words = split_tokens(self.caption_projection(text.sequence).transpose(0, 1).contiguous(), self.parallel)
        scale = self.config.interpolation_scale
        rope = rope3d.tables(extent, self.config.head_dim, scale, self._rope_offset(draws, extent), latents.device)
        patches = None if keep is None else patch_keep(keep, self.config.patch_size)
        keys = keys_of({block.pattern for block in self.blocks()}, patches, text.keep, tokens, latents.device)

        waiting = HostPass(self._host_inputs)
        video = self._stages(video, words, (condition, rope, keys, places, waiting, before_block), step_cache)
        video = self.norm_out(self.norm_final(video), condition)
        video = self.proj_out(join_tokens(video, self.parallel))
        return unpatchify(video, extent, self.config.patch_size, self.config.velocity_channels)

    def _embed(self, latents: Tensor, image: ImageFeatures | None) -> Tensor:
        """Tokens [S,B,D] of the noisy latents and of what is known of the video."""
        tokens = self.patch_embed(latents.to(self.dtype))
        if image is None or self.image_embed is None:
            return tokens
        return tokens + self.image_embed(torch.cat((image.latents, image.mask), 1).to(self.dtype))

    def _stages(self, video: Tensor, text: Tensor, shared: tuple, step_cache: StepCache | None) -> Tensor:
        """Runs the U: stages of the first half push their outputs, those of the second half pop them.

        shared: arguments of every block: condition, rope, real keys, places of dropout, what waits on the host, and the callback
        before it.
        """
        skips: list[tuple[Tensor, Tensor]] = []
        last = len(self.transformer_blocks) - 1
        begin = video
        video, text = self._stage(0, video, text, skips, shared)
        if step_cache is not None and step_cache.reuses(video - begin):
            video, text = step_cache.add(video, text)
        else:
            before = video, text
            for index in range(1, last):
                video, text = self._stage(index, video, text, skips, shared)
            if step_cache is not None:
                step_cache.keep(before, (video, text))
        return self._stage(last, video, text, skips, shared)[0]

    def _stage(self, index: int, video: Tensor, text: Tensor, skips: list, shared: tuple) -> tuple[Tensor, Tensor]:
        """Runs one stage; `skips` is the stack of outputs that the second half has not used yet."""
        condition, rope, keys, places, waiting, before_block = shared
        middle = len(self.transformer_blocks) // 2
        if index > middle and self.config.skip_connection:
            skip_video, skip_text = skips.pop()
            join = index - middle - 1
            video = self.skip_norm_linear[join](torch.cat((video, skip_video), dim=-1))
            text = self.skip_norm_linear_enc[join](torch.cat((text, skip_text), dim=-1))
        for depth, block in enumerate(self._blocks_of(index), start=sum(self.config.num_layers[:index]) + 1):
            before_block()
            whole = depth <= self.recompute_blocks and self.training
            feed_forward = depth <= self.recompute_feed_forwards
            real, dropped = keys[block.pattern], None if places is None else places.at(depth)
            with waiting.keeping(whole, depth, video, text):
                video, text = maybe_recompute(
                    whole, block, video, text, condition, rope, real, feed_forward, not whole, dropped
                )
        if index < middle and self.config.skip_connection:
            skips.append((video, text))
        return video, text

    def _rope_offset(self, draws: SampleDraws | None, extent: Grid) -> Grid:
        """First position per axis, in tokens: with explicit_uniform_rope, in training, anywhere within sample_size_*."""
        largest = self.config.largest_extent
        if draws is None or largest is None:
            return 0, 0, 0
        limits = [limit - size for limit, size in zip(largest, extent, strict=True)]
        if min(limits) < 0:
            raise ValueError(
                f"a latent of {extent[0]}x{extent[1]}x{extent[2]} tokens is larger than sample_size_t, _h, _w of the predictor"
            )
        t, h, w = draws.integers("rope", limits)
        return t, h, w

    def _dropout_places(
        self, draws: SampleDraws | None, tokens: int, columns: Tensor, device: torch.device
    ) -> Places | None:
        """Places of this forward pass; None without dropout."""
        rates = {"dropout": self.config.dropout, "adapter dropout": self.adapter_dropout}
        if not self.training or not any(rates.values()):
            return None
        if draws is None:
            raise ValueError(
                f"dropout {max(rates.values())} in training needs draws, its seeds of each sample; without dropout call eval()"
            )
        own, adapters = (
            sent(torch.tensor(draws.seeds(name)), device) if rate else None for name, rate in rates.items()
        )
        return Places.of(own, adapters, tokens, sent(columns, device), self.parallel)

    def keep_inputs_on_host(self, inputs: HostInputs) -> None:
        self._host_inputs = inputs

    def use_sage_attention(self, device: torch.device) -> None:
        sage.check(device, self.dtype, self.config.head_dim)
        for block in self.blocks():
            block.attn1.operator = sage.attend

    def units(self) -> list[nn.Module]:
        units: list[nn.Module] = []
        middle = len(self.transformer_blocks) // 2
        for index in range(len(self.transformer_blocks)):
            if index > middle and self.config.skip_connection:
                units += [self.skip_norm_linear[index - middle - 1], self.skip_norm_linear_enc[index - middle - 1]]
            units += self._blocks_of(index)
        return [*units, self.norm_final, self.norm_out, self.proj_out]

    def blocks(self) -> list[Block]:
        return [block for stage in range(len(self.transformer_blocks)) for block in self._blocks_of(stage)]

    def _blocks_of(self, stage: int) -> list[Block]:
        blocks: Any = self.transformer_blocks[stage]
        return list(blocks)

    def _check(self, latents: Tensor, sigma: Tensor, text: TextFeatures, keep: Tensor | None) -> tuple[int, int, int]:
        """Checks that shapes match; ValueError names them. Returns the grid of patches (t, h, w)."""
        config, shape = self.config, list(latents.shape)
        if latents.ndim != 5 or shape[1] != config.in_channels:
            raise ValueError(f"latents {shape}: need [B, {config.in_channels}, T, H, W]")
        batch, _, t, h, w = shape
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"latents {shape}: height and width must be multiples of patch_size {config.patch_size}")
        if list(sigma.shape) != [batch]:
            raise ValueError(f"sigma {list(sigma.shape)}: need [{batch}], one noise level per sample")
        widths = (config.caption_channels, config.pooled_projection_dim)
        pooled = None if text.pooled is None else list(text.pooled.shape)
        if text.sequence.shape[0] != batch or text.sequence.shape[2] != widths[0] or pooled != [batch, widths[1]]:
            raise ValueError(
                f"text features {list(text.sequence.shape)} and {pooled}: "
                f"need [{batch}, L, {widths[0]}] and [{batch}, {widths[1]}]"
            )
        if keep is not None and (keep.dtype != torch.bool or list(keep.shape) != [batch, t, h, w]):
            raise ValueError(f"keep: {keep.dtype} {list(keep.shape)}; need torch.bool {[batch, t, h, w]}")
        extent = (t, h // config.patch_size, w // config.patch_size)
        check_divisible(math.prod(extent), "video tokens", self.parallel)
        check_divisible(text.sequence.shape[1], "text tokens", self.parallel)
        return extent

    def _check_image(self, image: ImageFeatures | None, latents: Tensor) -> None:
        """Checks that an image condition fits the latents and the network."""
        if image is None:
            return
        channels = self.config.image_mask_channels
        if not channels:
            raise ValueError("an image condition: this network has no inputs for it (image_mask_channels 0)")
        batch, _, *grid = latents.shape
        found = list(image.latents.shape), list(image.mask.shape)
        if found != (list(latents.shape), [batch, channels, *grid]):
            raise ValueError(
                f"image condition: latents {found[0]} and mask {found[1]}; need {list(latents.shape)} and "
                f"{[batch, channels, *grid]}"
            )

    def partial_gradients(self) -> Iterator[nn.Parameter]:
        """Parameters whose gradients are partial on each TP rank, so that they must be summed.

        Norms of queries and keys process a rank's own heads. Under sequence parallel, layers between the split linears
        that are not split themselves process a rank's own tokens.
        """
        modules: list[nn.Module] = [norm for block in self.blocks() for norm in block.attn1.head_norms()]
        if self.parallel.sequence_parallel:
            modules += [self.norm_final, self.norm_out.norm]
            if self.config.skip_connection:
                modules += [self.skip_norm_linear, self.skip_norm_linear_enc]
            for block in self.blocks():
                modules += [block.norm1.norm, block.norm1.norm_enc, block.norm2.norm]
                modules += [] if block.norm2.norm_enc is None else [block.norm2.norm_enc]
                yield block.attn1.to_out[0].get_parameter("bias")
                if block.attn1.to_add_out is not None:
                    yield block.attn1.to_add_out.get_parameter("bias")
        for module in modules:
            yield from module.parameters()

    def draw_weight(self, name: str, full: Tensor, generator: torch.Generator) -> None:
        """The original's initial values of one whole parameter."""
        module_name, _, kind = name.rpartition(".")
        if name.startswith("image_embed"):
            full.zero_()
        elif name.startswith("skip_norm_linear") and self.config.skip_connection_zero_init:
            full.zero_()  # [identity | 0]: initially a skip changes nothing
            if kind == "weight":
                full[:, : full.shape[0]].fill_diagonal_(1.0)
        else:
            super().draw_weight(name, full, generator)


def _stage(config: SparseUMMDiTConfig, parallel: ParallelContext, stage: int) -> nn.ModuleList:
    count, sparsity = config.num_layers[stage], config.sparsities[stage]
    is_last_stage = stage == len(config.num_layers) - 1
    return nn.ModuleList(
        Block(
            config,
            parallel,
            sparsity,
            group=sparsity > 1 and index % 2 == 1,
            last=is_last_stage and index == count - 1,
        )
        for index in range(count)
    )
