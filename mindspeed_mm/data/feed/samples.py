"""What a loader asks of a dataset: samples by index, with their shapes and names."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mindspeed_mm.data.workers.buffers import Allocate
from mindspeed_mm.types import Posterior, TextFeatures, TokenIds


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One clip, ready for a batch.

    video: [3,T,H,W] float32, or its stored posterior (no batch axis). text: [1,L] ids of the first tokenizer, or
    stored features. pooled_text: ids of the second tokenizer (None without one, or with stored features). caption: the
    text, "" if dropped. path: its file or other name. key: "TxHxW". traits: special traits of its file, see `decode/shown.py`.
    """

    video: Tensor | Posterior
    text: TokenIds | TextFeatures
    pooled_text: TokenIds | None
    caption: str
    path: str
    key: str
    traits: tuple[str, ...] = ()


class Dataset(Protocol):
    """Samples by index. `ClipDataset` is one; any object with these members fits, if it can be pickled for workers.

    keys: shape of each sample, such as "29x480x640"; the samples of a batch share it. paths: file or other name of each
    sample, for messages, the ledger and the check that a resumed run has the same list. Both keep their order.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def paths(self) -> Sequence[str]: ...

    def sample(self, index: int, epoch: int, allocate: Allocate = torch.empty) -> Sample:
        """Sample `index` in `epoch`, the same at each call. Raises DataError if it is unusable.

        allocate: makes the fp32 tensor of a shape. A video made in it needs no copy on its way out of a worker.
        """
        ...
