"""Device of a program, layout of its ranks, and how they are started: flags of every program with ranks."""

import dataclasses
from collections.abc import Mapping

from mindspeed_mm.schema import flag, flags_of


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    device: str = flag(
        "auto",
        "--device",
        choices=("auto", "cpu", "cuda", "npu"),
        help="device to run on; auto: the best available one",
    )
    mindspeed: str = flag("auto", "--mindspeed", choices=("auto", "on", "off"), help="NPU: use MindSpeed's adaptor")
    flash_attention: str = flag(
        "torch",
        "--flash-attention",
        choices=("torch", "FA3", "FA4"),
        help="CUDA: FlashAttention in 16 bits; torch: the one inside torch; FA3 and FA4 need a package of their own",
    )
    tensor_size: int = flag(
        1, "--tensor-model-parallel-size", at_least=1, at_most=2**16, help="ranks that share each layer"
    )
    sequence_parallel: bool = flag(
        False, "--sequence-parallel", help="also split activations over the tensor-parallel ranks"
    )
    context_size: int = flag(
        1, "--context-parallel-size", at_least=1, at_most=2**16, help="ranks that share each sequence"
    )
    context_algorithm: str = flag(
        "ulysses_cp_algo",
        "--context-parallel-algo",
        choices=("ulysses_cp_algo",),
        help="exchange heads for tokens (Ulysses), the only choice",
    )
    pipeline_size: int = flag(1, "--pipeline-model-parallel-size", at_least=1, help="must be 1")
    guidance_parallel: bool = flag(
        False, "--cfg-parallel", help="compute the two halves of guidance on two ranks; halves the data ranks"
    )
    timeout_minutes: float = flag(
        10.0,
        "--distributed-timeout-minutes",
        above=0,
        at_most=525_600,
        unit="minutes",
        help="time limit of one collective",
    )

    def problems(self):
        if self.pipeline_size != 1:
            yield (
                "pipeline_size",
                f"{self.pipeline_size}: must be 1; the long skips of the U-shaped model join its first and last blocks, "
                "so it is not cut into stages. Use --tensor-model-parallel-size",
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RanksConfig:
    """Processes that a program starts itself where no launcher did, and where they meet."""

    processes: int | None = flag(
        None,
        "--nproc",
        published=("--nproc_per_node",),
        at_least=1,
        at_most=2**16,
        help="processes to start on this machine, one per device; default: this one alone, or those that torchrun, srun "
        "or mpirun has started",
    )
    nodes: int | None = flag(
        None, "--nnodes", at_least=1, at_most=2**16, help="machines of the run; default: srun's, or 1"
    )
    node: int | None = flag(
        None, "--node-rank", at_least=0, at_most=2**16, help="number of this machine, from 0; default: srun's, or 0"
    )
    address: str | None = flag(
        None, "--master-addr", metavar="ADDRESS", help="address of machine 0; default: srun's first, or localhost"
    )
    port: int | None = flag(
        None,
        "--master-port",
        at_least=1,
        at_most=2**16 - 1,
        help="free port there; default: any free one on one machine, else 12345",
    )
    max_restarts: int = flag(
        0,
        "--max-restarts",
        at_least=0,
        at_most=10_000,
        help="how often all processes are started again after one was lost",
    )
    log_file: str | None = flag(
        None, "--log-file", metavar="FILE", help="write all that is printed to this file as well"
    )

    def problems(self):
        if self.processes is None:
            for name in ("nodes", "node", "address", "port", "log_file"):
                if getattr(self, name) is not None:
                    yield name, f"{getattr(self, name)}: only with --nproc, which starts the processes"
            if self.max_restarts:
                yield "max_restarts", f"{self.max_restarts}: only with --nproc, which starts the processes"
        if self.node is not None and self.node >= (self.nodes or 1):
            yield "node", f"{self.node}: must be below --nnodes {self.nodes or 1}"


def of_the_run(flags: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    """Flags that belong in a checkpoint: those of the run, not those of starting its processes."""
    starting = {flag.key for flag in flags_of(RanksConfig)}
    return tuple(sorted((name, value) for name, value in flags.items() if name not in starting))
