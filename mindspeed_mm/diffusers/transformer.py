"""SparseUMMDiT as a diffusers model: the blocks of `models/sparse_ummdit/` and the published names, in plain torch.

Its forward pass is one graph for torch.compile: nothing in it depends on values of tensors. So the caller removes
padding of the text, as `OpenSoraPlanPipeline` does. Dropout of the config is not applied.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CacheMixin, FasterCacheConfig, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from mindspeed_mm.diffusers.settings import checked, takes
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.models.sparse_ummdit.attention import JointAttention
from mindspeed_mm.models.sparse_ummdit.block import Block, skip_join
from mindspeed_mm.models.sparse_ummdit.dropout import Places
from mindspeed_mm.models.sparse_ummdit.embeddings import PatchEmbed, TimeTextEmbed, unpatchify
from mindspeed_mm.models.sparse_ummdit.masks import key_mask
from mindspeed_mm.models.sparse_ummdit.modulation import FinalNorm
from mindspeed_mm.models.sparse_ummdit.norms import NORMS
from mindspeed_mm.ops import rope3d
from mindspeed_mm.ops.attention import RealKeys, attend, with_some
from mindspeed_mm.ops.skiparse import padding
from mindspeed_mm.parallel.alone import Alone


class JointAttentionProcessor:
    """Attention over the joined parts of video and text, by the backend that diffusers' dispatch is set to."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys | None) -> Tensor:
        """See `ops.attention.attend`. An NPU without a chosen backend takes the fused operator there."""
        if self._attention_backend is None and q.device.type == "npu":
            return attend(q, k, v, keys)
        mask = None if keys is None else keys.keep[:, None, None, :]
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        backend, parallel = self._attention_backend, self._parallel_config
        out = dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend, parallel_config=parallel)
        return out.transpose(0, 1)


class DispatchedAttention(JointAttention, AttentionModuleMixin):
    """`JointAttention` whose operator is its processor.

    Batch first at its border, [B,S,D] and [B,L,D], and one tensor instead of a pair without a text: there diffusers'
    caches look at it.
    """

    _default_processor_cls = JointAttentionProcessor
    _available_processors = [JointAttentionProcessor]
    _supports_qkv_fusion = False  # names of parameters are the published ones

    def __init__(self, config: SparseUMMDiTConfig, parallel: Alone, sparsity: int, group: bool, *, text_output: bool):
        super().__init__(config, parallel, sparsity, group, text_output=text_output)
        self.processor = JointAttentionProcessor()

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: RealKeys | None,
        places: Places | None = None,
    ) -> Any:
        out, text_out = super().forward(video.transpose(0, 1), text.transpose(0, 1), rope, keys, places)
        return out.transpose(0, 1) if text_out is None else (out.transpose(0, 1), text_out.transpose(0, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: RealKeys | None) -> Tensor:
        return self.processor(q, k, v, keys)


class SparseUMMDiTBlock(Block):
    """`Block` with diffusers' attention."""

    attention = DispatchedAttention

    def attended(
        self,
        video: Tensor,
        text: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: RealKeys | None,
        places: Places | None,
    ) -> tuple[Tensor, Tensor | None]:
        found = self.attn1(video.transpose(0, 1), text.transpose(0, 1), rope, keys, places)
        out, text_out = found if isinstance(found, tuple) else (found, None)
        return out.transpose(0, 1), None if text_out is None else text_out.transpose(0, 1)


class SparseUMMDiTStage(nn.ModuleList):
    """The blocks of one stage. For diffusers' caches it is one transformer block, as for `--step-cache`."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any  # set by `enable_gradient_checkpointing`

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        shared: tuple,
        joins: tuple[nn.Module, nn.Module] | None = None,
        skips: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video [S,B,D] and text [L,B,D] through the stage.

        shared: condition, rope and real keys. joins, skips: in the second half, how the stage takes the output of its
        mirror stage, and that output.
        """
        video, text = hidden_states, encoder_hidden_states
        condition, rope, keys = shared
        if joins is not None and skips is not None:
            video = joins[0](torch.cat((video, skips[0]), dim=-1))
            text = joins[1](torch.cat((text, skips[1]), dim=-1))
        for block in self:
            inputs = (video, text, condition, rope, keys[block.pattern])
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video, text = self._gradient_checkpointing_func(block, *inputs, False, False)
            else:
                video, text = block(*inputs, lean=torch.is_grad_enabled())
        return video, text


class RotaryTables(nn.Module):
    """`rope3d.tables` as a module, so that `_cp_plan` can give each rank the rows of its tokens."""

    def __init__(self, config: SparseUMMDiTConfig):
        super().__init__()
        self.head_dim, self.scale = config.head_dim, config.interpolation_scale

    def forward(self, extent: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        return rope3d.tables(extent, self.head_dim, self.scale, device=device)


_TOKENS = ContextParallelInput(split_dim=0, expected_dims=3)
_ROPE = ContextParallelInput(split_dim=0, expected_dims=4, split_output=True)


class SparseUMMDiTTransformer3DModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """The denoiser of Open-Sora Plan v1.5. Its settings are the fields of `SparseUMMDiTConfig`."""

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SparseUMMDiTBlock", "Sequential"]
    _repeated_blocks = ["SparseUMMDiTBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "image_embed", "time_text_embed", "norm"]
    # Each rank has a chunk of the video and of the text. A chunk of whole k x k blocks has the same Skiparse parts as the
    # whole video (`ops/skiparse.py`), so the ranks exchange only heads, inside attention.
    _cp_plan = {
        "rope": {0: _ROPE, 1: _ROPE},
        "transformer_blocks.0": {"hidden_states": _TOKENS, "encoder_hidden_states": _TOKENS},
        "proj_out": ContextParallelOutput(gather_dim=0, expected_dims=3),
    }

    @register_to_config
    @takes(SparseUMMDiTConfig, without=("model_id", "from_pretrained"))
    def __init__(self, **settings: Any):
        super().__init__()
        config = checked(SparseUMMDiTConfig, settings)
        alone, width = Alone(), config.hidden_size
        self.settings = config
        self.patch_embed = PatchEmbed(config.in_channels, width, config.patch_size)
        self.image_embed = None
        if config.image_channels:
            self.image_embed = PatchEmbed(config.image_channels, width, config.patch_size, bias=False)
        self.time_text_embed = TimeTextEmbed(config.timestep_embed_dim, config.pooled_projection_dim)
        self.caption_projection = nn.Linear(config.caption_channels, width)
        self.rope = RotaryTables(config)
        self.transformer_blocks = nn.ModuleList(_stage(config, alone, stage) for stage in range(len(config.num_layers)))
        if config.skip_connection:
            second_half = range(len(config.num_layers) // 2)
            self.skip_norm_linear = nn.ModuleList(skip_join(config) for _ in second_half)
            self.skip_norm_linear_enc = nn.ModuleList(skip_join(config) for _ in second_half)
        self.norm_final = NORMS[config.norm_cls](width, config.norm_eps)
        self.norm_out = FinalNorm(width, config.timestep_embed_dim, config.norm_cls, config.norm_eps, alone)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.velocity_channels)
        self.gradient_checkpointing = False

    def enable_cache(self, config: Any) -> None:
        """See `CacheMixin`. FasterCache also needs to know that pooled text and images have both halves of guidance."""
        if isinstance(config, FasterCacheConfig):
            known = config._unconditional_conditional_input_kwargs_identifiers
            config._unconditional_conditional_input_kwargs_identifiers = [
                *known,
                "pooled_projections",
                "image_condition",
            ]
        super().enable_cache(config)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        encoder_attention_mask: Tensor | None = None,
        image_condition: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity [B,C,T,H,W] at noisy latents [B,C,T,H,W], noise - clean.

        timestep: [B], 1000 times the noise level in [0, 1]. encoder_hidden_states: [B,L,D] of T5, with
        encoder_attention_mask [B,L], nonzero at real tokens (None: all). pooled_projections: [B,P] of CLIP.
        image_condition: [B,C+M,T,H,W], latents of what is known of the video and the mask of it (`models/image_conditions.py`),
        for a network with image_mask_channels M.
        """
        config = self.settings
        extent = self._extent(hidden_states)
        condition = F.silu(self.time_text_embed(timestep.float() / 1000, pooled_projections))
        video = self.patch_embed(hidden_states)
        if image_condition is not None:
            if self.image_embed is None:
                raise ValueError("image_condition: this network has no inputs for it (image_mask_channels 0)")
            video = video + self.image_embed(image_condition)
        sequence, keep = self._divisible(math.prod(extent), encoder_hidden_states, encoder_attention_mask)
        text = self.caption_projection(sequence).transpose(0, 1).contiguous()
        rope = self.rope(extent, hidden_states.device)
        keys = self._keys(math.prod(extent), sequence, keep)
        video = self._stages(video, text, (condition, rope, keys))
        video = self.proj_out(self.norm_out(self.norm_final(video), condition))
        sample = unpatchify(video, extent, config.patch_size, config.velocity_channels)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _stages(self, video: Tensor, text: Tensor, shared: tuple) -> Tensor:
        """Runs the U: stages of the first half push their outputs, those of the second half pop them."""
        kept: list[tuple[Tensor, Tensor]] = []
        middle = len(self.transformer_blocks) // 2
        for index, stage in enumerate(self.transformer_blocks):
            joins, skips = None, None
            if index > middle and self.settings.skip_connection:
                join = index - middle - 1
                joins, skips = (self.skip_norm_linear[join], self.skip_norm_linear_enc[join]), kept.pop()
            video, text = stage(video, text, shared, joins, skips)
            if index < middle and self.settings.skip_connection:
                kept.append((video, text))
        return video

    def _extent(self, latents: Tensor) -> tuple[int, int, int]:
        """Grid of video tokens. Raises ValueError for latents that do not fit."""
        config = self.settings
        if latents.ndim != 5 or latents.shape[1] != config.in_channels:
            raise ValueError(f"hidden_states {list(latents.shape)}: need [B,{config.in_channels},T,H,W]")
        t, h, w = latents.shape[2:]
        if h % config.patch_size or w % config.patch_size:
            raise ValueError(f"hidden_states of {h}x{w}: height and width must be multiples of {config.patch_size}")
        return t, h // config.patch_size, w // config.patch_size

    @property
    def _ranks(self) -> int:
        """Number of ranks that share a video (`enable_parallelism`)."""
        parallel = getattr(self, "_parallel_config", None)
        context = None if parallel is None else parallel.context_parallel_config
        return 1 if context is None else context.ring_degree * context.ulysses_degree

    def _divisible(self, tokens: int, text: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Text and mask, padded so that the ranks divide it. Raises ValueError if they cannot divide the video."""
        ranks = self._ranks
        unit = ranks * max(self.settings.sparsities) ** 2
        if ranks > 1 and tokens % unit:
            raise ValueError(
                f"{tokens} video tokens on {ranks} ranks: their number must be a multiple of {unit} (ranks x largest sparsity "
                "squared); use another size or fewer ranks"
            )
        extra = -text.shape[1] % ranks
        if not extra:
            return text, keep
        keep = text.new_ones(text.shape[:2], dtype=torch.bool) if keep is None else keep.bool()
        return F.pad(text, (0, 0, 0, extra)), F.pad(keep, (0, extra))

    def _keys(self, tokens: int, text: Tensor, keep: Tensor | None) -> dict[tuple[int, bool], RealKeys | None]:
        """The real keys of each pattern (`keys_of`), by the shapes alone; None where all are real."""
        stages: Any = self.transformer_blocks
        patterns = dict.fromkeys(block.pattern for stage in stages for block in stage)
        real = text.new_ones(text.shape[:2], dtype=torch.bool) if keep is None else keep.bool()
        video = text.new_ones((text.shape[0], tokens), dtype=torch.bool)
        return {
            pattern: None
            if keep is None and padding(tokens, pattern[0]) == 0
            else RealKeys(with_some(_by_rank(key_mask(pattern, video, real), text.shape[1], self._ranks)))
            for pattern in patterns
        }


def _by_rank(keep: Tensor, text_tokens: int, ranks: int) -> Tensor:
    """A mask of video and text [N, S + L] in the order in which ranks gather keys: each rank's video, then its text."""
    if ranks == 1:
        return keep
    video, text = keep[:, :-text_tokens], keep[:, -text_tokens:]
    return torch.cat((video.unflatten(1, (ranks, -1)), text.unflatten(1, (ranks, -1))), dim=2).flatten(1)


def _stage(config: SparseUMMDiTConfig, parallel: Alone, stage: int) -> SparseUMMDiTStage:
    count, sparsity = config.num_layers[stage], config.sparsities[stage]
    is_last_stage = stage == len(config.num_layers) - 1
    return SparseUMMDiTStage(
        SparseUMMDiTBlock(
            config,
            parallel,
            sparsity,
            group=sparsity > 1 and index % 2 == 1,
            last=is_last_stage and index == count - 1,
        )
        for index in range(count)
    )


TransformerBlockRegistry.register(
    SparseUMMDiTStage,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
)
