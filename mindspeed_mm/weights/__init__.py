"""Weights as files: opens any format and dialect, loads them into networks, converts and exports them.

Names are loaded on first use: a converter needs no network, and a network imports megatron-core.
"""

import importlib

_HOMES = {
    "describe": "inspect",
    "convert_autoencoder": "convert",
    "load_autoencoder": "load",
    "load_denoiser": "load",
    "merge_checkpoint": "convert",
    "split_checkpoint": "convert",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *_HOMES]
