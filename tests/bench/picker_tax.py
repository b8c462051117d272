"""What the endpoint picker adds to the start of a stream: direct, through Envoy, and picked.

`python -m tests.bench.picker_tax`. A start is a Decode stream from its call to the endpoint's first
message. Endpoints are three servers in a process of their own that admit every gang at once and do
nothing else; `--endpoints` makes each report as several. The three ways take turns, one stream at a
time, on channels that are open; router, Envoys, servers and client share the machine. Needs `make
envoy`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import agent_decoder_service_pb2_grpc as pb_grpc

from tests.bench import machine, report
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.envoy import Config, pointed_at, running_envoy, shipped
from tests.fakes.pool import reported, router_process

SERVERS = 3
WAYS = ("direct", "Envoy", "Envoy and picker")


class Admits(pb_grpc.AgentDecoderServiceServicer):
    """Admits what comes."""

    async def Decode(
        self, request_iterator: AsyncIterator[pb.DecodeRequest], context: Any
    ) -> AsyncIterator[pb.DecodeResponse]:
        await anext(aiter(request_iterator))
        yield pb.DecodeResponse(admitted=pb.GangAdmitted(endpoint_id="bench"))


async def serve(router: str, endpoints: int) -> None:
    """Runs the servers, which report to the router, until standard input ends."""
    async with AsyncExitStack() as stack:
        addresses = []
        for _ in range(SERVERS):
            server = grpc.aio.server()
            pb_grpc.add_AgentDecoderServiceServicer_to_server(Admits(), server)
            addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            stack.push_async_callback(server.stop, None)
        for i in range(endpoints):
            # Room for all picks that count at one time, so that none is refused.
            one = FakeEndpoint(
                f"e{i}", router, address=addresses[i % SERVERS], max_sequence_count=100_000,
                total_block_count=0, block_size_count=0, provider=f"p{i % 12}",
            )  # fmt: skip
            await stack.enter_async_context(one)
        print(json.dumps(addresses), flush=True)
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def servers(router: str, endpoints: int) -> AsyncIterator[list[str]]:
    """The same as a process; yields their addresses."""
    command = [sys.executable, "-m", "tests.bench.picker_tax", "--serve", router]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, "--endpoints", str(endpoints), stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


def without_picker(config: Config) -> Config:
    """The same Envoy, asking nobody."""
    (listener,) = config["static_resources"]["listeners"]
    del listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][0]
    return config


async def start_s(stub: Any, number: int) -> float:
    """One stream's start."""
    began = time.perf_counter()
    call = stub.Decode(timeout=30)
    await call.write(pb.DecodeRequest(open=pb.OpenGang(gang_id=str(number))))
    first = await call.read()
    took = time.perf_counter() - began
    assert first is not grpc.aio.EOF and first.HasField("admitted"), await call.details()
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    return took


async def measure(args: argparse.Namespace, endpoints: int, advance: Any) -> dict[str, Any]:
    """Starts by each way, in turns."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Many that report often would be what is measured.
        flags = ("--picker", "--report-interval-s", "2", "--report-expiry-s", "60")
        router, process = await stack.enter_async_context(router_process(folder, *flags))
        addresses = await stack.enter_async_context(servers(router, endpoints))
        await reported(router, *(f"e{i}" for i in range(endpoints)))
        pool = {"router": [router], "decoders": addresses}
        plain = pointed_at(without_picker(shipped()), decoders=addresses)
        del plain["static_resources"]["clusters"][0]
        bare = stack.enter_context(running_envoy(folder, plain))
        picks = stack.enter_context(running_envoy(folder, pointed_at(shipped(), **pool)))
        targets = (addresses[0], bare.address, picks.address)
        stubs = [
            pb_grpc.AgentDecoderServiceStub(await stack.enter_async_context(open_channel(target)))
            for target in targets
        ]
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        before = 0.0
        for number in range(-args.warm_up, args.count):
            if number == 0:
                before = machine.cpu_s(process.pid)
            for way, stub in zip(WAYS, stubs, strict=True):
                took = await start_s(stub, number)
                if number >= 0:
                    times[way].append(1000 * took)
            advance()
        cpu_ms = 1000 * (machine.cpu_s(process.pid) - before) / args.count
        asked = picks.stats("http.requests.ext_proc")
    assert asked["http.requests.ext_proc.streams_started"] >= args.count
    assert not asked.get("http.requests.ext_proc.streams_failed")
    return {"endpoints": endpoints, "router_cpu_ms": round(cpu_ms, 3)} | {
        way: summary(found) for way, found in times.items()
    }


def summary(values: list[float]) -> dict[str, Any]:
    """Of milliseconds."""
    ordered = sorted(values)
    at_p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        "count": len(ordered),
        "p50_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(at_p99, 3),
        "most_ms": round(ordered[-1], 3),
    }


def show(rows: list[dict[str, Any]]) -> Any:
    """As a table; what is added is beside Envoy without a picker."""

    def cells(row: dict[str, Any]) -> list[str]:
        bare, picked = row["Envoy"], row["Envoy and picker"]
        found = [str(row["endpoints"])]
        found += [f"{row[way]['p50_ms']:.2f} / {row[way]['p99_ms']:.2f}" for way in WAYS]
        found.append(f"{picked['p50_ms'] - bare['p50_ms']:+.2f}")
        found.append(f"{picked['p99_ms'] - bare['p99_ms']:+.2f}")
        return [*found, f"{row['router_cpu_ms']:.2f}", str(picked["count"])]

    columns = ("endpoints", *(f"{way}, p50 / p99 ms" for way in WAYS), "added p50", "added p99",
               "router CPU ms", "starts")  # fmt: skip
    return report.table("the start of a stream", columns, map(cells, rows))


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("--count", type=int, default=2000, help="starts each way (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=200, help="before (%(default)s)")
    parser.add_argument(
        "--endpoints", type=lambda t: [int(n) for n in t.split(",")], default=[3, 300],
        metavar="N,N,…",
    )  # fmt: skip
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve, args.endpoints[0]))
        return
    to = report.console()
    with report.progress(to) as progress:
        task = progress.add_task("starts", total=(args.count + args.warm_up) * len(args.endpoints))
        rows = [
            asyncio.run(measure(args, endpoints, lambda: progress.advance(task)))
            for endpoints in args.endpoints
        ]
    to.print(show(rows))
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
