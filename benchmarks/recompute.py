"""Recomputation: peak memory and time of a training step that recomputes nothing, feed-forwards, or whole blocks.

    python benchmarks/recompute.py [--extent T H W] [--width N] [--device cuda --dtype bf16]

"selective" is --selective_recom --recom_ffn_layers N over all blocks, "full" --recompute-granularity full
--recompute-method block --recompute-num-layers N.
"""

import argparse
import math

import torch
from common import denoiser_config, denoiser_inputs, measure, peak_bytes, table

from mindspeed_mm.models.build import build_denoiser
from mindspeed_mm.parallel.context import ParallelContext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extent", type=int, nargs=3, default=(4, 24, 24), metavar="N", help="t h w in patches")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--text", type=int, default=64, help="real text tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()

    config = denoiser_config(options.width, (2,) * 7, (1, 2, 4, 8, 4, 2, 1), sparse=True)
    blocks = sum(config.num_layers)
    choices = {"none": {}, "selective": {"recompute_feed_forwards": blocks}, "full": {"recompute_blocks": blocks}}
    inputs = denoiser_inputs(config, tuple(options.extent), options.text, options.text, options.device, options.dtype)

    def step(network):
        def run() -> None:
            network(*inputs).float().square().mean().backward()
            for parameter in network.parameters():
                parameter.grad = None

        return run

    place = {"device": options.device, "dtype": options.dtype, "seed": 0}
    steps = {
        name: step(build_denoiser(config, ParallelContext.current(), **place, **choice).train())
        for name, choice in choices.items()
    }
    peaks = {name: peak_bytes(run, options.device) for name, run in steps.items()}
    seconds = measure(steps, options.repeats, options.device)
    rows = [
        [
            name,
            peaks[name] / 2**20,
            peaks[name] / peaks["none"],
            seconds[name][0],
            seconds[name][0] / seconds["none"][0],
        ]
        for name in choices
    ]
    print(
        f"{math.prod(options.extent)} video and {options.text} text tokens, width {options.width}, {blocks} blocks, "
        f"{options.dtype} on {options.device}, {torch.get_num_threads()} threads, medians of {options.repeats}\n"
    )
    print(table(["recompute", "peak MiB", "/ none", "step s", "/ none"], rows))


if __name__ == "__main__":
    main()
