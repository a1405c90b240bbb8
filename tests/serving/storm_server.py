"""The server of a storm, in a process of its own; this file imports no client, so that it starts at once."""

import dataclasses
import threading
import time
from pathlib import Path

from stand_in import StandIn

from mindspeed_mm.serving import listening
from mindspeed_mm.serving.app import build_app
from mindspeed_mm.serving.desk import Desk
from mindspeed_mm.serving.keys import Keys
from mindspeed_mm.serving.metrics import Metrics
from mindspeed_mm.serving.queue import Queue
from mindspeed_mm.serving.worker import Worker

OPERATIONS = "operations.log"  # seconds of each operation of the queue


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """A server's folder, port and pace. full_every_s: the disk is full for half of such a stretch of time."""

    sample_json: Path
    folder: Path
    port: int
    step_s: float
    max_waiting: int
    full_every_s: float | None = None


def server(world: World) -> None:
    """The process that is killed."""
    operations = open(world.folder.parent / OPERATIONS, "a", buffering=1)  # noqa: SIM115, until it is killed
    metrics = Metrics()

    def observe(name: str, seconds: float) -> None:
        metrics.operation(name, seconds)
        operations.write(f"{name} {seconds:.6f}\n")

    maker = StandIn(world.sample_json, world.folder, world.step_s)
    queue = Queue(world.folder, world.max_waiting, observe)
    # No longer pauses: a disk that is full half of the time may be full at ten tries in a row, with the tenth after a minute.
    worker = Worker(queue, maker, metrics.job, pause_s=0.05, longest_pause_s=0.1)
    desk = Desk(queue, worker, maker, metrics, "stand-in")
    if world.full_every_s is not None:
        threading.Thread(target=_fill, args=(world.full_every_s, queue, maker), daemon=True).start()
    app = build_app(desk, Keys({}), 10**6, listening.NAMES)
    worker.start()
    listener = listening.listen("127.0.0.1", world.port)
    listening.server(app, log_level="critical").run(sockets=[listener])


def _fill(every_s: float, queue: Queue, maker: StandIn) -> None:
    """The disk is full again and again: SQLite may take no further page, and samples cannot be written."""
    while True:
        time.sleep(every_s / 2)
        with queue._lock:
            pages = queue._rows.execute("PRAGMA page_count").fetchone()[0]
            queue._rows.execute(f"PRAGMA max_page_count = {pages}")
        maker.is_full = True
        time.sleep(every_s / 2)
        with queue._lock:
            queue._rows.execute("PRAGMA max_page_count = 1073741823")
        maker.is_full = False
