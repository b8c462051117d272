"""uvicorn in this process and loop, without its signals and its logging."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.http.protocol import Limits, protocol_class
from starlette.types import ASGIApp

BACKLOG = 2048
# A bad request is no news, and what is cut on purpose is logged where that is done.
logging.getLogger("uvicorn").setLevel(logging.CRITICAL)


class Listener:
    """Serves an application at `http_listen`; `address` is where, once bound."""

    def __init__(self, app: ASGIApp, config: GatewayConfig) -> None:
        """Binds. Raises OSError if the address cannot be had."""
        self._socket = _bind(config.http_listen)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        limits = Limits(
            head_bytes=config.http_max_head_bytes,
            head_count=config.http_max_header_count,
            head_s=config.http_read_timeout_s,
        )
        self._server = _Quiet(
            uvicorn.Config(
                app,
                http=protocol_class(limits),
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=max(1, round(config.http_read_timeout_s)),
                timeout_graceful_shutdown=max(1, round(config.drain_grace_s)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to accept."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]), name="http")
        await self._server.accepting.wait()

    async def drain(self) -> None:
        """Accepts no more, and waits until streams have ended; cancelled, it leaves them alone."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait((self._serving,))

    async def stop(self) -> None:
        """Cuts what is left."""
        self._server.should_exit = self._server.force_exit = True
        state = self._server.server_state
        for task in state.tasks:
            task.cancel()
        for connection in state.connections:
            if connection.transport is not None:
                connection.transport.abort()
        if self._serving is not None:
            await asyncio.wait((self._serving,))
        self._socket.close()


class _Quiet(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process's own lifecycle has them


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65536):
        raise OSError(f"http_listen cannot be {listen}: not host:port")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
    except OSError:
        bound.close()
        raise OSError(f"http_listen: cannot listen on {listen}; is it in use?") from None
    bound.setblocking(False)
    return bound
