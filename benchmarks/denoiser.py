"""The denoiser's step: SUV, dense, and SUV in the original's way (as it is, and with a kernel that reads one row of the mask), in turns
on the same input and weights.

    python benchmarks/denoiser.py [--extent T H W ...] [--width N] [--device cuda --dtype bf16 --compile --fp8-format hybrid]

The width shrinks with the tokens, so that attention has the share of a block's arithmetic that it has in v1.5 at
121x576x1024: 36,864 tokens x 3072 channels become 4608 x 384. Peak memory is what the step allocates (`common.py`).
"""

import argparse
import math
from collections.abc import Callable

import torch
from common import clock_of, denoiser, denoiser_config, denoiser_inputs, measure, peak_bytes, synchronize, table
from original_way import OriginalWay

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
from mindspeed_mm.families.sparse_ummdit_costs import forward_flops
from mindspeed_mm.models.float8 import use_float8
from mindspeed_mm.ops.float8 import FORMATS
from mindspeed_mm.parallel.context import ParallelContext
from mindspeed_mm.platforms.select import select
from mindspeed_mm.types import TORCH_DTYPES

ORIGINAL, ONE_ROW = "SUV in the original's way", "the same, one row of the mask"


def main() -> None:
    options = arguments()
    rows = networks(options)
    (_, sparse) = rows["SUV"]
    extent = tuple(options.extent)
    inputs = denoiser_inputs(sparse, extent, options.text, options.real_text, options.device, options.dtype)
    with torch.no_grad():
        for name in (ORIGINAL, ONE_ROW):
            assert_equal(rows["SUV"][0](*inputs), rows[name][0](*inputs), options.dtype)
    steps = {name: step(network, inputs, options.device) for name, (network, _) in rows.items()}
    seconds = measure(steps, options.repeats, options.device)  # first, because it compiles what is to be compiled
    peaks = {name: peak_bytes(run, options.device) for name, run in steps.items()}
    flops = {name: forward_flops(config, extent, options.real_text) for name, (_, config) in rows.items()}
    print(
        f"{math.prod(extent)} video tokens, {options.real_text} of {options.text} text tokens real, width {options.width}, "
        f"blocks {list(options.stages)} at sparsity {list(options.sparsities)}, {options.dtype} on {options.device}, "
        f"{torch.get_num_threads()} threads, medians of {options.repeats}\n"
    )
    print(report(seconds, peaks, flops, select(options.device).peak_tflops(TORCH_DTYPES[options.dtype])))
    if "dense" in rows:
        print(
            f"\nSUV against dense: {seconds['dense'][0] / seconds['SUV'][0]:.2f}x as fast, "
            f"by arithmetic {flops['dense'] / flops['SUV']:.2f}x"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extent", type=int, nargs=3, default=(8, 24, 24), metavar="N", help="t h w in patches")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--stages", type=int, nargs="+", default=(2, 2, 2, 2, 2, 2, 2), help="blocks per stage")
    parser.add_argument("--sparsities", type=int, nargs="+", default=(1, 2, 4, 8, 4, 2, 1))
    parser.add_argument("--text", type=int, default=512, help="tokens of the padded caption (default: v1.5's 512)")
    parser.add_argument("--real-text", type=int, default=128, help="number of real text tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--without-dense", action="store_true")
    parser.add_argument("--compile", action="store_true", help="a row with compiled blocks as well")
    parser.add_argument(
        "--fp8-format", choices=tuple(FORMATS), help="a row with products in float8 as well, compiled with --compile"
    )
    return parser.parse_args()


def networks(options: argparse.Namespace) -> dict[str, tuple[torch.nn.Module, SparseUMMDiTConfig]]:
    """The rows of the table, the baseline first; all but the dense one have the same weights."""
    layout = (options.width, tuple(options.stages), tuple(options.sparsities))
    sparse, dense = (denoiser_config(*layout, sparse=flag) for flag in (True, False))
    suv = denoiser(sparse, options.device, options.dtype)
    rows = {
        ORIGINAL: (OriginalWay(suv), sparse),
        ONE_ROW: (OriginalWay(suv, one_row=True), sparse),
        "SUV": (suv, sparse),
    }
    if not options.without_dense:
        rows["dense"] = (denoiser(dense, options.device, options.dtype), dense)
    if options.compile:
        compiled = denoiser(sparse, options.device, options.dtype)
        compiled.compile_blocks()
        rows["SUV, --compile"] = (compiled, sparse)
    if options.fp8_format is not None:
        rows |= float8_row(sparse, options)
    return rows


def float8_row(config: SparseUMMDiTConfig, options: argparse.Namespace) -> dict:
    """One row; none, and a line that says why, where the device has no such products."""
    try:
        select(options.device).check_float8(TORCH_DTYPES[options.dtype])
    except ConfigError as error:
        print(f"{error}\n")
        return {}
    network = denoiser(config, options.device, options.dtype)
    use_float8(network, options.fp8_format, ParallelContext.current())
    if options.compile:
        network.compile_blocks()
    return {f"SUV{', --compile' * options.compile}, --fp8-format {options.fp8_format}": (network, config)}


def step(network: torch.nn.Module, inputs: tuple, device: str) -> Callable[[], float]:
    """A function that runs forward and backward, and returns the seconds of forward."""
    clock = clock_of(device)

    def run() -> float:
        start = clock()
        out = network(*inputs)
        synchronize(device)
        forward = clock() - start
        out.float().square().mean().backward()
        for parameter in network.parameters():
            parameter.grad = None
        return forward

    return run


def report(
    seconds: dict[str, tuple[float, float]], peaks: dict[str, int], flops: dict[str, int], card_tflops: float | None
) -> str:
    """The table. card_tflops: what the card's maker states for its products; None if unknown."""
    header = ["", "forward s", "step s", "times as fast", "peak MiB", "memory ratio", "GFLOP/s of useful arithmetic"]
    lines = []
    for name, (total, forward) in seconds.items():
        faster, leaner = seconds[ORIGINAL][0] / total, peaks[name] / peaks[ORIGINAL]
        rate = 3 * flops[name] / total / 1e9
        lines.append([name, forward, total, faster, peaks[name] / 2**20, leaner, rate])
        if card_tflops is not None:
            lines[-1].append(rate / 1000 / card_tflops)
    if card_tflops is not None:
        header.append("of the card's peak")
    return table(header, lines)


def assert_equal(a: torch.Tensor, b: torch.Tensor, dtype: str) -> None:
    """The comparison counts only if both compute the same."""
    difference = ((a - b).abs().max() / b.abs().max()).item()
    if difference > (1e-5 if dtype == "fp32" else 5e-2):
        raise SystemExit(f"the two ways differ by {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
