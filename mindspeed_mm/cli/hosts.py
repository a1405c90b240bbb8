"""`mindspeed-mm doctor --hosts`: whether machines reach each other, see the same folders, and can run a collective.

Each machine listens at the port, asks all machines, and tells them a file that it has made in each folder. A machine answers about
the folders that it was given itself, and about files of these names alone.
"""

import contextlib
import dataclasses
import json
import re
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mindspeed_mm import atomic
from mindspeed_mm.cli.findings import ERROR, OK, WARNING, Finding
from mindspeed_mm.platforms import variables

_MARKER = re.compile(r"\.doctor-[0-9a-f]{16}")
_MOST_BYTES = 2**16
_CONNECT_S = 5.0
_COLLECTIVE_S = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a machine says. sees: folder -> whether it sees the asker's file there; a folder it was not given is missing."""

    host: str
    sees: dict[str, bool]
    seconds: float


def examine_hosts(hosts: Sequence[str], port: int, folders: Sequence[str], wait_s: float) -> Iterator[Finding]:
    """Findings about every machine and folder. wait_s: how long the other machines may take to start the same command."""
    marker = f".doctor-{secrets.token_hex(8)}"
    until = time.monotonic() + wait_s
    with contextlib.ExitStack() as stack:
        try:
            asked = stack.enter_context(_listening(port, folders))
        except OSError as error:
            yield Finding(ERROR, "hosts", f"port {port} cannot be used here ({error.strerror})", "give another --port")
            return
        marked = [folder for folder in folders if stack.enter_context(_marked(Path(folder), marker))]
        for host in hosts:
            yield from _of_host(host, port, marked, marker, until)
        while len(asked) < len(hosts) and time.monotonic() < until:  # the others may not have asked this machine yet
            time.sleep(0.1)


def _of_host(host: str, port: int, folders: Sequence[str], marker: str, until: float) -> Iterator[Finding]:
    try:
        answer = _ask_until(host, port, folders, marker, until)
    except socket.gaierror:
        yield Finding(ERROR, host, "no machine has this name", "give an address that every machine can resolve")
        return
    except ConnectionRefusedError:
        advice = f"run the same line on {host} at the same time; if you did, see its firewall"
        yield Finding(WARNING, host, f"nothing listens at port {port}", advice)
        return
    except OSError as error:
        reason = error.strerror or type(error).__name__
        advice = "open the port between the machines, and see SOCKET_IFNAME in docs/ascend.md"
        yield Finding(ERROR, host, f"cannot be reached at port {port} ({reason})", advice)
        return
    except ValueError:
        yield Finding(ERROR, host, f"another program listens at port {port}", "give another --port, the same on all")
        return
    yield Finding(OK, host, f"{answer.host} answers at port {port} in {1000 * answer.seconds:.1f} ms")
    for folder in folders:
        if folder not in answer.sees:
            yield Finding(WARNING, host, f"was not asked to look at {folder}", "give it --folders there, too")
        elif answer.sees[folder]:
            yield Finding(OK, host, f"sees {folder} as this machine does")
        else:
            yield Finding(
                ERROR, host, f"{folder} is another folder there", "mount the same file system on all machines"
            )


def _ask_until(host: str, port: int, folders: Sequence[str], marker: str, until: float) -> Answer:
    """Asks until the machine listens and sees all files: a shared file system may take seconds to show a new one."""
    while True:
        try:
            answer = _ask(host, port, folders, marker)
            if all(answer.sees.values()) or time.monotonic() > until:
                return answer
        except socket.gaierror:
            raise
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def _ask(host: str, port: int, folders: Sequence[str], marker: str) -> Answer:
    """Raises OSError if the machine cannot be reached, ValueError if the answer is not one of a doctor."""
    began = time.perf_counter()
    with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
        connection.sendall(json.dumps({"marker": marker, "folders": list(folders)}).encode() + b"\n")
        said = json.loads(connection.makefile("rb").readline(_MOST_BYTES))
    if not isinstance(said, dict) or not isinstance(said.get("sees"), dict) or "doctor" not in said:
        raise ValueError("not a doctor")
    sees = {folder: bool(said["sees"][folder]) for folder in folders if folder in said["sees"]}
    return Answer(str(said["doctor"])[:80], sees, time.perf_counter() - began)


@contextlib.contextmanager
def _listening(port: int, folders: Sequence[str]):
    """Answers other machines in a thread; gives the marker of each that has asked, in a set that grows."""
    asked: set[str] = set()

    class Handler(socketserver.StreamRequestHandler):
        timeout = _CONNECT_S

        def handle(self) -> None:
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError
            ):  # whatever is sent, this machine goes on
                said = json.loads(self.rfile.readline(_MOST_BYTES))
                marker = said["marker"] if _MARKER.fullmatch(said["marker"]) else ""
                wanted = [folder for folder in said["folders"] if folder in folders and marker]
                sees = {folder: Path(folder, marker).is_file() for folder in wanted}
                self.wfile.write(json.dumps({"doctor": socket.gethostname(), "sees": sees}).encode() + b"\n")
                asked.add(marker)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def _marked(folder: Path, marker: str):
    """Puts a file into the folder and takes it away again; False if it cannot be written, which another line says."""
    try:
        atomic.write_text(folder / marker, "mindspeed-mm doctor\n")
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            (folder / marker).unlink()


def examine_collectives() -> Iterator[Finding]:
    """A sum over two ranks of this machine for each backend that it has devices for."""
    import torch

    kinds = {"cpu": "gloo"}
    if torch.cuda.device_count() > 1:
        kinds["cuda"] = "NCCL"
    if variables.has_npu():
        kinds["npu"] = "HCCL"
    for device, backend in kinds.items():
        began = time.monotonic()
        fault = _fault_of_collective(device)
        if fault is None:
            yield Finding(OK, backend, f"two ranks here have summed a tensor in {time.monotonic() - began:.0f} s")
        else:
            yield Finding(
                ERROR, backend, f"two ranks here cannot sum a tensor: {fault}", "see GLOO_SOCKET_IFNAME and the driver"
            )


def _fault_of_collective(device: str) -> str | None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mindspeed_mm.parallel.reach", device, str(port)]
    root = Path(__file__).resolve().parents[2]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    until = time.monotonic() + _COLLECTIVE_S
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=max(0.1, until - time.monotonic()))
            if rank.returncode:
                return (errors.strip().splitlines() or [f"exit code {rank.returncode}"])[-1][:200]
    except subprocess.TimeoutExpired:
        return f"nothing happened for {_COLLECTIVE_S:.0f} s"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return None
