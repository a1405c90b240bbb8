"""Ranks are told by torchrun's variables, whatever has started them; --nproc starts them where nothing did."""

import pytest

from mindspeed_mm import launchers
from mindspeed_mm.config.launch import RanksConfig
from mindspeed_mm.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "node[003-004]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "job-1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[003-006,9],gpu1", "node003"),
        ("gpu1,node[1-2]", "gpu1"),
        ("rack[2-3]n[07,09]-ib,other", "rack2n07-ib"),
        ("a.b-c", "a.b-c"),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert launchers.first_host(nodes) == first


def test_srun():
    environment = dict(SLURM)
    assert launchers.adopt(environment) == "srun"
    wanted = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node003"}
    assert wanted.items() <= environment.items()
    others = [launchers._of_slurm({**SLURM, "SLURM_PROCID": str(rank), "SLURM_NODEID": "0"}) for rank in range(16)]
    assert {found["MASTER_PORT"] for found in others} == {environment["MASTER_PORT"]}
    assert 20_000 <= int(environment["MASTER_PORT"]) < 32_000
    assert launchers._of_slurm({**SLURM, "SLURM_JOB_ID": "18"})["MASTER_PORT"] != environment["MASTER_PORT"]


def test_mpirun():
    for variables, rank in ((OPEN_MPI, "3"), (HYDRA, "1")):
        environment = dict(variables)
        assert launchers.adopt(environment) == "mpirun"
        assert (environment["RANK"], environment["MASTER_ADDR"]) == (rank, "localhost")
    # started through srun, one daemon per machine, whose variables the ranks see as well
    environment = {**SLURM, **OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "there"}
    assert launchers.adopt(environment) == "mpirun"
    assert (environment["RANK"], environment["MASTER_ADDR"]) == ("3", "there")
    # on several machines only the user knows where they meet
    environment = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    launchers.adopt(environment)
    assert "MASTER_ADDR" not in environment


def test_what_is_no_rank():
    batch_script = {key: value for key, value in SLURM.items() if "STEP" not in key}
    for environment in ({}, batch_script, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}):
        before = dict(environment)
        assert launchers.adopt(environment) is None and environment == before
    environment = {"RANK": "1", "WORLD_SIZE": "2", **SLURM}  # torchrun in a job of Slurm
    assert launchers.adopt(environment) == "torchrun" and environment["RANK"] == "1"


def test_who_starts_ranks():
    two = RanksConfig(processes=2)
    assert not launchers.is_to_start(RanksConfig(), None, {})
    assert launchers.is_to_start(two, None, {})
    assert not launchers.is_to_start(two, "torchrun", {"LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="--nproc 2: torchrun has started 4 processes here"):
        launchers.is_to_start(two, "torchrun", {"LOCAL_WORLD_SIZE": "4"})
    environment = dict(SLURM)
    with pytest.raises(ConfigError, match="--nproc 2: srun has started 8 processes here"):
        launchers.is_to_start(two, launchers.adopt(environment), environment)
    environment = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    assert launchers.is_to_start(two, launchers.adopt(environment), environment)
    assert launchers.world_size(two, environment) == 4


@pytest.fixture
def started(monkeypatch):
    """The words that torchrun gets."""
    calls: list[list[str]] = []
    monkeypatch.setattr(launchers.torchrun, "main", lambda flags, words: calls.append([*flags, *words]) or 0)
    monkeypatch.setenv("PYTHONPATH", "")

    def start(ranks: RanksConfig, **environment: str) -> str:
        assert launchers.start_ranks(ranks, ["train", "--lr", "1"], environment) == 0
        return " ".join(calls.pop())

    return start


def test_where_started_ranks_meet(started):
    end = "-m mindspeed_mm train --lr 1"
    alone = "--nproc_per_node 2 --nnodes 1 --local-addr localhost --max-restarts 0"
    assert started(RanksConfig(processes=2)) == f"{alone} {end}"
    several = RanksConfig(processes=8, nodes=2, node=1, address="a", max_restarts=3, log_file="x.log")
    words = "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr a --master_port 12345 --max-restarts 3"
    assert started(several) == f"--log-file x.log {words} {end}"
    one_each = {**SLURM, "SLURM_STEP_NUM_TASKS": "2"}
    words = started(RanksConfig(processes=8), **one_each)
    assert "--nnodes 2 --node_rank 1 --master_addr node003 --master_port 12345" in words
    for missing, name in (
        (RanksConfig(processes=8, nodes=2, node=0), "--master-addr"),
        (RanksConfig(processes=8, nodes=2, address="a"), "--node-rank"),
    ):
        with pytest.raises(ConfigError, match=f"--nnodes 2: give {name}"):
            started(missing)
