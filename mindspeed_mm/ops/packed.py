"""Weights in 8 or 4 bits, of which adjacent numbers of a row, a block, share a scale.

int8 has 255 equal steps. nf4 has the 16 levels of QLoRA (2305.14314, appendix E), quantiles of a normal distribution.
torchao's int8 has one scale for a row, and its nf4 a mean over the tensor: both depend on how TP splits the tensor.
Here a part of a weight is packed as in the whole weight.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_STEPS = 127


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A weight [out,in].

    codes: int8 [out,in], or uint8 [out,in/2] with the first of two numbers in the upper bits. scales: bf16
    [out,in/block]. levels: `pairs()` for nf4, else None.
    """

    codes: Tensor
    scales: Tensor
    levels: Tensor | None = None

    @property
    def numbers(self) -> int:
        """Count of the weight's numbers."""
        return self.codes.numel() * (1 if self.levels is None else 2)

    def __call__(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, as new memory."""
        if self.levels is None:
            numbers = self.codes.to(dtype)
        else:
            numbers = F.embedding(self.codes.int(), self.levels.to(dtype)).flatten(1)
        rows, blocks = self.scales.shape
        numbers.view(rows, blocks, -1).mul_(self.scales.to(dtype)[:, :, None])
        return numbers


def pairs(device: torch.device | str) -> Tensor:
    """Both numbers of each nf4 code: fp32 [256,2]. One table serves all weights of a device."""
    levels = torch.tensor(NF4, device=device)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), 1)


def pack(weight: Tensor, form: str, block: int, levels: Tensor) -> Packed:
    """Packs a weight [out,in], to the nearest of the form's numbers. block divides in. levels: see `pairs`."""
    rows, columns = weight.shape
    blocks = weight.detach().float().view(rows, columns // block, block)
    largest = blocks.abs().amax(2)
    scales = (largest / _STEPS if form == "int8" else largest).to(torch.bfloat16)
    wide = scales.float()[:, :, None]
    numbers = torch.where(wide > 0, blocks / wide, 0).view(rows, columns)
    if form == "int8":
        return Packed(numbers.round().clamp(-_STEPS, _STEPS).to(torch.int8), scales)
    codes = torch.zeros_like(numbers, dtype=torch.uint8)
    for below, above in zip(NF4, NF4[1:], strict=False):
        codes += numbers > (below + above) / 2
    return Packed((codes[:, ::2] << 4) | codes[:, 1::2], scales, levels)
