"""A bare gRPC server for a fake, without the kit's life cycle: it can be killed at any moment."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc
from cogitate.kit.channels import SERVER_OPTIONS


class FakeServer:
    """Serves on a free port of the loopback inside its `async with`; `register` is overridden."""

    def __init__(self) -> None:
        self.address = ""
        self._server: grpc.aio.Server | None = None

    def register(self, server: Any) -> None:
        """Adds the servicer."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        """Serves; after a kill again at the same address."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self.register(self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def kill(self) -> None:
        """Breaks every connection off."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)
