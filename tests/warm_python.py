"""A `python` for scripts under test: its programs start from a server that has imported what they import.

A script that starts ten programs would otherwise import torch ten times, which is most of its time. Programs given as a
file or by -m are forked from the server, with the caller's arguments, variables, folder, streams and signals; any other
command line is Python's own. What a program would see otherwise: its process is no child of its caller.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from ranks import forked_from_server

_ROOT = Path(__file__).resolve().parents[1]
_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
arguments = [argument for argument in sys.argv[1:] if argument != "-u"]
if not arguments or (arguments[0] != "-m" or arguments[1] in ("pip", "venv")) and not os.path.isfile(arguments[0]):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
order = json.dumps([os.path.abspath(sys.argv[0]), arguments, dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(order).to_bytes(8, "big")], [1, 2])
server.sendall(order)
program = int(server.recv(16))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, frame: os.kill(program, number))
code = int(server.recv(16))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def warm(folder: Path) -> Iterator[Path]:
    """FOLDER/bin/python, whose programs start from a server that runs until the end of this context."""
    address = folder / "server"
    ours, theirs = multiprocessing.Pipe()
    server = forked_from_server(_serve, str(address), theirs)
    theirs.close()
    assert ours.poll(120), "the server of warm_python does not start"
    ours.recv()
    client = folder / "bin" / "python"
    client.parent.mkdir()
    client.write_text(_CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    yield client
    ours.close()  # the server ends
    server.join()


def _serve(address: str, starter) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    starter.send("ready")
    running: dict = {}  # a program's sentinel -> its process and its caller's connection
    while True:
        callers = {caller.fileno(): sentinel for sentinel, (_, caller) in running.items()}
        for ready in multiprocessing.connection.wait([listener.fileno(), starter, *running, *callers]):
            if ready is starter:  # closed: the tests have ended
                for process, _ in running.values():
                    process.kill()
                return
            if ready == listener.fileno():
                process, caller = _begin(listener.accept()[0])
                running[process.sentinel] = process, caller
            elif ready in callers and callers[ready] in running:  # closed: the caller was killed
                process, caller = running.pop(callers[ready])
                process.kill()
                caller.close()
            elif ready in running:
                process, caller = running.pop(ready)
                process.join()
                caller.sendall(b"%16d" % process.exitcode)
                caller.close()


def _begin(caller: socket.socket):
    size, streams, _, _ = socket.recv_fds(caller, 8, 2)
    order = b""
    while len(order) < int.from_bytes(size, "big"):
        order += caller.recv(2**16)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(*json.loads(order), streams))
    process.start()
    for stream in streams:
        os.close(stream)
    caller.sendall(b"%16d" % process.pid)
    return process, caller


def _run(python: str, arguments: list[str], variables: dict[str, str], folder: str, streams: list[int]) -> None:
    for target, stream in enumerate(streams, start=1):
        os.dup2(stream, target)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.executable = python
    own = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    installed = [path for path in sys.path if path and not _is_ours(Path(path))]
    if arguments[0] == "-m":
        sys.path[:] = [folder, *own, *installed]
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [str(Path(arguments[0]).resolve().parent), *own, *installed]
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _is_ours(path: Path) -> bool:
    """True for the folders that the tests import from, but not for those of an environment inside the repository."""
    return (path == _ROOT or _ROOT in path.parents) and Path(sys.prefix) not in path.parents
