"""A service that does what it is told, in each of the ways grpc.aio lets a handler be written.

A request is one word, a behaviour. Run as a program it serves until it is signalled.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from cogitate.kit import auth, channels, lifecycle, telemetry
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import DeadlineExceeded, NoQuorum
from cogitate.kit.interceptors import long_lived
from google.protobuf.wrappers_pb2 import StringValue

NAME = "cogitate.test.TrapService"
SECRET = "a secret prompt"
# Every way to write a handler: (method, request streams, response streams).
WAYS = {
    "Unary": (False, False),
    "Generate": (False, True),
    "GenerateByWriting": (False, True),
    "Collect": (True, False),
    "Chat": (True, True),
    "ChatByReading": (True, True),
    "LongLived": (False, False),
}


class TrapService:
    """Counts what was `started` and what has `ended`, by word."""

    names = (NAME,)

    def __init__(self, downstream: grpc.aio.Channel | None = None) -> None:
        self.downstream = downstream
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.produced = 0
        self.draining = asyncio.Event()
        self.life: list[str] = []

    async def start(self) -> None:
        self.life.append("start")
        await {"slow": asyncio.Event().wait, "bad": _fail}.get(os.environ.get("START", ""), _pass)()

    async def drain(self, grace_s: float) -> None:
        self.life.append("drain")
        self.draining.set()
        while self.started["work"] > self.ended["work"]:
            await asyncio.sleep(0.01)
        if os.environ.get("DRAIN") == "slow":
            await asyncio.Event().wait()

    async def stop(self) -> None:
        self.life.append("stop")

    async def Unary(self, request: StringValue, context: Any) -> StringValue | None:
        return await self.act(request.value, context)

    @long_lived
    async def LongLived(self, request: StringValue, context: Any) -> StringValue | None:
        return await self.act(request.value, context)

    async def Generate(self, request: StringValue, context: Any) -> AsyncIterator[Any]:
        self.started["Generate"] += 1
        try:
            async for message in self.messages(request.value, context):
                yield message
        finally:
            self.ended["Generate"] += 1

    async def GenerateByWriting(self, request: StringValue, context: Any) -> None:
        async for message in self.messages(request.value, context):
            await context.write(message)

    async def Collect(self, requests: AsyncIterator[StringValue], context: Any) -> Any:
        words = [request.value async for request in requests]
        return await self.act(words[-1], context)

    async def Chat(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            async for message in self.messages(request.value, context):
                yield message

    async def ChatByReading(self, _: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            async for message in self.messages(request.value, context):
                await context.write(message)

    async def messages(self, word: str, context: Any) -> AsyncIterator[Any]:
        if word == "endless":
            while True:
                self.produced += 1
                yield StringValue(value="x" * 38)
        for n in range(2):
            yield StringValue(value=f"before {n}")
        yield await self.act(word, context)

    async def act(self, word: str, context: Any) -> StringValue | None:
        self.started[word] += 1
        try:
            said = await getattr(self, f"_{word}")(context)
            return None if said is None else StringValue(value=said)
        finally:
            self.ended[word] += 1

    async def _echo(self, context: Any) -> str:
        return "echo"

    async def _tenant(self, context: Any) -> str:
        return auth.current_tenant()

    async def _trace(self, context: Any) -> str:
        return telemetry.current_traceparent()

    async def _left(self, context: Any) -> str:
        return str(channels.remaining_s())

    async def _bug(self, context: Any) -> str:
        raise KeyError(SECRET)

    async def _stray(self, context: Any) -> str:
        raise asyncio.CancelledError(SECRET)

    async def _nothing(self, context: Any) -> None:
        return None

    async def _abort(self, context: Any) -> str:
        await context.abort(grpc.StatusCode.DATA_LOSS, "said by the handler")
        return "never"

    async def _abort_in_group(self, context: Any) -> str:
        async def abort_on_cancel() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await self._abort(context)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(abort_on_cancel())
            tasks.create_task(self._bug(context))
        return "never"

    async def _no_quorum(self, context: Any) -> str:
        raise NoQuorum("no quorum", metadata={"k": "2"}, retry_after_s=1.5, field="spec.quorum")

    async def _group(self, context: Any) -> str:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(self._inner_group(context))
        return "never"

    async def _inner_group(self, context: Any) -> None:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(self._no_quorum(context))
            inner.create_task(self._fail_on_cancel())

    async def _fail_on_cancel(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError(SECRET)

    async def _wait(self, context: Any) -> str:
        await asyncio.Event().wait()
        return "never"

    async def _work(self, context: Any) -> str:
        await self.draining.wait()
        await asyncio.sleep(0.1)
        return "done"

    async def _ask_below(self, context: Any) -> str:
        return await self._below("left", None)

    async def _ask_below_long(self, context: Any) -> str:
        return await self._below("left", 1000.0)

    async def _wait_below(self, context: Any) -> str:
        return await self._below("wait", None)

    async def _fail_below(self, context: Any) -> str:
        return await self._below("no_quorum", None)

    async def _tenant_below(self, context: Any) -> str:
        return await self._below("tenant", None)

    async def _too_late(self, context: Any) -> str:
        try:
            with channels.deadline_scope(0.0):
                channels.outgoing(5.0)
        except DeadlineExceeded:
            return "too late"
        return "never"

    async def _below(self, word: str, timeout_s: float | None) -> str:
        assert self.downstream is not None
        (answer,) = await call(self.downstream, "Unary", word, **channels.outgoing(timeout_s))
        return answer


async def call(channel: grpc.aio.Channel, way: str, word: str | bytes, **options: Any) -> list[str]:
    """Calls one method and returns all it answers; bytes are sent as they are."""
    return [message async for message in open_call(channel, way, word, **options)]


async def open_call(
    channel: grpc.aio.Channel, way: str, word: str | bytes, **options: Any
) -> AsyncIterator[str]:
    """Calls one method; the call is cancelled when the iteration is closed."""
    raw = word if isinstance(word, bytes) else StringValue(value=word).SerializeToString()
    streams_in, streams_out = WAYS[way]
    kind = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
    method = getattr(channel, kind)(f"/{NAME}/{way}", response_deserializer=StringValue.FromString)
    with channels.cancelling(method(iter([raw]) if streams_in else raw, **options)) as opened:
        if streams_out:
            async for message in opened:
                yield message.value
        else:
            yield (await opened).value


def register(service: TrapService, server: grpc.aio.Server) -> None:
    """Adds the methods to a server, as generated code would."""
    handlers = {}
    for way, (streams_in, streams_out) in WAYS.items():
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
        handlers[way] = getattr(grpc, f"{kind}_rpc_method_handler")(
            getattr(service, way),
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
    server.add_registered_method_handlers(NAME, handlers)


def build(
    service: TrapService,
) -> Callable[[ServiceConfig, grpc.aio.Server], Awaitable[lifecycle.Service]]:
    """Returns the `build` of a service made beforehand, for a test to look into."""

    async def built(config: ServiceConfig, server: grpc.aio.Server) -> lifecycle.Service:
        register(service, server)
        return service

    return built


async def _pass() -> None:
    return None


async def _fail() -> None:
    raise KeyError(SECRET)


async def _build_alone(config: ServiceConfig, server: grpc.aio.Server) -> lifecycle.Service:
    service = TrapService()
    register(service, server)
    return service


async def _hold(address: str, way: str, word: str) -> None:
    """Calls and keeps the call open without reading."""
    async with channels.open_channel(address) as channel:
        messages = open_call(channel, way, word, timeout=600.0)
        if WAYS[way][1]:
            await anext(messages)
            sys.stdout.write("open\n")
            sys.stdout.flush()
            await asyncio.Event().wait()
        await anext(messages)


def main(arguments: Sequence[str]) -> int:
    """Serves; or, as `hold ADDRESS WAY WORD`, is a client that holds a call open."""
    if arguments[:1] == ["hold"]:
        asyncio.run(_hold(*arguments[1:]))
        return 0
    return lifecycle.main("traps", ServiceConfig, _build_alone)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
