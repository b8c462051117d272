"""Runs tool calls on the tool-executor. Every failure becomes a result the model can read."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import tool_executor_service_pb2 as pb
from cogitate.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceStub

# Asking for the list must not hold up a question for long.
LIST_TIMEOUT_S = 1.0


class ToolClient:
    """One channel to the tool-executor."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel = open_channel(address)
        self._known: dict[str, common.ToolSpec] = {}

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def missing(self, names: Sequence[str]) -> list[str]:
        """Returns the names that the tool-executor does not know; none while it cannot be asked.

        What it said once is kept, and asked again when a name is not among it.
        """
        if unknown := [name for name in names if name not in self._known]:
            try:
                stub = ToolExecutorServiceStub(self._channel)
                listed = await stub.ListTools(pb.ListToolsRequest(), **outgoing(LIST_TIMEOUT_S))
            except grpc.aio.AioRpcError:
                return []
            self._known = {tool.name: tool for tool in listed.tools}
            unknown = [name for name in unknown if name not in self._known]
        return unknown

    @property
    def known(self) -> frozenset[str]:
        """The tools the tool-executor listed last."""
        return frozenset(self._known)

    def spec(self, name: str) -> common.ToolSpec:
        """What a tool does and takes, as it was listed last; else its name alone."""
        return self._known.get(name) or common.ToolSpec(name=name)

    async def run(
        self,
        contemplation_id: str,
        call: common.ToolCall,
        allowed: Sequence[str],
        images: Sequence[common.ImagePart],
        owner_epoch: int,
        tables: Sequence[common.LookupTable] = (),
    ) -> tuple[common.ToolResult, bool]:
        """Returns the result and whether the tool ran."""
        if not call.name:
            return _error(call.call_id, "This call cannot be read."), False
        request = pb.ExecuteRequest(
            contemplation_id=contemplation_id,
            call=call,
            allowed_tools=allowed,
            images=images,
            owner_epoch=owner_epoch,
            tables=tables,
        )
        request.timeout.FromNanoseconds(int(self._timeout_s * 1e9))
        try:
            stub = ToolExecutorServiceStub(self._channel)
            async for response in stub.Execute(request, **outgoing(self._timeout_s + 1.0)):
                if response.HasField("finished"):
                    return response.finished.result, True
            return _error(call.call_id, "The tool gave no result."), True
        except grpc.aio.AioRpcError as error:
            return _error(call.call_id, str(from_rpc_error(error))), False
        except CogitateError as error:
            return _error(call.call_id, str(error)), False


def _error(call_id: str, text: str) -> common.ToolResult:
    return common.ToolResult(call_id=call_id, is_error=True, parts=[common.Part(text=text)])
