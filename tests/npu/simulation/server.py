"""A process in which NPUs are simulated: it has loaded the stand-ins and torch_npu, and forks a child per request.

A request is a function, named by its module, and its arguments; it runs on `ranks` children, each with its own simulated
NPU, and its results come back in rank order. Forking after the imports costs milliseconds, and no request sees what
another left behind: neither patches nor process groups.
"""

import faulthandler
import importlib.util
import os
import pickle
import socket
import subprocess
import sys
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from simulation import stand_ins, wheel

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = (
    "tests/npu",
    "tests/parity",
    "tests/training",
    "tests/config",
    "tests/optim",
    "tests",
    "examples/quickstart",
    "",
)
TIMEOUT_S = 240
NPUS = 8


class Simulation:
    """The pytest side: starts the server, and runs functions in it."""

    def __init__(self):
        torch = Path(importlib.util.find_spec("torch").origin).parent
        folder = wheel.install()
        libraries = stand_ins.libraries(folder / "torch_npu", torch)
        ours, theirs = Pipe()
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
            "PYTHONPATH": os.pathsep.join([*(str(ROOT / name) for name in FOLDERS), str(folder)]),
            "PYTHONWARNINGS": "ignore",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # torch_npu would otherwise be loaded with torch, before the stand-ins
            "TASK_QUEUE_ENABLE": "0",  # kernels are launched by the thread that asks for them: the trace is in order
            "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:False",  # its calls have no stand-ins
            "CPU_AFFINITY_CONF": "0",  # all simulated NPUs share these cores
            "SIMULATED_NPUS": str(NPUS),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "simulation.server", str(theirs.fileno()), str(libraries)]
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], cwd=ROOT)
        theirs.close()
        self._pipe = ours

    def run(self, function, *arguments, ranks: int = 1) -> list:
        """Results of function(*arguments) on each rank; what a rank raised is raised here with its traceback."""
        self._pipe.send_bytes(pickle.dumps((function, arguments, ranks)))
        results = pickle.loads(self._pipe.recv_bytes())
        failures = [f"rank {rank}:\n{value}" for rank, (ok, value) in enumerate(results) if not ok]
        if failures:
            raise AssertionError("on the simulated NPU\n" + "\n".join(failures))
        return [value for _, value in results]

    def one(self, function, *arguments):
        """The result of function(*arguments) on one rank."""
        return self.run(function, *arguments)[0]

    def close(self) -> None:
        self._pipe.close()
        self._process.wait(timeout=20)


def main() -> None:
    """Serve until the other side hangs up."""
    pipe = Connection(int(sys.argv[1]))
    library = stand_ins.load(Path(sys.argv[2]))
    import torch
    import torch_npu  # noqa: F401

    from simulation import trace

    torch.set_num_threads(1)
    trace.use(library)
    import torch._dynamo  # used by dispatch modes; imported here, it is not imported by every child
    import transformers.models.clip.modeling_clip
    import transformers.models.t5.modeling_t5  # noqa: F401

    from mindspeed_mm.platforms.npu import NpuPlatform

    NpuPlatform("off").prepare()
    import mindspeed_mm.cli.training
    import mindspeed_mm.training.build  # noqa: F401

    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            os._exit(0)  # torch_npu's own shutdown waits for threads of a device that was never opened here
        pipe.send_bytes(pickle.dumps(_serve(request)))


def _serve(request: bytes) -> list[tuple[bool, object]]:
    ranks = pickle.loads(request)[2]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes, children = [], []
    for rank in range(ranks):
        ours, theirs = Pipe(duplex=False)
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
            os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
            _child(request, theirs)
        theirs.close()
        pipes.append(ours)
        children.append(child)
    results: list[tuple[bool, object]] = [(False, "no answer")] * ranks
    waiting = list(pipes)
    while waiting and (ready := wait(waiting, TIMEOUT_S)):
        for pipe in ready:
            waiting.remove(pipe)
            try:
                results[pipes.index(pipe)] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                results[pipes.index(pipe)] = (False, "the process died")
        if not all(results[pipes.index(pipe)][0] for pipe in ready):
            break  # the others may wait for it in a collective for ever
    for child in children:
        _end(child)
    return results


def _child(request: bytes, pipe: Connection) -> None:
    faulthandler.enable()
    try:
        function, arguments, _ = pickle.loads(request)
        answer = pickle.dumps((True, function(*arguments)))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    pipe.send_bytes(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end(child: int) -> None:
    os.kill(child, 9)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
