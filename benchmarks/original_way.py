"""The denoiser as the original runs it, for comparison: the same weights and the same numbers.

Written from the v1.5 report and from the original's behaviour: video padded to a multiple of k^2, the text repeated k
times in memory, a dense bool mask [k*B,1,S'/k+L,S'/k+L] per Skiparse pattern, all text tokens computed whether real or not,
every elementwise step an operator of its own, in fp32, whatever the dtype of weights and tokens. On one rank, in training
or evaluation.

`one_row` lends it an attention kernel that reads one row of the mask for all queries, [k*B,1,1,S'/k+L]: all rows are the same. It is
the fairest bound for what the original could reach with a better kernel and no other change.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindspeed_mm.models.sparse_ummdit.block import Block
from mindspeed_mm.models.sparse_ummdit.embeddings import unpatchify
from mindspeed_mm.models.sparse_ummdit.masks import patch_keep
from mindspeed_mm.models.sparse_ummdit.model import SparseUMMDiT
from mindspeed_mm.ops import rope3d
from mindspeed_mm.types import TextFeatures


class OriginalWay(nn.Module):
    """Runs a network's weights in the original's way; call it like the network."""

    def __init__(self, network: SparseUMMDiT, one_row: bool = False):
        super().__init__()
        self.network = network
        self._mask = _mask_row if one_row else _dense_mask

    def forward(self, latents: Tensor, sigma: Tensor, text: TextFeatures, keep: Tensor | None = None) -> Tensor:
        network, config = self.network, self.network.config
        patch = config.patch_size
        extent = (latents.shape[2], latents.shape[3] // patch, latents.shape[4] // patch)
        condition = network.time_text_embed(sigma, text.pooled)
        video = network.patch_embed(latents)
        words = network.caption_projection(text.sequence).transpose(0, 1)
        rope = rope3d.tables(extent, config.head_dim, config.interpolation_scale, device=latents.device)
        if keep is None:
            keep = torch.ones_like(latents[:, 0], dtype=torch.bool)
        real = patch_keep(keep, patch)
        masks = {pattern: self._mask(real, text.keep, *pattern) for pattern in {b.pattern for b in network.blocks()}}
        middle, skips = len(network.transformer_blocks) // 2, []
        for index, stage in enumerate(network.transformer_blocks):
            if index > middle and config.skip_connection:
                skip_video, skip_words = skips.pop()
                video = network.skip_norm_linear[index - middle - 1](torch.cat((video, skip_video), dim=-1))
                words = network.skip_norm_linear_enc[index - middle - 1](torch.cat((words, skip_words), dim=-1))
            for block in stage:
                video, words = _block(block, video, words, condition, rope, masks[block.pattern])
            if index < middle and config.skip_connection:
                skips.append((video, words))
        shift, scale = _modulation(network.norm_out, condition, 2)
        video = _modulated(network.norm_out.norm, _layer_norm(network.norm_final, video), scale, shift)
        return unpatchify(network.proj_out(video), extent, patch, config.velocity_channels)


def _block(block: Block, video: Tensor, text: Tensor, condition: Tensor, rope, mask: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale, gate, text_shift, text_scale, text_gate = _modulation(block.norm1, condition, 6)
    video_in = _modulated(block.norm1.norm, video, scale, shift)
    text_in = _modulated(block.norm1.norm_enc, text, text_scale, text_shift)
    video_out, text_out = _attention(block.attn1, video_in, text_in, rope, mask)
    video = _gated(video, gate, video_out)
    text = _gated(text, text_gate, text_out) if text_out is not None else text
    shift, scale, gate, text_shift, text_scale, text_gate = _modulation(block.norm2, condition, 6)
    video = _gated(video, gate, _feed_forward(block.ff, _modulated(block.norm2.norm, video, scale, shift)))
    if block.ff_enc is not None:
        text_in = _modulated(block.norm2.norm_enc, text, text_scale, text_shift)
        text = _gated(text, text_gate, _feed_forward(block.ff_enc, text_in))
    return video, text


def _attention(attention, video: Tensor, text: Tensor, rope, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    k, group, (tokens, batch, _) = attention.sparsity, attention.group, video.shape

    def heads(layer, x):
        return F.linear(x, *_weights(layer)).unflatten(2, (-1, attention.head_dim))

    def joint(x, words):
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -tokens % (k * k)))
        if group:
            x = x.unflatten(0, (-1, k, k)).transpose(1, 2).flatten(0, 1).contiguous()
            x = x.reshape(-1, k * batch, *x.shape[-2:])
        else:
            x = x.reshape(-1, k * batch, *x.shape[-2:])
        return torch.cat((x, words.repeat(1, k, 1, 1)))

    q = _rotate(_rms_norm(attention.norm_q, heads(attention.to_q, video)), *rope)
    key = _rotate(_rms_norm(attention.norm_k, heads(attention.to_k, video)), *rope)
    q = joint(q, _rms_norm(attention.norm_added_q, heads(attention.add_q_proj, text)))
    key = joint(key, _rms_norm(attention.norm_added_k, heads(attention.add_k_proj, text)))
    value = joint(heads(attention.to_v, video), heads(attention.add_v_proj, text))
    out = F.scaled_dot_product_attention(*(x.permute(1, 2, 0, 3) for x in (q, key, value)), attn_mask=mask)
    out = out.permute(2, 0, 1, 3).flatten(2)
    parts = out.shape[0] - text.shape[0]
    words = out[parts:].unflatten(1, (k, -1)).mean(1)
    out = out[:parts]
    if group:
        out = out.unflatten(0, (-1, k)).unflatten(2, (k, -1)).transpose(1, 2)
    out = out.reshape(parts * k, batch, -1)[:tokens]
    video = F.linear(out, *_weights(attention.to_out[0]))
    return video, None if attention.to_add_out is None else F.linear(words, *_weights(attention.to_add_out))


def _dense_mask(video: Tensor, text: Tensor, k: int, group: bool) -> Tensor:
    """True where a query sees a key, [k*B,1,T,T] with T = S'/k + L: in memory, as the original hands it to its kernel."""
    row = _mask_row(video, text, k, group)
    return row.expand(-1, 1, row.shape[3], -1).contiguous()


def _mask_row(video: Tensor, text: Tensor, k: int, group: bool) -> Tensor:
    """True where every query sees a key, [k*B,1,1,T]."""
    batch = video.shape[0]
    video = F.pad(video, (0, -video.shape[1] % (k * k)))
    if group:
        parts = video.unflatten(1, (-1, k, k)).permute(2, 0, 1, 3).reshape(k * batch, -1)
    else:
        parts = video.unflatten(1, (-1, k)).permute(2, 0, 1).reshape(k * batch, -1)
    return torch.cat((parts, text.repeat(k, 1)), dim=1)[:, None, None, :]


def _modulation(norm, condition: Tensor, parts: int) -> tuple[Tensor, ...]:
    weight, bias = _weights(norm.linear)
    return F.linear(F.silu(condition), weight.float(), bias.float()).chunk(parts, dim=1)


def _modulated(norm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (_layer_norm(norm, x).float() * (1 + scale) + shift).to(x.dtype)


def _gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    return (x.float() + gate * update.float()).to(x.dtype)


def _feed_forward(feed_forward, x: Tensor) -> Tensor:
    hidden = F.linear(x, feed_forward.net[0].proj.weight)
    hidden = F.gelu(hidden.float(), approximate=feed_forward.net[0].approximate).to(x.dtype)
    return F.linear(hidden, feed_forward.net[2].weight)


def _layer_norm(norm, x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)


def _rms_norm(norm, x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)).to(x.dtype) * norm.weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide, parts = x.float(), []
    for part in wide.split(rope3d.axis_dims(x.shape[-1]), dim=-1):
        first, second = part.chunk(2, dim=-1)
        parts.append(torch.cat((-second, first), dim=-1))
    return (wide * cos + torch.cat(parts, dim=-1) * sin).to(x.dtype)


def _weights(layer) -> tuple[Tensor, Tensor | None]:
    return layer.weight, layer.bias
