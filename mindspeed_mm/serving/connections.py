"""Closes connections whose request does not arrive: slow clients cost no place for long."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0  # longest time for the head of a request to arrive; `app.py` waits for its body


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which has no limit of time for a head."""

    head_s = HEAD_S
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Waits for the end of a head from its first byte, or from the begin of the connection."""
        if self.cycle is not None and not self.cycle.response_complete:  # there is a whole head
            self._forget()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._close)

    def _forget(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering and not self.transport.is_closing():
            self.transport.close()
