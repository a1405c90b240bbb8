"""Run a function on several gloo ranks from an ordinary test.

One pool of processes per number of ranks serves the whole session, since importing torch and starting gloo cost more
than most tests. A function runs on every rank as `function(*arguments)` and its results come back in rank order; it
must be importable (module level), because it is sent by name. The processes are forked from a server that has imported
torch and megatron-core already.
"""

import atexit
import contextlib
import gc
import logging
import multiprocessing
import os
import sys
import traceback
from multiprocessing import forkserver
from unittest import mock

import torch.distributed as dist
import torch.multiprocessing as mp

_POOLS: dict[int, "_Pool"] = {}
_TIMEOUT_S = 240


def run_ranks(function, world_size: int, *arguments) -> list:
    """Results of function(*arguments) on `world_size` ranks; an exception on any rank is raised here with its text."""
    pool = _POOLS.get(world_size)
    if pool is None or not pool.alive():
        pool = _POOLS[world_size] = _Pool(world_size)
    return pool.run(function, arguments)


def forked_from_server(function, *arguments) -> mp.Process:
    """A process that has run the imports of `rank_preload.py` already, and now runs function(*arguments)."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["rank_preload"])
    # With the folders that this process imports from; else the server would skip the imports, silently.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()
    process = context.Process(target=_as_a_program, args=(function, arguments))
    process.start()
    return process


def from_own_process(function, *arguments):
    """Result of function(*arguments) in a process of its own, for one that sets up torch's fake group."""
    ours, theirs = mp.Pipe()
    process = forked_from_server(_answer, theirs, function, arguments)
    assert ours.poll(_TIMEOUT_S), "no answer"
    ok, value = ours.recv()
    process.join()
    if not ok:
        raise RuntimeError(value)
    return value


def _answer(pipe, function, arguments) -> None:
    import torch

    from mindspeed_mm.platforms.cpu import CpuPlatform

    torch.set_num_threads(1)
    CpuPlatform().prepare()
    try:
        pipe.send((True, function(*arguments)))
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _as_a_program(function, arguments) -> None:
    # What a program starts its data workers by on Linux, and not what started this process: each would import torch.
    multiprocessing.set_start_method("fork", force=True)
    function(*arguments)


@contextlib.contextmanager
def log_lines(level: int = logging.INFO):
    """The package's log of this rank while inside, as a list of messages that grows."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("mindspeed_mm")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@atexit.register  # before multiprocessing's own, which waits for children
def close_pools() -> None:
    """End all processes; `conftest.py` calls it at the end of the session."""
    while _POOLS:
        _POOLS.popitem()[1].close()


class _Pool:
    def __init__(self, world_size: int):
        # Not a file: some tests limit the size that files may have.
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = mp.Pipe()
            self.pipes.append(ours)
            self.processes.append(forked_from_server(_serve, theirs, rank, world_size, self.store.port))

    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def run(self, function, arguments) -> list:
        for pipe in self.pipes:
            pipe.send((function, arguments))
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes):
            if failures or not pipe.poll(_TIMEOUT_S):
                # After one rank failed, the others may wait for it in a collective for ever.
                failures.append(f"rank {rank}: no answer")
                continue
            ok, value = pipe.recv()
            (results if ok else failures).append(value if ok else f"rank {rank}:\n{value}")
        if failures:
            self.close()
            raise RuntimeError("\n".join(failures))
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe, rank: int, world_size: int, port: int) -> None:
    import torch

    from mindspeed_mm.platforms.cpu import CpuPlatform

    torch.set_num_threads(1)
    CpuPlatform().prepare()
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
            continue  # the pool is ended
        dist.barrier()  # nobody leaves a group that another rank still reads from
        _leave_groups()


def _leave_groups() -> None:
    """Destroy what `ParallelContext.start` has made: each group has threads, and a session starts hundreds."""
    from mindspeed_mm.parallel.megatron import parallel_state

    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    gc.collect()  # networks with hooks are cycles, and hold their groups
