"""Open-Sora Plan v1.5 for diffusers: model, autoencoder and pipeline. The extra "diffusers" installs what they need.

Names are loaded on first use: to write a folder takes no diffusers.
"""

import importlib
import importlib.util

from mindspeed_mm.errors import ConfigError

_HOMES = {
    "AutoencoderKLWFVAE": "autoencoder",
    "OpenSoraPlanPipeline": "local",
    "SparseUMMDiTTransformer3DModel": "transformer",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError(f"{name} needs diffusers, which is not installed: pip install 'mindspeed_mm[diffusers]'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return [*globals(), *_HOMES]
