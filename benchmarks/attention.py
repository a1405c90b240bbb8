"""Skiparse attention by sparsity: its time beside its share of the arithmetic, both relative to dense attention.

    python benchmarks/attention.py [--extent T H W] [--width N] [--device cuda --dtype bf16]

Times cover forward and backward, from rotated queries, keys and values to the attended tokens in their old order: they
include the rearrangement into parts and back, and the copies of the text. A second table has dense attention's forward pass by
each implementation that sampling can take.
"""

import argparse
import contextlib
import math
from collections.abc import Iterator

import torch
from common import measure, table, void
from torch import Tensor

from mindspeed_mm.errors import ConfigError
from mindspeed_mm.families.sparse_ummdit_costs import attention_flops
from mindspeed_mm.ops import sage
from mindspeed_mm.ops.attention import attend
from mindspeed_mm.ops.skiparse import join_text, split_text
from mindspeed_mm.platforms.cuda import activate_flash_attention
from mindspeed_mm.types import TORCH_DTYPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extent", type=int, nargs=3, default=(8, 24, 24), metavar="N", help="t h w in patches")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--text", type=int, default=128, help="real text tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()

    tokens, heads = math.prod(options.extent), options.width // 128
    dtype = TORCH_DTYPES[options.dtype]

    def tensors(length: int) -> list[Tensor]:
        return [
            torch.randn(length, 1, heads, 128, device=options.device, dtype=dtype, requires_grad=True) for _ in range(3)
        ]

    video, text = tensors(tokens), tensors(options.text)

    def step(sparsity: int, group: bool):
        def run() -> None:
            joint = (join_text(x, words, sparsity, group) for x, words in zip(video, text, strict=True))
            attended, words = split_text(attend(*joint, None), sparsity, group, tokens)
            torch.autograd.grad((attended.float().sum() + words.float().sum()), (*video, *text))

        return run

    patterns = [(1, False), *((k, group) for k in (2, 4, 8) for group in (False, True))]
    names = {pattern: f"sparsity {pattern[0]}" + (", group skip" if pattern[1] else "") for pattern in patterns}
    seconds = measure({names[pattern]: step(*pattern) for pattern in patterns}, options.repeats, options.device)
    dense_s, dense_flops = seconds[names[1, False]][0], attention_flops(tokens, options.text, options.width, 1)
    rows = []
    for pattern, name in names.items():
        share = attention_flops(tokens, options.text, options.width, pattern[0]) / dense_flops
        measured = seconds[name][0] / dense_s
        rows.append([name, seconds[name][0], measured, share, measured / share])
    print(
        f"{tokens} video and {options.text} text tokens, {heads} heads of 128, {options.dtype} on {options.device}, "
        f"{torch.get_num_threads()} threads, medians of {options.repeats}\n"
    )
    print(table(["", "seconds", "/ dense", "share of dense's arithmetic", "time / share"], rows))
    with torch.no_grad():
        rows = forward_rows(video, options)
    print("\n" + table(["dense, forward pass", "seconds", "/ torch's", "largest difference / largest number"], rows))


def forward_rows(tensors: list[Tensor], options: argparse.Namespace) -> list[list]:
    """A row for each implementation, with its result beside torch's; one that cannot run here says why."""
    rows: list[list] = []
    wanted, of_torch = attend(*tensors, None), 0.0
    for name in ("torch", "FA3", "FA4", "sage"):
        function = sage.attend if name == "sage" else attend
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(implementation(name, tensors[0]))
            except ConfigError as error:
                rows.append([name, f"not here: {str(error).splitlines()[0]}", "", ""])
                continue
            off = (function(*tensors, None) - wanted).abs().max() / wanted.abs().max()
            call = {name: lambda function=function: void(function(*tensors, None))}
            seconds = measure(call, options.repeats, options.device)[name][0]
        of_torch = of_torch or seconds
        rows.append([name, seconds, seconds / of_torch, off.item()])
    return rows


@contextlib.contextmanager
def implementation(name: str, q: Tensor) -> Iterator[None]:
    """Lets torch call this FlashAttention meanwhile; for "sage" checks what it needs."""
    if name == "sage":
        sage.check(q.device, q.dtype, q.shape[-1])
    if name not in ("FA3", "FA4"):
        yield
        return
    if q.device.type != "cuda":
        raise ConfigError("runs on CUDA")
    activate_flash_attention(name)
    from torch.nn.attention import restore_flash_attention_impl  # a torch that activated one has it

    try:
        yield
    finally:
        restore_flash_attention_impl()


if __name__ == "__main__":
    main()
