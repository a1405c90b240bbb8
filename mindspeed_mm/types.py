"""Records of tensors that pass between the layers of the package, and names of dtypes."""

import dataclasses

import torch
from torch import Tensor

# Names in the configs and on the command line.
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, slots=True)
class TextFeatures:
    """Outputs of the frozen text encoders for a batch of captions.

    sequence: [B,L,D] features of T5. keep: [B,L] bool, True at real tokens. pooled: [B,P] features of CLIP.
    """

    sequence: Tensor
    keep: Tensor
    pooled: Tensor

    def __post_init__(self):
        if self.sequence.ndim != 3 or self.pooled.ndim != 2:
            raise ValueError(
                f"text features: sequence {list(self.sequence.shape)} must be [B,L,D] and pooled {list(self.pooled.shape)} [B,P]"
            )
        if self.keep.dtype != torch.bool or self.keep.shape != self.sequence.shape[:2]:
            raise ValueError(
                f"text features: keep is {self.keep.dtype} {list(self.keep.shape)}, "
                f"must be torch.bool {list(self.sequence.shape[:2])} with True at real tokens"
            )
        if self.pooled.shape[0] != self.sequence.shape[0]:
            raise ValueError(
                f"text features: {self.sequence.shape[0]} sequences but {self.pooled.shape[0]} pooled vectors"
            )

    def to(self, device=None, dtype=None) -> "TextFeatures":
        """The features on another device; `dtype` converts the two float tensors."""
        return TextFeatures(
            self.sequence.to(device=device, dtype=dtype),
            self.keep.to(device=device),
            self.pooled.to(device=device, dtype=dtype),
        )

    def chunk(self, count: int) -> "list[TextFeatures]":
        """`count` equal parts along the batch axis: the inverse of `concatenate`."""
        parts = zip(self.sequence.chunk(count), self.keep.chunk(count), self.pooled.chunk(count), strict=True)
        return [TextFeatures(*part) for part in parts]

    @staticmethod
    def concatenate(parts: "list[TextFeatures]") -> "TextFeatures":
        """Joins parts along the batch axis."""
        return TextFeatures(
            torch.cat([part.sequence for part in parts]),
            torch.cat([part.keep for part in parts]),
            torch.cat([part.pooled for part in parts]),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokenized captions: ids [B,L] int64, keep [B,L] bool, True at real tokens."""

    ids: Tensor
    keep: Tensor

    def to(self, device=None) -> "TokenIds":
        return TokenIds(self.ids.to(device=device), self.keep.to(device=device))


@dataclasses.dataclass(frozen=True, slots=True)
class Posterior:
    """Posterior of the autoencoder for a batch of clips: mean and logvar [B,C,t,h,w], before shift and scale."""

    mean: Tensor
    logvar: Tensor

    def to(self, device=None) -> "Posterior":
        return Posterior(self.mean.to(device=device), self.logvar.to(device=device))


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
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

    def to(self, device=None) -> "Batch":
        return Batch(
            self.video.to(device=device),
            self.keep.to(device=device),
            self.text.to(device),
            None if self.pooled_text is None else self.pooled_text.to(device),
            self.paths,
            self.addresses,
        )
