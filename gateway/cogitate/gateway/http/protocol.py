"""uvicorn's HTTP protocol with limits on a request whose head is not whole yet.

uvicorn waits for ever for the rest of a head, and takes 64 kB of it. What was refused here never
reaches the application: the answer is written by hand and the connection closed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from cogitate.gateway.http.problems import HttpError, response_of
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TOO_LARGE: Final = "the request's head is larger than allowed"
_PHRASES: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Limits:
    """The limits of one listener."""

    def __init__(self, *, head_bytes: int, head_count: int, head_s: float) -> None:
        self.head_bytes, self.head_count, self.head_s = head_bytes, head_count, head_s


def protocol_class(limits: Limits) -> type[asyncio.Protocol]:
    """Returns a protocol with these limits, for uvicorn's configuration."""
    return type("Guarded", (_Guarded,), {"limits": limits})


class _Guarded(HttpToolsProtocol):
    limits: Limits
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            # What follows the head in the same packet is counted with it, once.
            end = data.find(b"\r\n\r\n")
            size = self._head_bytes - (len(data) - end if end >= 0 else 0)
            if size > self.limits.head_bytes:
                self._refuse(431, TOO_LARGE)
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:  # a further request of the connection
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) < self.limits.head_count:
            super().on_header(name, value)
        else:
            self._refuse(431, "the request has too many headers")

    def on_headers_complete(self) -> None:
        self._forget_timer()
        if self.transport.is_closing():
            return
        # A head that came together with the end of the request before was not counted.
        if sum(len(k) + len(v) + 4 for k, v in self.headers) > self.limits.head_bytes:
            self._refuse(431, TOO_LARGE)
            return
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a valid HTTP request")

    def _await_head(self) -> None:
        self._forget_timer()
        self._head_timer = self.loop.call_later(
            self.limits.head_s, self._refuse, 408, "the request's head comes too slowly"
        )

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        self._forget_timer()
        if self.transport.is_closing():
            return
        _, headers, body = response_of(HttpError(message))
        lines = [f"HTTP/1.1 {status} {_PHRASES[status]}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines += [f"content-length: {len(body)}", "connection: close"]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
