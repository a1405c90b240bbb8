"""What a checkpoint costs each rank: pause of the training, memory, bytes written and read.

    python benchmarks/saving.py [--ranks 4] [--tensor 1] [--width 512] [--tree DIR]

The ranks are processes of this machine with gloo, so seconds hold for its disk alone. Bytes and memory are those of a rank.
`pause` is the time until training goes on, `in all` the time until the checkpoint is complete. `memory` is the highest resident
memory during the save above that before it. `read` is what a resume reads from the disk, after the files have left the cache.
"""

import argparse
import dataclasses
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from table import table

MIB = 2**20
CASES = (("torch", False), ("torch", True), ("torch_dist", False), ("torch_dist", True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="repository to measure")
    parser.add_argument("--ranks", type=int, default=4, help="number of processes")
    parser.add_argument("--tensor", type=int, default=1, help="tensor parallel size")
    parser.add_argument("--width", type=int, default=512, help="channels of the network")
    parser.add_argument("--folder", type=Path, default=None, help="where checkpoints are written, and deleted")
    options = parser.parse_args()
    import torch.multiprocessing as mp

    answers = mp.get_context("spawn").SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        mp.spawn(rank_of, (options, port, folder, answers), options.ranks)
        found = dict(answers.get() for _ in range(options.ranks))
    print(
        f"{found[0]['parameters']:,} parameters on a TP rank, bf16, with AdamW and EMA; {options.ranks} ranks, ", end=""
    )
    print(f"TP {options.tensor}.\n")
    header = ["format", "async", "pause s", "in all s", "memory MiB by rank", "written MiB by rank", "read MiB by rank"]
    print(table(header, [row(case, [found[rank][case] for rank in range(options.ranks)]) for case in CASES]))


def row(case: tuple[str, bool], costs: list[dict[str, float]]) -> list[object]:
    def each(key: str) -> str:
        return ", ".join(f"{cost[key] / MIB:.0f}" for cost in costs)

    slowest = [max(cost[key] for cost in costs) for key in ("pause", "in all")]
    return [case[0], "yes" if case[1] else "no", *slowest, each("memory"), each("written"), each("read")]


def rank_of(rank: int, options: argparse.Namespace, port: int, folder: str, answers) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(options.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    sys.path[:0] = [str(options.tree), str(options.tree / "tests"), str(options.tree / "tests" / "training")]
    import torch
    from rank_runs import DENOISER, Layout, Run

    from mindspeed_mm.config.run import CheckpointConfig
    from mindspeed_mm.platforms.cpu import CpuPlatform

    torch.set_num_threads(1)
    CpuPlatform().prepare()
    found: dict = {}
    for case in CASES:
        save = Path(folder) / f"{case[0]}{case[1]}"
        settings = CheckpointConfig(save=str(save), format=case[0], in_background=case[1])
        layout = Layout(tensor=options.tensor, dtype="bf16")
        config = dataclasses.replace(
            DENOISER, num_heads=8, head_dim=options.width // 8, num_layers=(1, 1, 1), sparse_n=(1, 2, 1)
        )
        run = Run(layout, settings, denoiser=config)
        run.steps(1)
        found["parameters"] = sum(parameter.numel() for parameter in run.network.parameters())
        found[case] = cost_of(run, save)
        if rank == 0:
            print(case, found[case], file=sys.stderr, flush=True)
        run.parallel.stop()
    answers.put((rank, found))


def cost_of(run, save: Path) -> dict[str, float]:
    import torch.distributed as dist

    dist.barrier()
    before, written = resident(), io_of("write_bytes")
    with HighestMemory() as memory:
        start = time.perf_counter()
        run.saver.save()
        pause = time.perf_counter() - start
        run.saver.complete()
        in_all = time.perf_counter() - start
    written = io_of("write_bytes") - written
    dist.barrier()
    forget(save)
    dist.barrier()
    read = io_of("read_bytes")
    run.saver.resume(save)
    read = io_of("read_bytes") - read
    return {"pause": pause, "in all": in_all, "memory": memory.peak - before, "written": written, "read": read}


class HighestMemory:
    """The highest resident memory inside, looked at every 2 ms."""

    def __enter__(self) -> "HighestMemory":
        self.peak, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Private and shared memory of this process in bytes, without mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def io_of(key: str) -> int:
    """Bytes that this process has caused to be written to, or read from, disks."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())[key])


def forget(folder: Path) -> None:
    """Drops the files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
