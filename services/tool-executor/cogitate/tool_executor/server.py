"""The gRPC face of the tool-executor: wire to core to wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from cogitate.kit.auth import current_tenant
from cogitate.tool_executor import wire
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.mcp_servers import mcp_runners
from cogitate.tool_executor.runners import Runner
from cogitate.tool_executor.runtime import ToolRuntime
from cogitate.tool_executor.sandboxes import Sandboxes
from cogitate.v1 import tool_executor_service_pb2 as pb
from cogitate.v1 import tool_executor_service_pb2_grpc as pb_grpc

SERVICE_NAME = "cogitate.v1.ToolExecutorService"


class ToolExecutorServicer(pb_grpc.ToolExecutorServiceServicer):
    """Answers the RPCs of ToolExecutorService."""

    def __init__(self, runtime: ToolRuntime) -> None:
        self._runtime = runtime

    async def Execute(
        self, request: pb.ExecuteRequest, context: object
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Runs one call. The built-in tools give their output at once, in the result alone."""
        running = self._runtime.execute(wire.to_call(request), current_tenant())
        async with aclosing(running) as events:
            async for event in events:
                yield wire.from_event(event)

    async def ListTools(
        self, request: pb.ListToolsRequest, context: object
    ) -> pb.ListToolsResponse:
        """Lists what can be called."""
        return wire.from_tools(self._runtime.tools)


def runners_of(config: ToolExecutorConfig) -> list[Runner]:
    """Returns what runs the tools that are not built in. Raises InvalidRequest for a bad file."""
    sandboxes: list[Runner] = [Sandboxes(config)] if config.python_enabled else []
    return [*sandboxes, *mcp_runners(config)]


class ToolExecutorService:
    """The tool-executor as the kit's lifecycle drives it."""

    names: Sequence[str] = (SERVICE_NAME,)

    def __init__(self, runtime: ToolRuntime) -> None:
        self.runtime = runtime

    async def start(self) -> None:
        """Gets ready to serve."""
        await self.runtime.start()

    async def drain(self, grace_s: float) -> None:
        """Lets running calls end; the lifecycle bounds it."""
        await self.runtime.drain()

    async def stop(self) -> None:
        """Drops what is left."""
        await self.runtime.stop()


async def build(config: ToolExecutorConfig, server: grpc.aio.Server) -> ToolExecutorService:
    """Registers the servicer on a server that is not started yet."""
    runtime = ToolRuntime(config, runners=runners_of(config))
    pb_grpc.add_ToolExecutorServiceServicer_to_server(ToolExecutorServicer(runtime), server)
    return ToolExecutorService(runtime)
