"""A gRPC server that echoes, and a client that streams to it at a fixed rate, for `shared_core`.

    python -m tests.bench.echo serve                 # prints its port
    python -m tests.bench.echo drive PORT RATE BYTES # "go" and "stop" on standard input

The client answers each "stop" with a line of JSON: messages sent and echoed, seconds, and the
median and 99th percentile of the round trip in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

METHOD = "Echo"
SERVICE = "bench.Echo"
TICK_S = 0.005  # messages of one tick leave together


async def _echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for message in requests:
        yield message


async def serve() -> None:
    """Serves until its standard input ends."""
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def drive(port: int, rate: float, size: int) -> None:
    """Streams while it may; one line of standard input at a time."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        while await asyncio.to_thread(sys.stdin.readline) == "go\n":
            stopping = asyncio.Event()
            streaming = asyncio.create_task(_stream(call(), rate, size, stopping))
            await asyncio.to_thread(sys.stdin.readline)
            stopping.set()
            print(json.dumps(await streaming), flush=True)


async def _stream(call: Any, rate: float, size: int, stopping: asyncio.Event) -> dict[str, float]:
    began = time.perf_counter()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while not stopping.is_set():
            due = int((time.perf_counter() - began) * rate)
            while sent < due:
                stamp = time.perf_counter_ns().to_bytes(8, "big")
                await call.write(stamp.ljust(size, b"."))
                sent += 1
            await asyncio.sleep(TICK_S)
        await call.done_writing()

    sending = asyncio.create_task(send())
    trips = [time.perf_counter_ns() - int.from_bytes(m[:8], "big") async for m in call]
    await sending
    trips.sort()
    return {
        "sent": sent,
        "echoed": len(trips),
        "seconds": round(time.perf_counter() - began, 3),
        "trip_p50_ms": round(trips[len(trips) // 2] / 1e6, 3) if trips else 0.0,
        "trip_p99_ms": round(trips[len(trips) * 99 // 100] / 1e6, 3) if trips else 0.0,
    }


def main() -> None:
    """One of the two."""
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        asyncio.run(drive(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))


if __name__ == "__main__":
    main()
