"""A second denoiser, as someone would add it: facts for `families/`, a network for `models/`, one row in each table.

Dense, without pooled text, and with names of its own.
"""

import contextlib
import dataclasses
import re
from unittest import mock

import torch
from torch import Tensor, nn

from mindspeed_mm import families
from mindspeed_mm.families.base import DenoiserFamily, Dialect, Parameter, Renaming
from mindspeed_mm.models import build as builders
from mindspeed_mm.models.denoiser import Denoiser
from mindspeed_mm.ops.attention import RealKeys, attend, real_keys
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.parallel.linear import ColumnLinear, RowLinear, together
from mindspeed_mm.schema import option

# --------------------------------------------------------------------------------------------------------------- facts


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig:
    """`predictor`: the toy."""

    model_id: str = option("Toy", choices=("Toy",))
    num_heads: int = option(2, at_least=1)
    width: int = option(32, at_least=2)
    depth: int = option(2, at_least=1)
    channels: int = option(at_least=1)  # of the latent
    words: int = option(at_least=1)  # width of the text features
    patch_size: int = option(1, at_least=1, at_most=1)
    from_pretrained: str | None = None

    @property
    def velocity_channels(self) -> int:
        return self.channels


def parameters(config: ToyConfig) -> dict[str, Parameter]:
    width = config.width
    inputs = {"pixels": config.channels, "prompt": config.words}
    found = {f"{name}.weight": Parameter((width, size)) for name, size in inputs.items()}
    for layer in range(config.depth):
        found |= {
            f"layers.{layer}.{name}.weight": Parameter((width, width), split("layers.0." + name)) for name in _LINEARS
        }
    return found | {"velocity_of.weight": Parameter((config.channels, width))}


_LINEARS = {"ask": 0, "tell": 0, "say": 0, "join": 1}  # name -> dimension that is split over TP


def split(name: str) -> int | None:
    match = re.match(r"(?:layers\.\d+\.)?(\w+)", name)
    return {"pixels": None, "prompt": None, "velocity_of": None, **_LINEARS}[match[1]]


FAMILY = DenoiserFamily(
    model_id="Toy",
    title="Toy",
    config=ToyConfig,
    published=lambda node: node,
    parameters=parameters,
    split=split,
    dialects=(Dialect("TOY", "Toy", re.compile(r"layers\.\d+\.ask\."), Renaming({})),),
    describe=lambda names, shape_of: {},
    channel_problems=lambda config, latent: [("channels", f"not {latent}")] if config.channels != latent else [],
    text_widths=lambda config: {"text_encoder": ("words", config.words)},
    extent=lambda config, latent: latent,
    forward_flops=lambda config, extent, text_tokens: 1,
    activation_bytes=lambda config, extent, text_tokens, itemsize, ranks: 1,
)

# ------------------------------------------------------------------------------------------------------------- network


class Layer(nn.Module):
    """Attention of the video to the video and the text."""

    def __init__(self, config: ToyConfig, parallel: ParallelContext):
        super().__init__()
        self.head_dim = config.width // config.num_heads
        sizes = (config.width, config.width, parallel)
        self.ask, self.tell, self.say = (ColumnLinear(*sizes, bias=False) for _ in range(3))
        self.join = RowLinear(*sizes, bias=False)

    def forward(self, video: Tensor, text: Tensor, keys: RealKeys) -> Tensor:
        """video [S,B,D], text [L,B,D], keys of [B,S+L] -> video."""
        asked, told, said = (x.unflatten(2, (-1, self.head_dim)) for x in self._projections(torch.cat((video, text))))
        return video + self.join(attend(asked[: len(video)], told, said, keys).flatten(2))

    def _projections(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return together(tokens, self.ask, self.tell, self.say)


class Toy(Denoiser):
    """Every latent pixel is a token."""

    def __init__(self, config: ToyConfig, parallel, *, recompute_blocks: int = 0, recompute_feed_forwards: int = 0):
        super().__init__(config, parallel)
        self.pixels = nn.Linear(config.channels, config.width, bias=False)
        self.prompt = nn.Linear(config.words, config.width, bias=False)
        self.layers = nn.ModuleList(Layer(config, parallel) for _ in range(config.depth))
        self.velocity_of = nn.Linear(config.width, config.channels, bias=False)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def velocity(self, latents, sigma, conditions, keep, draws, step_cache, before_block) -> Tensor:
        tokens = latents.to(self.dtype).flatten(2).permute(2, 0, 1)
        video = self.pixels(tokens) + sigma.to(self.dtype)[:, None]
        text = self.prompt(conditions.text.sequence.to(self.dtype)).transpose(0, 1)
        real = (
            torch.ones(tokens.shape[1::-1], dtype=torch.bool, device=tokens.device) if keep is None else keep.flatten(1)
        )
        keys = real_keys(torch.cat((real, conditions.text.keep), dim=1), tokens.device)
        for layer in self.layers:
            before_block()
            video = layer(video, text, keys)
        return self.velocity_of(video).permute(1, 2, 0).unflatten(2, latents.shape[2:])


@contextlib.contextmanager
def registered():
    """The two rows, inside."""
    with mock.patch.dict(families.DENOISERS, Toy=FAMILY), mock.patch.dict(builders.DENOISERS, Toy=Toy):
        yield
