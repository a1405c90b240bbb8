"""Storms on `mindspeed-mm serve --api`: what is lost or made twice, how long the queue takes, how memory grows.

    python benchmarks/api.py                     # all rows, some minutes
    python benchmarks/api.py --rows killed full  # some of them
    python benchmarks/api.py --resume            # the real pipeline of a tiny model, killed and started again

The storms use stand-in samples (`tests/serving/stand_in.py`) and OpenAI's client. A request is lost if its client has no
file, or another one than the same request gives without a storm; it is duplicated if its Idempotency-Key has two jobs, or
if its work began again after its file was written.
"""

import argparse
import asyncio
import contextlib
import hashlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT / "tests" / "serving")]

from table import table  # noqa: E402

ROWS = {
    "calm": "nothing happens",
    "killed": "kill -9 at random moments",
    "full": "disk full for half of the time",
    "slow": "slow clients beside it",
    "thousand": "1,000 requests, 50 at once",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--requests", type=int, default=200, help="at once")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--slow", type=int, default=100, help="slow clients")
    parser.add_argument("--resume", action="store_true", help="the real pipeline instead of the storms")
    parser.add_argument("--jobs", type=int, default=6, help="of --resume")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        from sampling_world import write_world

        (Path(name) / "world").mkdir()
        world = write_world(Path(name) / "world")
        if options.resume:
            print(resumed(world, Path(name), options.jobs, options.kills))
            return
        rows = []
        for row in options.rows:
            rows.append(of_storm(row, world / "sample.json", Path(name), options))
            print(*rows[-1], flush=True)
    head = ["storm", "requests", "kills", "calls", "lost", "duplicated", "accepted p50 / p95, ms"]
    print(table([*head, "queue p50 / p95, ms", "memory before / after, MiB", "s"], rows))


def of_storm(row: str, sample_json: Path, place: Path, options: argparse.Namespace) -> list:
    """A row of the table."""
    from storm import Started, World, free_port, killing, made_twice, rows_of, slow_clients, storm
    from storm_server import OPERATIONS

    folder = place / row / "videos"
    folder.mkdir(parents=True)
    full_every_s = 2.0 if row == "full" else None
    server = Started(World(sample_json, folder, free_port(), 0.001 if row == "thousand" else 0.01, 2000, full_every_s))
    server.wait()
    kills = options.kills if row == "killed" else 0
    slow = slow_clients(server.world.port, options.slow) if row == "slow" else []
    count = 1000 if row == "thousand" else options.requests
    before, began = server.figure("resident_bytes"), time.monotonic()
    killer = killing(server, [random.uniform(0, 1) for _ in range(kills)])
    at_once = 50 if row == "thousand" else count
    outcomes = [
        asyncio.run(storm(server.address, range(start, min(start + at_once, count)), 1.0))
        for start in range(0, count, at_once)
    ]
    seconds = time.monotonic() - began
    killer.join()
    server.wait()
    after = server.figure("resident_bytes")
    server.stop()
    for one in slow:
        one.close()
    ids = {number: id for outcome in outcomes for number, id in outcome.ids.items()}
    lost = (count - len(ids)) + sum(len(outcome.wrong) for outcome in outcomes)
    jobs = rows_of(folder)
    twice = sum(jobs.values()) - count + len(made_twice(folder)) + (len(ids) - len(set(ids.values())))
    operations = [
        float(line.split()[1]) for line in (folder.parent / OPERATIONS).read_text().splitlines() if " " in line
    ]
    accepted = [one for outcome in outcomes for one in outcome.accept_s]
    return [
        ROWS[row], count, kills, sum(outcome.tries for outcome in outcomes), lost, twice, _percentiles(accepted),
        _percentiles(operations), f"{before / 2**20:.0f} / {after / 2**20:.0f}", f"{seconds:.0f}",
    ]  # fmt: skip


def _percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=20)
    return " / ".join(f"{ms:.0f}" if ms >= 10 else f"{ms:.2g}" for ms in (1000 * cuts[9], 1000 * cuts[18]))


def resumed(world: Path, place: Path, jobs: int, kills: int) -> str:
    """Kills `mindspeed-mm serve --api` with its real pipeline, and compares its files with those of a calm server."""
    calm, _ = real_server(world, place / "calm", jobs, 0)
    wild, again = real_server(world, place / "wild", jobs, kills)
    equal = sum(calm[number] == wild[number] for number in range(jobs))
    return (
        f"{jobs} videos of the tiny model, {kills} kills of the server, {again} videos begun again: {equal} of {jobs} files "
        f"equal to a calm server's by SHA-256, {len(set(calm.values()))} different files"
    )


def real_server(world: Path, folder: Path, jobs: int, kills: int) -> tuple[dict[int, str], int]:
    """SHA-256 of each request's file, and how often a video was begun again."""
    import openai
    from storm import free_port, starts_of

    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mindspeed_mm",
        "serve",
        "--api",
        "--mm-model",
        str(world / "sample.json"),
        "--device",
    ]
    command += ["cpu", "--save", str(folder), "--port", str(port)]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    process = start()
    _wait(port)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20, timeout=30)
    extra = {"num_inference_steps": 40}  # about a second of work
    ids = [client.videos.create(prompt=f"a red circle {n}", extra_body={**extra, "seed": n}).id for n in range(jobs)]
    for _ in range(kills):
        time.sleep(random.uniform(0.1, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start()
        _wait(port)
    found = {}
    for number, id in enumerate(ids):
        while (video := client.videos.retrieve(id)).status in ("queued", "in_progress"):
            time.sleep(0.2)
        assert video.status == "completed", video
        found[number] = hashlib.sha256(client.videos.download_content(id).read()).hexdigest()
    process.terminate()
    process.wait()
    return found, sum(starts_of(folder)) - jobs


def _wait(port: int) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.1)
    raise SystemExit("the server does not answer")


if __name__ == "__main__":
    main()
