"""Merging a sharded checkpoint: time relative to `cat` and peak memory, for our way and the original's.

python benchmarks/convert.py [--size-gb 4] [--tensor-parallel 4] [--runs 3] [--folder DIR]

The checkpoint is bf16 and has the names and shapes of Open-Sora Plan v1.5, with as many blocks as fill the size. Each way
runs in a process of its own. The time is that of the work alone; the start of Python and torch is printed beside it.
"""

import argparse
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GIB = 2**30
_BLOCK_BYTES = 0.53e9  # of a block of v1.5 in bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-gb", type=float, default=4.0, help="size of the checkpoint, GiB (default 4)")
    parser.add_argument("--tensor-parallel", type=int, default=4, metavar="N", help="shards (default 4)")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs of each way; the median counts (default 3)"
    )
    parser.add_argument("--folder", help="where to write three times the size; default: a temporary folder")
    parser.add_argument("--only", choices=("make", "ours", "theirs"), help=argparse.SUPPRESS)  # a child process
    options = parser.parse_args()
    if options.only:
        child(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report(options, Path(folder))


def report(options, folder: Path) -> None:
    _, words = run(options, folder, "make")
    largest = int(words["largest"])
    print(
        f"{words['bytes']} bytes in {options.tensor_parallel} shards, {words['tensors']} tensors each, largest {largest}"
    )
    shards = sorted(folder.glob("run/iter_*/mp_rank_*/*.pt"))
    rows: dict[str, list[tuple[float, float, float]]] = {"cat": [], "cat, sync": [], "ours": [], "theirs": []}
    for _ in range(options.runs):  # ways take turns, so that a busy machine is unfair to none
        plain, synced = cat(shards, folder / "copy")
        rows["cat"].append((plain, 0, 0))
        rows["cat, sync"].append((synced, 0, 0))
        for way in ("ours", "theirs"):
            if way == "theirs" and rows["theirs"]:
                continue  # slow, and its memory does not change
            whole, words = run(options, folder, way)
            rows[way].append((float(words["seconds"]), float(words["peak"]), whole))
            shutil.rmtree(folder / way)
    base = {name: statistics.median(row[0] for row in rows[name]) for name in rows}
    print(f"{'way':<12}{'seconds':>9}{'/ cat':>8}{'/ cat, sync':>13}{'peak MB':>9}{'whole process':>15}")
    for name, found in rows.items():
        peak, whole = max(row[1] for row in found) / 1e6, statistics.median(row[2] for row in found)
        print(
            f"{name:<12}{base[name]:>9.2f}{base[name] / base['cat']:>8.2f}{base[name] / base['cat, sync']:>13.2f}"
            f"{peak:>9.0f}{whole:>14.1f}s"
        )
    allowed = largest * options.tensor_parallel + 300e6
    peak = max(row[1] for row in rows["ours"])
    print(
        f"time / cat: {base['ours'] / base['cat']:.2f} (goal 2)  peak: {peak / 1e6:.0f} MB (goal {allowed / 1e6:.0f} MB)"
    )


def run(options, folder: Path, way: str) -> tuple[float, dict[str, str]]:
    """Seconds of a child process, and the `key=value`s that it prints."""
    start = time.perf_counter()
    flags = ["--only", way, "--folder", str(folder)]
    flags += ["--size-gb", str(options.size_gb), "--tensor-parallel", str(options.tensor_parallel)]
    result = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stdout + result.stderr)
    line = result.stdout.splitlines()[-1]
    return time.perf_counter() - start, dict(word.split("=") for word in line.split())


def cat(shards: list[Path], target: Path) -> tuple[float, float]:
    """Seconds to copy the shards into one new file: until cat returns, and until the disk has it."""
    start = time.perf_counter()
    with open(target, "wb") as file:
        subprocess.run(["cat", *map(str, shards)], stdout=file, check=True)
    plain = time.perf_counter() - start
    subprocess.run(["sync", str(target)], check=True)
    synced = time.perf_counter() - start
    target.unlink()
    return plain, synced


def child(options) -> None:
    folder = Path(options.folder)
    if options.only == "make":
        make(folder / "run", options.size_gb * GIB, options.tensor_parallel)
        return
    start = time.perf_counter()
    if options.only == "ours":
        from mindspeed_mm.weights import merge_checkpoint

        start = time.perf_counter()
        merge_checkpoint(folder / "run", folder / "ours")
    else:
        import torch  # noqa: F401

        start = time.perf_counter()
        the_original_way(sorted((folder / "run").glob("iter_*/mp_rank_*/*.pt")), folder / "theirs")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"seconds={time.perf_counter() - start} peak={peak}")


def the_original_way(shards: list[Path], target: Path) -> None:
    """Load every shard whole, deep-copy the first, put joined tensors into the copy, save it at once."""
    import copy

    import torch

    from mindspeed_mm.families.sparse_ummdit import split

    # weights_only=False as it does; these files are our own.
    states = [torch.load(path, map_location="cpu", weights_only=False)["model"] for path in shards]
    whole = copy.deepcopy(states[0])
    for name, value in states[0].items():
        if value is None:  # Megatron's `_extra_state`
            continue
        dim = split(name)
        whole[name] = states[-1][name] if dim is None else torch.cat([state[name] for state in states], dim)
    target.mkdir()
    torch.save(whole, target / "model.pt")


def make(root: Path, size: float, count: int) -> None:
    """Shards of random bf16 weights with the names and shapes of v1.5."""
    import torch

    from mindspeed_mm.families import sparse_ummdit
    from mindspeed_mm.families.sparse_ummdit import SparseUMMDiTConfig
    from mindspeed_mm.files.reshard import Weights
    from mindspeed_mm.weights import targets

    blocks = max(6, round(size / _BLOCK_BYTES / 2) * 2)
    width = min(1.0, math.sqrt(size / (blocks * _BLOCK_BYTES)))  # for sizes that six blocks exceed
    config = SparseUMMDiTConfig(
        num_layers=(2, blocks - 4, 2),
        sparse_n=(1, 1, 1),
        double_ff=True,
        skip_connection=True,
        num_heads=max(1, round(24 * width / count)) * count,
        head_dim=128,
        in_channels=32,
        caption_channels=2048,
        pooled_projection_dim=1280,
        timestep_embed_dim=1024,
    )
    random = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    shapes = {name: parameter.shape for name, parameter in sparse_ummdit.parameters(config).items()}
    # Every parameter is the same few numbers over and over: of no memory, and on the disk as random as any.
    values = {name: _tiled(random, shape) for name, shape in shapes.items()}
    weights = Weights([values], sparse_ummdit.split, "random weights")
    todo = targets.megatron_directory(
        {"model": weights}, root, tensor_size=count, dialect=sparse_ummdit.FAMILY.dialect("OSP"), iteration=1
    )
    targets.execute(todo, {"model": weights}, "writing shards")
    pieces = todo.files[0].pieces
    print(f"bytes={todo.nbytes} tensors={len(pieces)} largest={max(piece.nbytes for piece in pieces)}")


def _tiled(random, shape):
    """A view of `shape` whose rows start at different places of `random`."""
    if math.prod(shape) <= random.numel():
        return random[: math.prod(shape)].view(shape)
    rows = math.prod(shape[1:])
    step = max(1, (random.numel() - rows) // shape[0])
    return random.as_strided(shape, (step, *random.new_empty(0).new_empty(shape[1:], device="meta").stride()))


if __name__ == "__main__":
    main()
