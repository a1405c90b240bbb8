"""Environment variables of a run, whoever starts it: the scripts, `mindspeed-mm`, torchrun, srun. A variable that is set wins.

Imports no torch: torch_npu and CANN read most of these when they are loaded, and `import torch` may load them.
"""

from collections.abc import MutableMapping
from pathlib import Path

# docs/ascend.md explains each.
OF_NPUS = {
    "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
    "ASCEND_GLOBAL_LOG_LEVEL": "3",
    "TASK_QUEUE_ENABLE": "1",
    "MULTI_STREAM_MEMORY_REUSE": "1",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    "COMBINED_ENABLE": "1",
    "CPU_AFFINITY_CONF": "1",
    "HCCL_CONNECT_TIMEOUT": "1800",
    "HCCL_WHITELIST_DISABLE": "1",
}
_BACKENDS = ("GLOO", "HCCL", "NCCL")
_HCCL_STEP = 68  # HCCL_EXEC_TIMEOUT is a multiple of it
_SHARE = 0.85  # of torch's limit, so that HCCL names who is missing before torch ends the process


def set_all(device: str, timeout_minutes: float, environment: MutableMapping[str, str], devices: Path = Path("/dev")):
    """Sets the variables that are missing. device: of --device; timeout_minutes: limit of a collective.

    SOCKET_IFNAME, the interface between the nodes, is handed to each backend.
    """
    interface = environment.get("SOCKET_IFNAME")
    if interface:
        for backend in _BACKENDS:
            environment.setdefault(f"{backend}_SOCKET_IFNAME", interface)
    if device == "npu" or (device == "auto" and has_npu(devices)):
        for name, value in OF_NPUS.items():
            environment.setdefault(name, value)
        environment.setdefault("HCCL_EXEC_TIMEOUT", str(exec_timeout_s(timeout_minutes)))


def exec_timeout_s(timeout_minutes: float) -> int:
    """Seconds that HCCL lets a collective wait: below torch's limit, and a multiple of 68."""
    return max(1, int(timeout_minutes * 60 * _SHARE) // _HCCL_STEP) * _HCCL_STEP


def has_npu(devices: Path = Path("/dev")) -> bool:
    """True if there are device files of NPUs. Asking torch_npu instead would import it and, through it, CANN."""
    return any(devices.glob("davinci[0-9]*"))
