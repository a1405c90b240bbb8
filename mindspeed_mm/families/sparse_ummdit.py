"""SparseUMMDiT of Open-Sora Plan v1.5 without tensors, by its own names ("OSP"); a test holds it equal to `models/sparse_ummdit/`."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from mindspeed_mm.families import sparse_ummdit_costs as costs
from mindspeed_mm.families import sparse_ummdit_work as work
from mindspeed_mm.families.base import (
    DenoiserFamily,
    Dialect,
    Grid,
    Parameter,
    Renaming,
    Shape,
    TextWidths,
    Unused,
    with_values,
)
from mindspeed_mm.schema import Node, option


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SparseUMMDiTConfig:
    """`predictor`: SparseUMMDiT, the U-shaped sparse multimodal DiT of the v1.5 report, section 3."""

    model_id: str = option("SparseUMMDiT", choices=("SparseUMMDiT",))
    # blocks per stage; an odd number of stages, even numbers of blocks
    num_layers: tuple[int, ...] = option((2, 4, 8, 4, 2), at_least=2, at_most=1024)
    sparse_n: tuple[int, ...] = option((1, 4, 16, 4, 1), at_least=1, at_most=4096)  # Skiparse sparsity k per stage
    sparse1d: bool = False  # false: dense attention, `sparse_n` is ignored
    double_ff: bool = False  # true: the text has its own feed-forward layer
    num_heads: int = option(16, at_least=1, at_most=4096)
    head_dim: int = option(88, at_least=16, at_most=4096)  # a multiple of 16: RoPE splits it 4:6:6 over t, h, w
    in_channels: int = option(at_least=1, at_most=2**20)
    out_channels: int | None = option(None, at_least=1, at_most=2**20)  # None: in_channels
    image_mask_channels: int = option(0, at_least=0, at_most=64)  # frames of a latent, 8 in v1.5; 0: takes no images
    patch_size: int = option(2, at_least=1, at_most=64)
    patch_size_t: int = option(1, at_least=1, at_most=64)
    timestep_embed_dim: int = option(512, at_least=2, at_most=2**20)
    caption_channels: int = option(at_least=1, at_most=2**20)  # width of the T5 features
    pooled_projection_dim: int = option(1024, at_least=1, at_most=2**20)  # width of the pooled CLIP features
    skip_connection: bool = False  # long skips from the first half of the stages to the second
    skip_connection_zero_init: bool = True  # skips start as the identity, without a norm
    attention_bias: bool = True
    activation_fn: str = option("gelu-approximate", choices=("gelu", "gelu-approximate"))
    dropout: float = option(0.0, at_least=0, below=1)
    norm_cls: str = option("layer_norm", choices=("layer_norm", "rms_norm"))
    norm_eps: float = option(1e-6, at_least=0, at_most=1)
    interpolation_scale_t: float = option(1.0, above=0, at_most=1e6)  # RoPE positions are divided by these
    interpolation_scale_h: float = option(1.0, above=0, at_most=1e6)
    interpolation_scale_w: float = option(1.0, above=0, at_most=1e6)
    explicit_uniform_rope: bool = False  # training draws a RoPE offset so that all of sample_size_* is seen
    # largest extents in tokens, for explicit_uniform_rope
    sample_size_t: int | None = option(None, at_least=1, at_most=2**20)
    sample_size_h: int | None = option(None, at_least=1, at_most=2**20)
    sample_size_w: int | None = option(None, at_least=1, at_most=2**20)
    from_pretrained: str | None = None

    ACCEPTED: ClassVar[dict[str, str]] = {
        "norm_elementwise_affine": "norms are always affine, as in the original, which ignores this key",
        "dtype": "the precision is set by weight_dtype and by --bf16 or --fp16",
    }

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def sparsities(self) -> tuple[int, ...]:
        """Sparsity per stage; all ones for a dense model."""
        return self.sparse_n if self.sparse1d else (1,) * len(self.num_layers)

    @property
    def velocity_channels(self) -> int:
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def image_channels(self) -> int:
        """Channels of the image condition: latents of the known pixels and their mask; 0 without."""
        return self.in_channels + self.image_mask_channels if self.image_mask_channels else 0

    @property
    def interpolation_scale(self) -> tuple[float, float, float]:
        return self.interpolation_scale_t, self.interpolation_scale_h, self.interpolation_scale_w

    @property
    def largest_extent(self) -> Grid | None:
        """Grid of tokens within which explicit_uniform_rope draws its offsets; None without it."""
        t, h, w = self.sample_size_t, self.sample_size_h, self.sample_size_w
        if not self.explicit_uniform_rope or t is None or h is None or w is None:
            return None
        return t, h, w

    def problems(self):
        stages = len(self.num_layers)
        if stages < 3 or stages % 2 == 0:
            # The original ran a single stage twice, as the middle and as the decoder.
            yield (
                "num_layers",
                f"{list(self.num_layers)} has {stages} stages; a U shape needs an odd number, at least 3",
            )
        if any(n % 2 for n in self.num_layers):
            yield (
                "num_layers",
                f"{list(self.num_layers)}: each stage needs an even number of blocks (single, then group skip)",
            )
        if len(self.sparse_n) != stages:
            yield (
                "sparse_n",
                f"{list(self.sparse_n)} has {len(self.sparse_n)} entries for {stages} stages of num_layers",
            )
        if self.head_dim % 16:
            yield "head_dim", f"{self.head_dim} is not a multiple of 16 (RoPE splits it 4:6:6 over t, h, w)"
        if self.patch_size_t != 1:
            yield "patch_size_t", f"{self.patch_size_t}: the original runs with 1 only"
        if self.timestep_embed_dim % 2:
            yield "timestep_embed_dim", f"{self.timestep_embed_dim}: must be even (sines and cosines)"
        if self.explicit_uniform_rope and None in (self.sample_size_t, self.sample_size_h, self.sample_size_w):
            yield "explicit_uniform_rope", "needs sample_size_t, sample_size_h and sample_size_w, in tokens"


_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(\d+)\.")
_NUMBERS = re.compile(r"^(transformer_blocks|skip_norm_linear(?:_enc)?)\.(\d+)(?:\.(\d+)(?=\.[a-z]))?")

# The original's last block owns a text tail when it ran with TP > 1. Its output is never used, and we do not build it.
TEXT_TAIL = {
    "attn1.to_add_out.weight": 0.0,
    "attn1.to_add_out.bias": 0.0,
    "norm2.norm_enc.weight": 1.0,
    "norm2.norm_enc.bias": 0.0,
    "ff_enc.net.0.proj.weight": 0.0,
    "ff_enc.net.2.weight": 0.0,
}


def parameters(config: SparseUMMDiTConfig) -> dict[str, Parameter]:
    """Every parameter by name, in the network's order."""
    return dict(_parameters(config))


def _parameters(config: SparseUMMDiTConfig) -> Iterator[tuple[str, Parameter]]:
    width, condition, patch = config.hidden_size, config.timestep_embed_dim, config.patch_size
    yield from _linear("patch_embed.proj", "embedding", (width, config.in_channels, patch, patch))
    if config.image_channels:
        yield from _linear("image_embed.proj", "embedding", (width, config.image_channels, patch, patch), bias=False)
    yield from _linear("time_text_embed.timestep_embedder.linear_1", "embedding", (condition, condition))
    yield from _linear("time_text_embed.timestep_embedder.linear_2", "embedding", (condition, condition))
    yield from _linear("time_text_embed.text_embedder.linear_1", "embedding", (condition, config.pooled_projection_dim))
    yield from _linear("time_text_embed.text_embedder.linear_2", "embedding", (condition, condition))
    yield from _linear("caption_projection", "text", (width, config.caption_channels))
    last = (len(config.num_layers) - 1, config.num_layers[-1] - 1)
    for stage, count in enumerate(config.num_layers):
        for index in range(count):
            yield from _block(f"transformer_blocks.{stage}.{index}", config, (stage, index) == last)
    if config.skip_connection:
        for stream in ("skip_norm_linear", "skip_norm_linear_enc"):
            for join in range(len(config.num_layers) // 2):
                if not config.skip_connection_zero_init:
                    yield from _norm(f"{stream}.{join}.0", config, 2 * width)
                yield from _linear(f"{stream}.{join}.1", "skip", (width, 2 * width))
    yield from _norm("norm_final", config, width)
    yield from _linear("norm_out.linear", "modulation", (2 * width, condition), 0)
    yield from _norm("norm_out.norm", config, width)
    yield from _linear("proj_out", "output", (patch**2 * config.velocity_channels, width))


def _block(prefix: str, config: SparseUMMDiTConfig, last: bool) -> Iterator[tuple[str, Parameter]]:
    width, bias = config.hidden_size, config.attention_bias
    text_path = config.double_ff and not last
    yield from _modulation(f"{prefix}.norm1", config, with_text=True)
    head = Parameter((config.head_dim,), None, "attention")
    yield f"{prefix}.attn1.norm_q.weight", head
    yield f"{prefix}.attn1.norm_k.weight", head
    for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj"):
        yield from _linear(f"{prefix}.attn1.{name}", "attention", (width, width), 0, bias=bias)
    yield from _linear(f"{prefix}.attn1.to_out.0", "attention", (width, width), 1)
    if not last:
        yield from _linear(f"{prefix}.attn1.to_add_out", "attention", (width, width), 1)
    yield f"{prefix}.attn1.norm_added_q.weight", head
    yield f"{prefix}.attn1.norm_added_k.weight", head
    yield from _modulation(f"{prefix}.norm2", config, with_text=text_path)
    for name in ("ff", "ff_enc") if text_path else ("ff",):
        yield from _linear(f"{prefix}.{name}.net.0.proj", "feed_forward", (4 * width, width), 0, bias=False)
        yield from _linear(f"{prefix}.{name}.net.2", "feed_forward", (width, 4 * width), 1, bias=False)


def _modulation(prefix: str, config: SparseUMMDiTConfig, with_text: bool) -> Iterator[tuple[str, Parameter]]:
    width = config.hidden_size
    yield from _linear(f"{prefix}.linear", "modulation", (6 * width, config.timestep_embed_dim), 0)
    yield from _norm(f"{prefix}.norm", config, width)
    if with_text:
        yield from _norm(f"{prefix}.norm_enc", config, width)


def _linear(prefix: str, kind: str, shape: Shape, dim: int | None = None, bias: bool = True):
    """Weight and bias; a bias is split with the rows of its weight."""
    yield f"{prefix}.weight", Parameter(shape, dim, kind)
    if bias:
        yield f"{prefix}.bias", Parameter(shape[:1], 0 if dim == 0 else None, kind)


def _norm(prefix: str, config: SparseUMMDiTConfig, width: int):
    yield f"{prefix}.weight", Parameter((width,), None, "norm")
    if config.norm_cls == "layer_norm":
        yield f"{prefix}.bias", Parameter((width,), None, "norm")


def split(name: str) -> int | None:
    """The dimension of a parameter that is split over TP, in a denoiser of any size. KeyError for an unknown name."""
    return _SPLIT[_pattern(name)]


def _pattern(name: str) -> str:
    """A name without the numbers of its block or skip."""
    return _NUMBERS.sub(lambda match: match[1] + ".*" * (1 + (match[1] == "transformer_blocks")), name)


# A small network with a parameter of every kind.
_SMALL = SparseUMMDiTConfig(
    num_layers=(2, 2, 2),
    sparse_n=(1, 1, 1),
    double_ff=True,
    skip_connection=True,
    skip_connection_zero_init=False,
    num_heads=1,
    head_dim=16,
    in_channels=1,
    image_mask_channels=1,
    caption_channels=1,
)
_SPLIT = {_pattern(name): parameter.dim for name, parameter in parameters(_SMALL).items()}

# ------------------------------------------------------------------------------------------------------------- dialects

_MM = {
    f"transformer_blocks.*.*.attn1.{ours}.*": f"transformer_blocks.*.*.attn1.{theirs}.*"
    for ours, theirs in {
        "norm_q": "norm_proj_q",
        "norm_k": "norm_proj_k",
        "to_q": "proj_q",
        "to_k": "proj_k",
        "to_v": "proj_v",
        "add_q_proj": "added_proj_q",
        "add_k_proj": "added_proj_k",
        "add_v_proj": "added_proj_v",
        "to_out.0": "proj_out",
        "to_add_out": "added_proj_out",
        "norm_added_q": "norm_added_proj_q",
        "norm_added_k": "norm_added_proj_k",
    }.items()
}


def text_tail(names: Iterable[str]) -> dict[str, Unused]:
    """The text tail of the last block among a denoiser's names. All blocks have the same widths."""
    blocks = [(int(match[1]), int(match[2])) for name in names if (match := _BLOCK.match(name))]
    if not blocks:
        return {}
    prefix = "transformer_blocks.{}.{}".format(*max(blocks))
    return {f"{prefix}.{name}": Unused(f"transformer_blocks.0.0.{name}", value) for name, value in TEXT_TAIL.items()}


# ----------------------------------------------------------------------------------------------- what weights say of it


def part_of(name: str) -> str:
    """A stage of blocks, or the top module."""
    match = re.match(r"transformer_blocks\.\d+", name)
    return match[0] if match else name.partition(".")[0]


def describe(names: Iterable[str], shape_of: Callable[[str], Shape]) -> dict[str, object]:
    """Keys of the `predictor` block that follow from names and shapes, with their values.

    Some, such as the sparsities, leave no trace. Empty for weights of another network.
    """
    names = set(names)
    needed = {"patch_embed.proj.weight", "caption_projection.weight", "proj_out.weight", "norm_final.weight"}
    head_norm, image = "transformer_blocks.0.0.attn1.norm_q.weight", "image_embed.proj.weight"
    pooled, condition = "time_text_embed.text_embedder.linear_1.weight", "norm_out.linear.weight"
    if not {*needed, head_norm, pooled, condition} <= names:
        return {}
    width, channels, patch, _ = shape_of("patch_embed.proj.weight")
    head_dim = shape_of(head_norm)[0]
    found = {
        "num_layers": _blocks(names),
        "num_heads": width // head_dim,
        "head_dim": head_dim,
        "in_channels": channels,
        "image_mask_channels": shape_of(image)[1] - channels if image in names else 0,
        "out_channels": shape_of("proj_out.weight")[0] // patch**2,
        "patch_size": patch,
        "caption_channels": shape_of("caption_projection.weight")[1],
        "pooled_projection_dim": shape_of(pooled)[1],
        "timestep_embed_dim": shape_of(condition)[1],
        "double_ff": "transformer_blocks.0.0.ff_enc.net.2.weight" in names,
        "skip_connection": "skip_norm_linear.0.1.weight" in names,
        "attention_bias": "transformer_blocks.0.0.attn1.to_q.bias" in names,
        "norm_cls": "layer_norm" if "norm_final.bias" in names else "rms_norm",
    }
    if found["skip_connection"]:
        found["skip_connection_zero_init"] = "skip_norm_linear.0.0.weight" not in names
    return found


def _blocks(names: set[str]) -> tuple[int, ...]:
    """Blocks per stage."""
    found = {(int(match[1]), int(match[2])) for name in names if (match := _BLOCK.match(name))}
    return tuple(sum(stage == index for stage, _ in found) for index in range(1 + max(stage for stage, _ in found)))


# ----------------------------------------------------------------------------------------------------------- arithmetic


def extent(config: SparseUMMDiTConfig, latent: tuple[int, int, int]) -> tuple[int, int, int]:
    """Grid of video tokens (t, h, w) for a latent with t frames of h x w."""
    t, h, w = latent
    return t, h // config.patch_size, w // config.patch_size


def channel_problems(config: SparseUMMDiTConfig, latent: int) -> Iterator[tuple[str, str]]:
    """Input and output have the channels of the latent."""
    if config.in_channels != latent:
        yield "in_channels", f"{config.in_channels}, but ae.latent_dim is {latent}"
    if config.velocity_channels != latent:
        yield "out_channels", f"{config.velocity_channels}, but ae.latent_dim is {latent}"


def text_widths(config: SparseUMMDiTConfig) -> TextWidths:
    """T5's sequence and CLIP's pooled vector."""
    return {
        "text_encoder": ("caption_channels", config.caption_channels),
        "text_encoder_2": ("pooled_projection_dim", config.pooled_projection_dim),
    }


def published(node: Node) -> Node:
    """Rewrites a `predictor` block of either published dialect in Open-Sora Plan's, which is ours."""
    return _patch_sizes(with_values(node, {"norm_cls": {"fp32_layer_norm": "layer_norm"}}))


def _patch_sizes(node: Node) -> Node:
    """`patch_size_thw`: [t, h, w] -> `patch_size_t`, `patch_size`."""
    if not isinstance(node.value, dict) or "patch_size_thw" not in node.value:
        return node
    value = dict(node.value)
    sizes = value.pop("patch_size_thw")
    if not isinstance(sizes.value, list) or len(sizes.value) != 3:
        raise sizes.error("expected 3 values: time, height, width")
    time, height, width = sizes.value
    if height.value != width.value:
        raise sizes.error(f"{sizes.plain()}: height and width must be equal")
    for name, size in (("patch_size_t", time), ("patch_size", height)):
        if name in value:
            raise value[name].error(f"also given as {sizes.path!r}")
        value[name] = size
    return dataclasses.replace(node, value=value)


FAMILY = DenoiserFamily(
    model_id="SparseUMMDiT",
    title="SparseUMMDiT",
    config=SparseUMMDiTConfig,
    published=published,
    parameters=parameters,
    split=split,
    dialects=(
        Dialect(
            "OSP",
            "Open-Sora Plan (OSP)",
            re.compile(r"transformer_blocks\.\d+\.\d+\.attn1\.to_[qkv]\."),
            Renaming({}),
            has_extra_states=True,
        ),
        Dialect(
            "MM",
            "MindSpeed-MM (MM)",
            re.compile(r"transformer_blocks\.\d+\.\d+\.attn1\.proj_[qkv]\."),
            Renaming(_MM),
            has_unused=False,
        ),
    ),
    describe=describe,
    part_of=part_of,
    block_of=lambda name: (match := _BLOCK.match(name)) and match[0],
    channel_problems=channel_problems,
    begins_at_zero=lambda name: name == "image_embed.proj.weight",
    image_mask_channels=lambda config: config.image_mask_channels,
    text_widths=text_widths,
    extent=extent,
    forward_flops=costs.forward_flops,
    activation_bytes=costs.activation_bytes,
    training_bytes=costs.peak_bytes,
    training_flops=work.training_flops,
    training_work=work.training_work,
    unused=text_tail,
)
