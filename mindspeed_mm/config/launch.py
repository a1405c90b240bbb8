"""Device of a program and layout of its ranks: flags of every program with ranks."""

import dataclasses

from mindspeed_mm.schema import flag


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    device: str = flag(
        "auto",
        "--device",
        choices=("auto", "cpu", "cuda", "npu"),
        help="device to run on; auto: the best available one",
    )
    mindspeed: str = flag("auto", "--mindspeed", choices=("auto", "on", "off"), help="NPU: use MindSpeed's adaptor")
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
