"""The autoencoder: time and peak memory of encoding and decoding, against plain modules that take a clip whole.

    python benchmarks/vae.py [--frames T ...] [--size H W] [--channels N] [--device cuda --dtype bf16]

Plain: the same weights, torch's own Conv3d behind F.pad(mode="replicate"), no chunks. Peak memory is what the
call allocates (`common.py`), its result included; the last two columns leave the result out.
"""

import argparse
import copy
import dataclasses
import math

import torch
import torch.nn.functional as F
from common import measure, peak_bytes, table, void
from torch import Tensor, nn

from mindspeed_mm.families.wfvae import WFVAEConfig
from mindspeed_mm.models.build import build_autoencoder
from mindspeed_mm.models.wfvae.causal_conv import CausalConv3d
from mindspeed_mm.models.wfvae.model import WFVAE
from mindspeed_mm.types import TORCH_DTYPES

_LEVELS = {
    f"{level}_{way}_{part}": name
    for level in ("l1", "l2")
    for way, part, name in (
        ("downsample", "block", "Spatial2xTime2x3DDownsample"),
        ("downsample", "wavelet", "HaarWaveletTransform3D"),
        ("upsample", "block", "Spatial2xTime2x3DUpsample"),
        ("upsample", "wavelet", "InverseHaarWaveletTransform3D"),
    )
}


class PlainConv3d(nn.Module):
    """A causal convolution of a whole clip."""

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.conv = conv

    def forward(self, video: Tensor, chunk) -> Tensor:
        past = self.conv.kernel_size[0] - 1
        return self.conv(F.pad(video, (0, 0, 0, 0, past, 0), mode="replicate") if past else video)


def plain(vae: WFVAE) -> WFVAE:
    """A copy without chunks, of torch's modules."""
    other = copy.deepcopy(vae)
    other.config = dataclasses.replace(vae.config, use_tiling=False)
    for module in list(other.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, CausalConv3d):
                setattr(module, name, PlainConv3d(child.conv))
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=(17, 33, 65, 121))
    parser.add_argument("--timed-frames", type=int, default=33, help="only this length is timed")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 96), metavar="N", help="height and width")
    parser.add_argument("--channels", type=int, default=32, help="base_channels (v1.5: 128)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()

    config = WFVAEConfig(
        base_channels=options.channels,
        latent_dim=32,
        norm_type="layernorm",
        t_interpolation="trilinear",
        use_tiling=True,
        **_LEVELS,
    )
    ours = build_autoencoder(config, device=options.device, dtype=options.dtype)
    networks = {"plain, whole": plain(ours), "ours, in chunks": ours}
    with torch.no_grad():
        show_times(networks, options)
        show_memory(networks, options)


def clip(frames: int, options) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(1, 3, frames, *options.size, generator=generator) * 2 - 1
    return video.to(options.device, TORCH_DTYPES[options.dtype])


def show_times(networks: dict[str, WFVAE], options) -> None:
    video = clip(options.timed_frames, options)
    latents = networks["plain, whole"].encode_moments(video)[0]
    rows = []
    # Apart, because memory that one way has freed speeds or slows the next.
    for way, method, x in (("encode", WFVAE.encode_moments, video), ("decode", WFVAE.decode_unscaled, latents)):
        runs = {
            name: lambda network=network, method=method, x=x: void(method(network, x))
            for name, network in networks.items()
        }
        seconds = measure(runs, options.repeats, options.device)
        rows += [[way, name, value, seconds["plain, whole"][0] / value] for name, (value, _) in seconds.items()]
    height, width = options.size
    print(
        f"{options.timed_frames} frames of {height}x{width}, {options.channels} base channels, {options.dtype} on "
        f"{options.device}, {torch.get_num_threads()} threads, medians of {options.repeats}\n"
    )
    print(table(["", "", "seconds", "times as fast"], rows))


def show_memory(networks: dict[str, WFVAE], options) -> None:
    rows = []
    for frames in options.frames:
        video = clip(frames, options)
        latents = networks["ours, in chunks"].encode_moments(video)[0]
        peaks = [
            peak_bytes(lambda call=call, x=x: void(call(x)), options.device) / 2**20
            for network in networks.values()
            for call, x in ((network.encode_moments, video), (network.decode_unscaled, latents))
        ]
        results = [2 * math.prod(latents.shape), math.prod(video.shape)]  # mean and logvar, and the video
        working = [peak - count * video.element_size() / 2**20 for peak, count in zip(peaks[2:], results, strict=True)]
        rows.append([frames, *peaks, *working])
    header = ["frames"] + [f"{way}, {name}" for name in networks for way in ("encode", "decode")]
    print("\nPeak memory, MiB\n\n" + table([*header, "encode, chunks alone", "decode, chunks alone"], rows))


if __name__ == "__main__":
    main()
