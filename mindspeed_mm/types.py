"""Records of tensors that pass between the layers of the package, and names of dtypes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

# Names in the configs and on the command line.
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sent(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on `device`, in `dtype`. The host does not wait for a copy to CUDA; one to an NPU it does wait for, since
    torch_npu keeps memory of the host until the copy is done only where it is pinned."""
    queued = device is not None and torch.device(device).type == "cuda"
    return tensor.to(device=device, dtype=dtype, non_blocking=queued)


# Results below this size are kept for the backward pass; larger ones are made or gathered again there.
LEAST_RECOMPUTED_BYTES = 2**20


class Tensors:
    """Base of frozen dataclasses that hold tensors, other such records and plain values.

    Its methods go through the fields, so a new field needs no line in them, nor in the code that calls them.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The record with `function` applied to each tensor, in the order of the fields, records inside included."""
        changed: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                changed[name] = function(value)
            elif isinstance(value, Tensors):
                changed[name] = value.map(function)
        return dataclasses.replace(self, **changed)

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of `map`."""
        found: list[Tensor] = []
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, Tensors):
                found += value.tensors()
        return found

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The record on another device; `dtype` converts its floating-point tensors."""
        return self.map(lambda value: sent(value, device, dtype if value.is_floating_point() else None))

    def chunk(self, count: int) -> list[Self]:
        """`count` equal parts along the batch axis: the inverse of `concatenate`."""
        return [self.map(lambda value, part=part: value.chunk(count)[part]) for part in range(count)]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Joins parts along the batch axis."""
        joined = iter([torch.cat(column) for column in zip(*(part.tensors() for part in parts), strict=True)])
        return parts[0].map(lambda _: next(joined))


class Drops(NamedTuple):
    """Where the numbers of an activation [S,B,D] are, for dropout: seeds [B] of its samples, places [S] of its tokens.

    int64, both in [0, 2^32).
    """

    seeds: Tensor
    tokens: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class TextFeatures(Tensors):
    """Outputs of the frozen text encoders for a batch of captions.

    sequence: [B,L,D] features of T5. keep: [B,L] bool, True at real tokens. pooled: [B,P] features of CLIP; None for a
    network that takes none.
    """

    sequence: Tensor
    keep: Tensor
    pooled: Tensor | None = None

    def __post_init__(self):
        if self.sequence.ndim != 3:
            raise ValueError(f"text features: sequence {list(self.sequence.shape)} must be [B,L,D]")
        if self.keep.dtype != torch.bool or self.keep.shape != self.sequence.shape[:2]:
            raise ValueError(
                f"text features: keep is {self.keep.dtype} {list(self.keep.shape)}, "
                f"must be torch.bool {list(self.sequence.shape[:2])} with True at real tokens"
            )
        if self.pooled is not None and (self.pooled.ndim != 2 or self.pooled.shape[0] != self.sequence.shape[0]):
            raise ValueError(
                f"text features: pooled {list(self.pooled.shape)} must be [B,P] with B {self.sequence.shape[0]}, as sequence has"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class TokenIds(Tensors):
    """Tokenized captions: ids [B,L] int64, keep [B,L] bool, True at real tokens."""

    ids: Tensor
    keep: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFeatures(Tensors):
    """Known pixels of a batch of videos; `models/image_conditions.py` makes them.

    latents: [B,C,t,h,w] of the known pixels. mask: [B,M,t,h,w], the known share of each of a latent's M frames, in [0,1].
    """

    latents: Tensor
    mask: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Posterior(Tensors):
    """Posterior of the autoencoder for a batch of clips: mean and logvar [B,C,t,h,w], before shift and scale.

    image: what is known of the clips, before shift and scale too; None if it was not stored.
    """

    mean: Tensor
    logvar: Tensor
    image: ImageFeatures | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Batch(Tensors):
    """One micro-batch of clips of one shape, as the loader yields it.

    video: [B,3,T,H,W] float32 in [-1,1] (bicubic resizing may overshoot a little), or its stored features. keep:
    [B,t,h,w] bool on the latent grid, True at video. text, pooled_text: the captions for T5 and for CLIP (None without
    a second tokenizer), or both encoders' stored features in `text`. paths: the files, for messages about a bad
    sample. addresses: (epoch, place in the list) of each sample, which address its random numbers.
    """

    video: Tensor | Posterior
    keep: Tensor
    text: TokenIds | TextFeatures
    pooled_text: TokenIds | None
    paths: tuple[str, ...]
    addresses: tuple[tuple[int, int], ...]

    @property
    def clips(self) -> Tensor:
        """The clips themselves. Raises TypeError for stored features, which have none."""
        if isinstance(self.video, Posterior):
            raise TypeError("a batch of stored features has no clips")
        return self.video
