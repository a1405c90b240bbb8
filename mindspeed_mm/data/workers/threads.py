"""Work that a thread does one item ahead of its use."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def in_a_thread(items: Iterator[T], change: Callable[[T], U]) -> Generator[U, None, None]:
    """Yields changed items; a thread changes one item ahead. An error of `items` or `change` is raised here."""
    done: queue.Queue[tuple[list[U], BaseException | None]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: tuple[list[U], BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return done.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(([change(item)], None))
                if stop.is_set():
                    return
        except BaseException as error:
            put(([], error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            changed, error = done.get()
            if error is not None:
                raise error
            yield from changed
    finally:
        stop.set()
        thread.join(timeout=5)
