"""A tool-executor whose tools are functions of their arguments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from cogitate.v1 import common_pb2 as common
from cogitate.v1 import tool_executor_service_pb2 as pb
from cogitate.v1 import tool_executor_service_pb2_grpc as pb_grpc

from tests.fakes.serving import FakeServer

Tool = Callable[[str], common.ToolResult]


def text(value: str, *, proves: str = "") -> Tool:
    """A tool that always says the same, and may prove an answer by it."""

    def run(arguments_json: str) -> common.ToolResult:
        result = common.ToolResult(parts=[common.Part(text=value)])
        if proves:
            result.proof.CopyFrom(common.Proof(answer=proves, tool_name="prove"))
        return result

    return run


class FakeTools(pb_grpc.ToolExecutorServiceServicer, FakeServer):
    """Runs `tools`; every run is kept in `ran`, every one that was broken off in `dropped`."""

    def __init__(self, tools: Mapping[str, Tool] | None = None, *, delay_s: float = 0.0) -> None:
        super().__init__()
        self.tools = dict(tools or {})
        self.delay_s = delay_s
        self.ran: list[pb.ExecuteRequest] = []
        self.tenants: list[str] = []
        self.dropped = asyncio.Event()

    def register(self, server: Any) -> None:
        pb_grpc.add_ToolExecutorServiceServicer_to_server(self, server)

    async def ListTools(self, request: pb.ListToolsRequest, context: Any) -> pb.ListToolsResponse:
        specs = [
            common.ToolSpec(name=name, description=f"Runs {name}.", parameters_json_schema="{}")
            for name in self.tools
        ]
        return pb.ListToolsResponse(tools=specs)

    async def Execute(
        self, request: pb.ExecuteRequest, context: Any
    ) -> AsyncIterator[pb.ExecuteResponse]:
        self.ran.append(request)
        self.tenants.append(dict(context.invocation_metadata()).get("x-cogitate-tenant", ""))
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.dropped.set()
            raise
        tool = self.tools.get(request.call.name)
        if tool is None:
            unknown = [common.Part(text="there is no such tool")]
            result = common.ToolResult(is_error=True, parts=unknown)
        else:
            result = tool(request.call.arguments_json)
        result.call_id = request.call.call_id
        yield pb.ExecuteResponse(finished=pb.ExecutionFinished(result=result))
