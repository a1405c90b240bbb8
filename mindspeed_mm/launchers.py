"""What has started this process: torchrun, srun, mpirun, or a user, for whom ranks are started here.

Ranks are told by torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...), whatever has started them.
"""

import os
import re
import zlib
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from mindspeed_mm import torchrun
from mindspeed_mm.config.launch import RanksConfig
from mindspeed_mm.errors import ConfigError

PORT_OF_NODES = 12345  # where several machines meet if nothing else is said
_PORTS = range(20_000, 32_000)  # below those that Linux gives to connections


def adopt(environment: MutableMapping[str, str]) -> str | None:
    """Sets torchrun's variables from those of mpirun or srun. Returns what has started this rank: "torchrun", "mpirun",
    "srun", or None.

    A single process is nobody's rank. mpirun counts before srun, which it may use for its own processes. On several
    machines mpirun does not say where the ranks meet: MASTER_ADDR is the user's then.
    """
    if "RANK" in environment:
        return "torchrun"
    for name, read in (("mpirun", _of_mpi), ("srun", _of_slurm)):
        found = read(environment)
        if found is not None and found["WORLD_SIZE"] != "1":
            for variable, value in found.items():
                environment.setdefault(variable, value)
            return name
    return None


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str] | None:
    """SLURM_STEP_NUM_TASKS is there in srun's processes, not in a batch script itself."""
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PROCID" not in environment:
        return None
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": _first_number(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": _port(f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"),
    }


def _of_mpi(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Open MPI, and MPICH or Intel MPI (hydra)."""
    if "OMPI_COMM_WORLD_RANK" in environment:
        rank, size, local, on_machine = (
            environment[f"OMPI_COMM_WORLD_{name}"] for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        )
    elif "PMI_RANK" in environment and "MPI_LOCALRANKID" in environment:
        rank, size = environment["PMI_RANK"], environment["PMI_SIZE"]
        local, on_machine = environment["MPI_LOCALRANKID"], environment["MPI_LOCALNRANKS"]
    else:
        return None
    # The same for all ranks of a job: its name, or on one machine the process that has started them all.
    job = environment.get("PMIX_NAMESPACE", str(os.getppid()) if size == on_machine else None)
    found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": on_machine}
    found["MASTER_PORT"] = str(PORT_OF_NODES) if job is None else _port(job)
    return {**found, "MASTER_ADDR": "localhost"} if size == on_machine else found


def first_host(nodes: str) -> str:
    """The first of Slurm's list of machines: node[003-006,9],gpu1 -> node003."""
    first = re.findall(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def _first_number(text: str) -> str:
    """8(x2),4 -> 8."""
    return re.findall(r"^\d*", text)[0] or "1"


def _port(job: str) -> str:
    """A port that all ranks of a job compute alike, and other jobs seldom."""
    return str(_PORTS[zlib.crc32(job.encode()) % len(_PORTS)])


def start_ranks(ranks: RanksConfig, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Starts `mindspeed-mm WORDS` on `ranks.processes` ranks here and waits. Returns the exit code."""
    nodes, node, address = _machines(ranks, environment)
    if nodes > 1 or ranks.port is not None:
        meeting = ["--nnodes", nodes, "--node_rank", node, "--master_addr", address or "localhost"]
        meeting += ["--master_port", ranks.port or PORT_OF_NODES]
    else:
        meeting = ["--nnodes", 1, "--local-addr", "localhost"]
    log = ["--log-file", ranks.log_file] if ranks.log_file is not None else []
    restarts = ["--max-restarts", ranks.max_restarts]
    root = Path(__file__).resolve().parents[1]
    if (root / "setup.py").is_file():  # a checkout that is not installed; the ranks have to find it, too
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [*log, "--nproc_per_node", ranks.processes, *meeting, *restarts, "-m", "mindspeed_mm"]
    return torchrun.main([str(word) for word in command], words)


def world_size(ranks: RanksConfig, environment: Mapping[str, str]) -> int:
    """Number of ranks on all machines, of which `ranks.processes` are started here."""
    assert ranks.processes is not None, "the caller starts processes"
    return _machines(ranks, environment)[0] * ranks.processes


def is_to_start(ranks: RanksConfig, launcher: str | None, environment: Mapping[str, str]) -> bool:
    """True if this process is to start ranks. launcher: what has started it, from `adopt`.

    Raises ConfigError if both --nproc and a launcher say how many there are, and differ.
    """
    if ranks.processes is None:
        return False
    if launcher is None or (launcher == "srun" and _one_on_each_machine(environment)):
        return True
    here = environment.get("LOCAL_WORLD_SIZE")
    if here is not None and int(here) != ranks.processes:
        raise ConfigError(
            f"--nproc {ranks.processes}: {launcher} has started {here} processes here; leave --nproc out, or start one "
            "process on each machine"
        )
    return False


def _one_on_each_machine(environment: Mapping[str, str]) -> bool:
    return environment.get("SLURM_STEP_NUM_TASKS") == environment.get("SLURM_STEP_NUM_NODES")


def _machines(ranks: RanksConfig, environment: Mapping[str, str]) -> tuple[int, int, str | None]:
    """Number of machines, number of this one, address of the first one."""
    if ranks.nodes is None and "SLURM_STEP_NUM_NODES" in environment and _one_on_each_machine(environment):
        address = ranks.address or first_host(environment["SLURM_STEP_NODELIST"])
        return int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_NODEID"]), address
    nodes, node = ranks.nodes or 1, ranks.node or 0
    if nodes > 1 and ranks.address is None:
        raise ConfigError(f"--nnodes {nodes}: give --master-addr, the address of machine 0, the same on every machine")
    if nodes > 1 and ranks.node is None:
        raise ConfigError(f"--nnodes {nodes}: give --node-rank, the number of this machine, from 0 to {nodes - 1}")
    return nodes, node, ranks.address
