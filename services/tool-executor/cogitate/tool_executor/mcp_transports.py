"""Connections to MCP servers, by the SDK's client over transports that are bounded.

The SDK's own stdio transport reads lines of any length and logs what it cannot parse, so there is
one here; its HTTP transport is used as it is, over responses of limited size.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx2
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.core.mcp import Server
from mcp import Client
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

# They log what servers send, and one line a request.
for _name in ("mcp", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_STOP_GRACE_S = 1.0
_LOOKS = 100

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


async def connect(
    server: Server, config: ToolExecutorConfig, stack: AsyncExitStack, on_lost: Callable[[], None]
) -> Client:
    """Returns a connected client; leaving the stack disconnects. `on_lost` may be called twice."""
    limit = config.mcp_max_message_bytes
    transport: AbstractAsyncContextManager[Any]
    if server.command:
        transport = stdio(server, limit, on_lost)
    else:
        http = httpx2.AsyncClient(
            headers=dict(server.headers),
            timeout=httpx2.Timeout(config.mcp_connect_s, read=None),
            transport=LimitedTransport(limit),
        )
        await stack.enter_async_context(http)
        transport = streamable_http_client(server.url, http_client=http, max_sse_event_size=limit)
    return await stack.enter_async_context(Client(transport, cache=None))


@asynccontextmanager
async def stdio(
    server: Server, max_line_bytes: int, on_lost: Callable[[], None]
) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Starts a server and speaks with it by lines of JSON; ends it, and its group, on leaving.

    Its standard error goes nowhere. A line longer than the limit ends the connection.
    """
    setpriv = shutil.which("setpriv")
    process = await asyncio.create_subprocess_exec(
        # Should we be killed, the kernel ends it.
        *([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []),
        server.command,
        *server.args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**get_default_environment(), **server.env},
        start_new_session=True,
        limit=max_line_bytes,
    )
    received, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_receive, process, received, on_lost)
            group.start_soon(_send, process, to_send)
            try:
                yield incoming, outgoing
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(process)
                group.cancel_scope.cancel()
    finally:
        for stream in (received, incoming, outgoing, to_send):
            stream.close()
        with anyio.CancelScope(shield=True):
            await _drain(process)


async def _receive(
    process: asyncio.subprocess.Process,
    received: MemoryObjectSendStream[SessionMessage | Exception],
    on_lost: Callable[[], None],
) -> None:
    assert process.stdout is not None
    try:
        async with received:
            while line := await process.stdout.readline():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    continue  # servers print to their output what belongs into their log
                await received.send(SessionMessage(message))
    except (ValueError, ConnectionError, anyio.BrokenResourceError):
        pass  # ValueError: a line over the limit
    finally:
        on_lost()


async def _send(
    process: asyncio.subprocess.Process, to_send: MemoryObjectReceiveStream[SessionMessage]
) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError, anyio.ClosedResourceError):
        async with to_send:
            async for each in to_send:
                text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Closes its input, waits a little, and kills what is left of its group."""
    assert process.stdin is not None
    process.stdin.close()
    await _wait(process)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await _wait(process)


async def _wait(process: asyncio.subprocess.Process) -> None:
    """Waits a little for an end, by looking: Process.wait also waits for what holds its pipes."""
    for _ in range(_LOOKS):
        if process.returncode is not None:
            return
        await asyncio.sleep(_STOP_GRACE_S / _LOOKS)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Reads what is left, so that its pipe is closed; a daemon of it may hold that open."""
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_GRACE_S):
            while await process.stdout.read(65536):
                pass
            await process.wait()
    # There is no public way to let go of pipes that another process holds.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


class LimitedTransport(httpx2.AsyncHTTPTransport):
    """Breaks off responses with more than so many bytes; event streams are limited by event."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request."""
        response = await super().handle_async_request(request)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _LimitedStream(response.stream, self._max_bytes)
        return response


class _LimitedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, max_bytes: int) -> None:
        self._stream = stream
        self._room = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._room -= len(chunk)
            if self._room < 0:
                raise httpx2.ReadError("the response is larger than it may be")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
