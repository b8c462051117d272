"""Decode streams, as an aggregator has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1.agent_decoder_service_pb2_grpc import AgentDecoderServiceStub


class Stream:
    """Sends commands and keeps what was seen."""

    def __init__(
        self, address: str, timeout_s: float = 60.0, metadata: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.channel = open_channel(address)
        stub = AgentDecoderServiceStub(self.channel)
        self.call = stub.Decode(timeout=timeout_s, metadata=tuple(metadata))
        self.seen: list[pb.DecodeResponse] = []
        self._wait_s = timeout_s

    async def send(self, **command: Any) -> None:
        await self.call.write(pb.DecodeRequest(**command))

    async def read(self) -> pb.DecodeResponse:
        async with asyncio.timeout(self._wait_s):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, "the stream ended"
        self.seen.append(response)
        return response  # type: ignore[no-any-return]

    async def until(self, kind: str, count: int = 1) -> Any:
        """Reads until the kind was seen that often in all; returns the last of them."""
        found = [r for r in self.seen if r.HasField(kind)]
        while len(found) < count:
            response = await self.read()
            if response.HasField(kind):
                found.append(response)
        return getattr(found[-1], kind)

    async def end(self) -> list[pb.DecodeResponse]:
        """Reads to the end, which must be in order."""
        async with asyncio.timeout(self._wait_s):
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self.seen.append(response)
        assert await self.call.code() is grpc.StatusCode.OK
        return self.seen

    def _deltas(self, agent_id: int) -> list[pb.AgentDelta]:
        return [d for r in self.seen for d in r.step.deltas if d.agent_id == agent_id]

    def tokens(self, agent_id: int) -> list[int]:
        """An agent's tokens."""
        return [token for delta in self._deltas(agent_id) for token in delta.token_ids]

    def text(self, agent_id: int) -> str:
        """An agent's text."""
        return "".join(delta.text for delta in self._deltas(agent_id))


class Caller:
    """Has gangs run on one decoder; subclasses say what one opens with."""

    def __init__(self, address: str, timeout_s: float = 60.0) -> None:
        self.address, self._timeout_s = address, timeout_s
        self.streams: list[Stream] = []

    def opening(self, *agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
        raise NotImplementedError

    async def opened(self, *agents: pb.AgentSpec, **fields: Any) -> Stream:
        stream = Stream(self.address, self._timeout_s)
        self.streams.append(stream)
        await stream.send(open=self.opening(*agents, **fields))
        return stream

    async def run(self, *agents: pb.AgentSpec, **fields: Any) -> Stream:
        """A gang to its end."""
        stream = await self.opened(*agents, **fields)
        await stream.send(close=pb.CloseGang())
        await stream.end()
        return stream

    async def endpoint(self) -> pb.GetEndpointResponse:
        async with open_channel(self.address) as channel:
            stub = AgentDecoderServiceStub(channel)
            found: pb.GetEndpointResponse = await stub.GetEndpoint(
                pb.GetEndpointRequest(), timeout=30
            )
            return found

    async def close(self) -> None:
        for stream in self.streams:
            stream.call.cancel()
            await stream.channel.close()


def kinds(responses: Iterable[pb.DecodeResponse]) -> list[str]:
    return [str(response.WhichOneof("event")) for response in responses]
