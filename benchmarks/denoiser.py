"""The denoiser's step: SUV, dense, and SUV in the original's way, in turns on the same input and weights.

    python benchmarks/denoiser.py [--extent T H W ...] [--width N] [--device cuda --dtype bf16]

The width shrinks with the tokens, so that attention has the share of a block's arithmetic that it has in v1.5 at
121x576x1024: 36,864 tokens x 3072 channels become 4608 x 384. Peak memory counts tensors made in the step (`common.py`).
"""

import argparse
import math

import torch
from common import clock_of, denoiser, denoiser_config, denoiser_inputs, measure, peak_bytes, synchronize, table
from original_way import OriginalWay

from mindspeed_mm.models.sparse_ummdit.flops import forward_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extent", type=int, nargs=3, default=(8, 24, 24), metavar="N", help="t h w in patches")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--stages", type=int, nargs="+", default=(2, 2, 2, 2, 2, 2, 2), help="blocks per stage")
    parser.add_argument("--sparsities", type=int, nargs="+", default=(1, 2, 4, 8, 4, 2, 1))
    parser.add_argument("--text", type=int, default=512, help="tokens of the padded caption (default: v1.5's 512)")
    parser.add_argument("--real-text", type=int, default=128, help="of these, real ones")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--without-dense", action="store_true")
    parser.add_argument("--compile", action="store_true", help="a row with compiled blocks as well")
    options = parser.parse_args()

    layout = (options.width, tuple(options.stages), tuple(options.sparsities))
    sparse, dense = (denoiser_config(*layout, sparse=flag) for flag in (True, False))
    suv = denoiser(sparse, options.device, options.dtype)
    rows = {"SUV in the original's way": (OriginalWay(suv), sparse), "SUV": (suv, sparse)}
    if not options.without_dense:
        rows["dense"] = (denoiser(dense, options.device, options.dtype), dense)
    if options.compile:
        compiled = denoiser(sparse, options.device, options.dtype)
        compiled.compile_blocks()
        rows["SUV, --compile"] = (compiled, sparse)
    inputs = denoiser_inputs(
        sparse, tuple(options.extent), options.text, options.real_text, options.device, options.dtype
    )
    with torch.no_grad():
        assert_equal(rows["SUV"][0](*inputs), rows["SUV in the original's way"][0](*inputs), options.dtype)

    clock = clock_of(options.device)

    def step(network):
        def run() -> float:
            start = clock()
            out = network(*inputs)
            synchronize(options.device)
            forward = clock() - start
            out.float().square().mean().backward()
            for parameter in network.parameters():
                parameter.grad = None
            return forward

        return run

    steps = {name: step(network) for name, (network, _) in rows.items()}
    peaks = {name: peak_bytes(run, options.device) for name, run in steps.items()}
    seconds = measure(steps, options.repeats, options.device)
    original = "SUV in the original's way"
    lines = []
    for name, (total, forward) in seconds.items():
        flops = 3 * forward_flops(rows[name][1], tuple(options.extent), options.real_text)
        lines.append(
            [
                name,
                forward,
                total,
                seconds[original][0] / total,
                peaks[name] / 2**20,
                peaks[name] / peaks[original],
                flops / total / 1e9,
            ]
        )
    tokens = math.prod(options.extent)
    print(
        f"{tokens} video tokens, {options.real_text} of {options.text} text tokens real, width {options.width}, "
        f"blocks {list(options.stages)} at sparsity {list(options.sparsities)}, {options.dtype} on {options.device}, "
        f"{torch.get_num_threads()} threads, medians of {options.repeats}\n"
    )
    header = ["", "forward s", "step s", "times as fast", "peak MiB", "of its memory", "GFLOP/s of useful arithmetic"]
    print(table(header, lines))
    if "dense" in rows:
        arithmetic = [forward_flops(config, tuple(options.extent), options.real_text) for config in (dense, sparse)]
        print(
            f"\nSUV against dense: {seconds['dense'][0] / seconds['SUV'][0]:.2f}x as fast, "
            f"by arithmetic {arithmetic[0] / arithmetic[1]:.2f}x"
        )


def assert_equal(a: torch.Tensor, b: torch.Tensor, dtype: str) -> None:
    """The comparison counts only if both compute the same."""
    difference = ((a - b).abs().max() / b.abs().max()).item()
    if difference > (1e-5 if dtype == "fp32" else 5e-2):
        raise SystemExit(f"the two ways differ by {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
