"""Server-sent events to one reader: what is written waits for the reader, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Final, TypeVar

from cogitate.kit.errors import Cancelled, Rejected
from starlette.types import Receive, Send

KEEP_ALIVE: Final = b": keep-alive\n\n"
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)

T = TypeVar("T")


async def write(
    events: AsyncGenerator[bytes, None],
    receive: Receive,
    send: Send,
    *,
    stall_s: float,
    keep_alive_s: float,
) -> None:
    """Sends `events`, each one or more whole frames, as one response.

    The status goes out with the first of them: a failure before it is a plain error. Raises
    Cancelled when the reader leaves, and Rejected with reason EVICTED when it leaves an event
    waiting for `stall_s`. Where nothing happens for `keep_alive_s` a comment is sent.
    """
    async with aclosing(events):
        await unless_gone(_pump(events, send, stall_s, keep_alive_s), receive)


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """Awaits `work`, whose request's body is read; cancels it when the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the client left", reason="DISCONNECTED")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pump(
    events: AsyncGenerator[bytes, None], send: Send, stall_s: float, keep_alive_s: float
) -> None:
    first = await anext(events)
    await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
    loop = asyncio.get_running_loop()
    last = loop.time()

    async def put(body: bytes, more: bool = True) -> None:
        nonlocal last
        try:
            async with asyncio.timeout(stall_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise Rejected(
                "the reader does not keep up with the stream", reason="EVICTED"
            ) from None
        last = loop.time()

    async def keep_alive() -> None:
        while True:
            idle_s = loop.time() - last
            if idle_s >= keep_alive_s:
                await put(KEEP_ALIVE)
            await asyncio.sleep(keep_alive_s - min(idle_s, keep_alive_s * 0.9))

    beside = asyncio.ensure_future(keep_alive())
    try:
        await put(first)
        async for body in events:
            await put(body)
    finally:
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
    await put(b"", more=False)
