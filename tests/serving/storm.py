"""A storm on a server of stand-in samples: many clients at once, while it is killed, its disk is full, or readers are slow.

`benchmarks/api.py` makes its table with it; a small one is in the suite.
"""

import asyncio
import contextlib
import dataclasses
import random
import socket
import sqlite3
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import openai
from ranks import forked_from_server
from stand_in import content
from storm_server import World, server

_AGAIN = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)


@dataclasses.dataclass(slots=True)
class Outcome:
    """ids: of the videos by request. wrong: requests whose file is missing or not the expected one."""

    ids: dict[int, str] = dataclasses.field(default_factory=dict)
    wrong: list[int] = dataclasses.field(default_factory=list)
    accept_s: list[float] = dataclasses.field(default_factory=list)
    tries: int = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """The server's process; `kill` ends it as a power cut does, and starts it again."""

    def __init__(self, world: World):
        self.world = world
        self.process = forked_from_server(server, world)

    def kill(self, down_s: float = 0.0) -> None:
        self.process.kill()
        self.process.join()
        time.sleep(down_s)
        self.process = forked_from_server(server, self.world)

    def wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=5):
                return
            time.sleep(0.05)
        raise AssertionError("the server does not answer")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.world.port}"

    def figure(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"mindspeed_mm_{name} "))

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


async def storm(address: str, numbers: range, poll_s: float) -> Outcome:
    """Every number's request at once; each client goes on until it has its file."""
    outcome = Outcome()
    client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
    async with client:
        await asyncio.gather(*(_one(client, number, poll_s, outcome) for number in numbers))
    return outcome


async def _one(client: openai.AsyncOpenAI, number: int, poll_s: float, outcome: Outcome) -> None:
    async def create():
        began = time.monotonic()
        video = await client.videos.create(
            prompt=f"request {number}",
            extra_body={"seed": number},
            extra_headers={"Idempotency-Key": f"storm {number}"},
        )
        outcome.accept_s.append(time.monotonic() - began)
        return video

    video = await _until(create, poll_s, outcome)
    assert video.prompt == f"request {number}"
    outcome.ids[number] = video.id
    while video.status in ("queued", "in_progress"):
        await asyncio.sleep(poll_s * random.uniform(0.5, 1.5))
        video = await _until(lambda: client.videos.retrieve(outcome.ids[number]), poll_s, outcome)
    if video.status != "completed":
        outcome.wrong.append(number)
        return
    answer = await _until(lambda: client.videos.download_content(outcome.ids[number]), poll_s, outcome)
    if await answer.aread() != content(expected(number)):
        outcome.wrong.append(number)


async def _until(call, poll_s: float, outcome: Outcome):
    """The answer of a call that is repeated until the server is there and takes it."""
    while True:
        outcome.tries += 1
        try:
            return await call()
        except _AGAIN:
            await asyncio.sleep(poll_s * random.uniform(0.2, 1.0))


def expected(number: int) -> dict:
    """The line that a request becomes, with the settings of tests' small model."""
    return {"prompt": f"request {number}", "seed": number}


def killing(started: Started, moments: list[float]) -> threading.Thread:
    """Kills the server after each of these pauses: most of them begin when it answers, some while it starts."""

    def run() -> None:
        for pause_s in moments:
            if random.random() < 0.75:
                started.wait()
            time.sleep(pause_s)
            started.kill(down_s=random.uniform(0, 0.2))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def slow_clients(port: int, count: int) -> list[socket.socket]:
    """Connections that have sent half of a request, and send a byte now and then; close them to end it."""
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    found = []
    for number in range(count):
        one = socket.create_connection(("127.0.0.1", port))
        one.sendall(head if number % 2 else head[:40])
        found.append(one)
    return found


def made_twice(folder: Path) -> list[str]:
    """Samples whose work began again after their file was written."""
    written: set[str] = set()
    twice = []
    for line in (folder / "starts.log").read_text().splitlines():
        word, _, name = line.partition(" ")
        if word == "written":
            written.add(name)
        elif name in written:
            twice.append(name)
    return twice


def rows_of(folder: Path) -> Counter:
    """Number of jobs per Idempotency-Key, in the queue of a server that has ended."""
    return Counter(_column(folder, "repeat_key"))


def starts_of(folder: Path) -> list[int]:
    """How often each job was begun, in the queue of a server that has ended."""
    return _column(folder, "starts")


def _column(folder: Path, name: str) -> list:
    with contextlib.closing(sqlite3.connect(folder / "queue.sqlite")) as rows:
        return [value for (value,) in rows.execute(f"SELECT {name} FROM jobs ORDER BY number")]
