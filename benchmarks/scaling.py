"""Cost against tokens: seconds of a forward pass for SUV and dense, and the exponent of a power law through them.

    python benchmarks/scaling.py [--width N] [--frames T ...] [--device cuda --dtype bf16]

Frames grow at one frame size. The exponent by arithmetic is fitted through the operations at the same sizes.
"""

import argparse
import math

import torch
from common import denoiser, denoiser_config, denoiser_inputs, measure, table

from mindspeed_mm.families.sparse_ummdit_costs import forward_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=(2, 4, 8, 16), help="latent frames")
    parser.add_argument("--size", type=int, nargs=2, default=(24, 24), metavar="N", help="h w in patches")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--text", type=int, default=64, help="real text tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()

    layout = (options.width, (2,) * 7, (1, 2, 4, 8, 4, 2, 1))
    configs = {name: denoiser_config(*layout, sparse=name == "SUV") for name in ("SUV", "dense")}
    networks = {name: denoiser(config, options.device, options.dtype) for name, config in configs.items()}
    rows: list[list[float]] = []
    operations: dict[str, list[int]] = {name: [] for name in configs}
    for frames in options.frames:
        extent = (frames, *options.size)
        inputs = denoiser_inputs(configs["SUV"], extent, options.text, options.text, options.device, options.dtype)

        @torch.no_grad()
        def forward(network, inputs=inputs) -> None:
            network(*inputs)

        runs = {name: lambda network=network, forward=forward: forward(network) for name, network in networks.items()}
        seconds = measure(runs, options.repeats, options.device)
        suv, dense = seconds["SUV"][0], seconds["dense"][0]
        counts = {name: forward_flops(config, extent, options.text) for name, config in configs.items()}
        for name, count in counts.items():
            operations[name].append(count)
        rows.append([math.prod(extent), suv, dense, dense / suv, counts["dense"] / counts["SUV"]])
    print(
        f"Forward passes, width {options.width}, 14 blocks, {options.text} text tokens, {options.dtype} on "
        f"{options.device}, {torch.get_num_threads()} threads, medians of {options.repeats}\n"
    )
    print(table(["video tokens", "SUV s", "dense s", "dense / SUV", "by arithmetic"], rows))
    tokens = [row[0] for row in rows]
    for column, name in ((1, "SUV"), (2, "dense")):
        measured = exponent(tokens, [row[column] for row in rows])
        print(
            f"\n{name}: seconds ~ tokens^{measured:.2f}, operations ~ tokens^{exponent(tokens, operations[name]):.2f}"
        )


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of the least-squares line through log(cost) over log(size)."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
