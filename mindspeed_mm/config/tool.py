"""Config of the tools around a run: tools.json (`--mm-tool`), with the published keys."""

import dataclasses
from typing import ClassVar

from mindspeed_mm.schema import option


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StaticProfile:
    """`static_param`: profile the steps start_step <= step < end_step, counted from 1."""

    save_path: str = "./profiling"  # Chrome/TensorBoard traces are written here
    start_step: int = option(10, at_least=1)
    end_step: int = option(11, at_least=1)
    with_stack: bool = False
    with_memory: bool = False
    record_shapes: bool = False
    with_cpu: bool = True
    level: str = option("level1", choices=("level0", "level1", "level2"))  # NPU only, like the next two
    aic_metrics_type: str = option("PipeUtilization", choices=("PipeUtilization", "ArithmeticUtilization"))
    data_simplification: bool = False

    def problems(self):
        if self.start_step < 1:
            yield "start_step", f"{self.start_step}: steps are counted from 1"
        if self.end_step <= self.start_step:
            yield "end_step", f"{self.end_step} is not after start_step {self.start_step}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DynamicProfile:
    """`dynamic_param`: NPU only; a file in this folder starts and stops torch_npu's profiler."""

    config_path: str = "./profile_config"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """`profile`."""

    enable: bool = False
    profile_type: str = option("static", choices=("static", "dynamic"))
    ranks: tuple[int, ...] = option((0,), at_least=-1)  # [-1]: all
    static_param: StaticProfile = StaticProfile()
    dynamic_param: DynamicProfile = DynamicProfile()

    def includes(self, rank: int) -> bool:
        return self.enable and (rank in self.ranks or -1 in self.ranks)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToolConfig:
    """tools.json."""

    profile: ProfileConfig = ProfileConfig()

    ACCEPTED: ClassVar[dict[str, str]] = {"memory_profile": "with_memory of static_param records memory"}
