"""Open-Sora Plan v1.5, maintained: training and sampling on Ascend NPUs, CUDA and plain CPUs.

    import mindspeed_mm as mm
    net = mm.build_denoiser(config)

Names are loaded on first use, so importing the package starts no device and no process group.
"""

from mindspeed_mm.version import __version__ as __version__

_API = ("build_autoencoder", "build_denoiser", "read_clip", "read_image", "sigma_grid")


def __getattr__(name: str):
    if name in _API:
        from mindspeed_mm import api

        return getattr(api, name)
    if name == "plan":
        from mindspeed_mm.planning.report import plan

        return plan
    if name == "T2VPipeline":
        from mindspeed_mm.sampling.pipeline import T2VPipeline

        return T2VPipeline
    raise AttributeError(f"module 'mindspeed_mm' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_API, "T2VPipeline", "plan"]
