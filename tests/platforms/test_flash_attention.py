"""What can be said of CUDA without a card: whose FlashAttention torch calls."""

import pytest
import torch
from torch.nn import attention
from torch.nn.attention import _registry

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.platforms import cuda
from mindspeed_mm.platforms.select import select


def started(platform, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    platform.prepare(allow_tf32=torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize("implementation", ["FA3", "FA4"])
def test_an_implementation_is_activated_or_its_package_named(monkeypatch, implementation):
    activated = []
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, implementation, lambda: activated.append(implementation))
    started(select("cuda", flash_attention=implementation), monkeypatch)
    assert activated == [implementation]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=f"--flash-attention {implementation}: .*; install flash"):
        started(select("cuda", flash_attention=implementation), monkeypatch)
    assert attention.current_flash_attention_impl() is None


def test_torchs_own_is_the_default(monkeypatch):
    monkeypatch.setattr(cuda, "activate_flash_attention", lambda name: pytest.fail(name))
    started(select("cuda"), monkeypatch)


def test_a_torch_that_does_not_know_it_is_named(monkeypatch):
    monkeypatch.delattr(attention, "list_flash_attention_impls")
    with pytest.raises(ConfigError, match="FA3: torch .* does not know it"):
        started(select("cuda", flash_attention="FA3"), monkeypatch)


@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_other_devices_have_none(device):
    with pytest.raises(ConfigError, match=f"FA3: runs on CUDA; leave it out on --device {device}"):
        select(device, flash_attention="FA3")
