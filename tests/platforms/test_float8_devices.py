"""Which devices multiply float8 numbers, as far as it can be told without a card."""

import pytest
import torch

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms.cpu import CpuPlatform
from mindspeed_mm.platforms.cuda import CudaPlatform
from mindspeed_mm.platforms.npu import NpuPlatform


@pytest.fixture
def card(monkeypatch):
    def make(*capability: int) -> CudaPlatform:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        return CudaPlatform()

    return make


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_cards_that_have_them(card, capability):
    card(*capability).check_float8(torch.bfloat16)


def test_an_older_card_is_named(card):
    with pytest.raises(ConfigError, match="--fp8-format needs a GPU of capability 8.9; a card has 8.0"):
        card(8, 0).check_float8(torch.bfloat16)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.float16, "float16")])
def test_cuda_wants_bf16(card, dtype, name):
    with pytest.raises(ConfigError, match=f"--fp8-format needs --bf16 on CUDA; the denoiser is {name}"):
        card(9, 0).check_float8(dtype)


def test_an_npu_has_none_and_a_cpu_all():
    with pytest.raises(ConfigError, match="--fp8-format: npu devices have no products in float8"):
        NpuPlatform("off").check_float8(torch.bfloat16)
    CpuPlatform().check_float8(torch.float32)
