"""Connections that wait for no stranger: nobody holds one of the few by keeping silent."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from a connection, or the first byte of a further request, to the end of the request's header


class PromptProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, but a connection is closed unless the header of a request arrives in time.

    uvicorn itself bounds only the time between two requests.
    """

    overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch_header()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a header or a body."""
        super().data_received(data)
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any longer."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_header(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # a header has arrived
            self._stop_watching()
        elif self.overdue is None:
            self.overdue = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_watching(self) -> None:
        if self.overdue is not None:
            self.overdue.cancel()
            self.overdue = None
