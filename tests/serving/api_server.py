"""The API on a port of this machine, in threads of this process."""

import contextlib
import threading
import time
from collections.abc import Iterator

import openai

from mindspeed_mm.serving import listening
from mindspeed_mm.serving.app import build_app
from mindspeed_mm.serving.desk import Desk
from mindspeed_mm.serving.keys import Keys
from mindspeed_mm.serving.metrics import Metrics
from mindspeed_mm.serving.queue import Queue
from mindspeed_mm.serving.worker import Worker

MODEL = "tiny"


@contextlib.contextmanager
def served(
    maker,
    *,
    keys: Keys | None = None,
    max_waiting: int = 16,
    max_body: int = 10**6,
    has_page: bool = True,
    keep_s: float | None = None,
) -> Iterator[tuple[str, Desk]]:
    """Address and desk of a server whose samples `maker` makes."""
    metrics = Metrics()
    queue = Queue(maker.folder, max_waiting, metrics.operation)
    worker = Worker(queue, maker, metrics.job, pause_s=0.05, keep_s=keep_s)
    desk = Desk(queue, worker, maker, metrics, MODEL)
    app = build_app(desk, keys or Keys({}), max_body, listening.NAMES, has_page=has_page)
    listener = listening.listen("127.0.0.1", 0)
    server = listening.server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    worker.start()
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listening.address(listener), desk
    finally:
        server.should_exit = True
        thread.join()
        worker.stop()
        queue.close()


def client_of(address: str, token: str = "none", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=retries)


def ended(client: openai.OpenAI, id: str, timeout_s: float = 30.0):
    """The state of a video once it has ended."""
    until = time.monotonic() + timeout_s
    while (video := client.videos.retrieve(id)).status in ("queued", "in_progress"):
        assert time.monotonic() < until, f"{id} is {video.status}"
        time.sleep(0.02)
    return video
