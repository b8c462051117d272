"""What Envoy as the public door costs: streams begun, and tokens a second, beside direct ones.

    python -m tests.bench.envoy_tax [MODEL_DIRECTORY] [--starts 500] [--rounds 14] [--json F]

deploy/envoy/front.yaml as it is, with TLS, in front of a real gateway; direct is plaintext at the
gateway. A start is a Contemplate from its call to the first event, at a scripted aggregator that
accepts at once; channels are open. Tokens a second are of one decoder with a model, between the
first text and the last of the same question with the same seed. The two ways take turns, first the
one, then the other; Envoy, mesh and client share the machine. Needs `make envoy`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.bench.gateway_http import process
from tests.bench.gateway_tax import QUESTION, Seen
from tests.bench.local_mesh import local_mesh, options_for
from tests.bench.picker_tax import summary
from tests.fakes.envoy_front import door, front_config

MINI = Path("services/agent-decoder/cogitate/models/mini")
WAYS = ("direct", "Envoy")


@asynccontextmanager
async def both(folder: Path, gateway: str) -> AsyncIterator[dict[str, Any]]:
    """A stub for each way, connected."""
    async with AsyncExitStack() as stack:
        config = front_config(folder, [gateway])
        # One client asks more than one address may: the limits are not what is measured.
        config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0][
            "typed_config"]["http_filters"][1]["typed_config"]["descriptors"] = []  # fmt: skip
        opened = await stack.enter_async_context(door(folder, config))
        channels = grpc.aio.insecure_channel(gateway), opened.channel()
        for channel in channels:
            await stack.enter_async_context(channel)
            await channel.channel_ready()
        yield dict(zip(WAYS, map(ContemplationServiceStub, channels), strict=True))


def in_turn(number: int) -> tuple[str, ...]:
    """Who is first changes."""
    return WAYS if number % 2 else WAYS[::-1]


async def started_s(stub: Any) -> float:
    """One stream's start."""
    spec = pb.ContemplationSpec(agent_count=1)
    spec.conversation.add(role="ROLE_USER", parts=[common.Part(text="Go on.")])
    spec.sampling_params.max_tokens = 2
    began = time.perf_counter()
    call = aiter(stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=30))
    await anext(call)
    took = time.perf_counter() - began
    async for _ in call:
        pass
    return took


async def starts(args: argparse.Namespace, gateway: str, folder: Path) -> dict[str, Any]:
    """So many of each way, in turns."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    async with both(folder, gateway) as stubs:
        for number in range(-args.starts // 10, args.starts):
            for way in in_turn(number):
                took = await started_s(stubs[way])
                if number >= 0:
                    times[way].append(1000 * took)
    return {way: summary(found) for way, found in times.items()}


async def streamed(stub: Any, args: argparse.Namespace, number: int) -> Seen:
    """A contemplation of the model, to its verdict."""
    spec = pb.ContemplationSpec(model=args.model.name, agent_count=args.agents, quorum="all")
    spec.strategy = "vote"
    spec.conversation.add(role="ROLE_USER", parts=[common.Part(text=QUESTION.format(number))])
    spec.sampling_params.max_tokens, spec.sampling_params.seed = args.tokens, number
    seen, began_s = Seen(), time.monotonic()
    async for response in stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=120):
        if count := sum(one.token_count for one in response.event.deltas.deltas):
            seen.add(count, began_s)
    return seen


async def rates(args: argparse.Namespace, gateway: str, folder: Path) -> list[dict[str, Any]]:
    """Rounds of both ways; the first warms up."""
    rows = []
    async with both(folder, gateway) as stubs:
        for number in range(args.rounds + 1):
            seen = {}
            for way in in_turn(number):
                await streamed(stubs["direct"], args, number)  # both find the prompt cached
                seen[way] = await streamed(stubs[way], args, number)
            assert seen["direct"].tokens == seen["Envoy"].tokens
            if number:
                rows.append({way: vars(one) | {"per_s": one.per_s} for way, one in seen.items()})
    return rows


def scripted(stack: ExitStack, folder: Path) -> str:
    """A gateway before an aggregator that plays; returns its address."""
    upstream, ready = folder / "upstream", folder / "gateway"
    command = (sys.executable, "-m", "tests.bench.gateway_http", "--upstream", str(upstream))
    stack.enter_context(process(*command, ready=upstream))
    stack.enter_context(
        process(
            sys.executable, "-m", "cogitate.gateway", "--listen", "127.0.0.1:0", "--ready-file",
            str(ready), "--aggregator-address", upstream.read_text().strip(), ready=ready,
        )
    )  # fmt: skip
    return ready.read_text().strip()


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__ or "")
    parser.add_argument("model", nargs="?", type=report.resolved, default=MINI.resolve())
    parser.add_argument("--starts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    console = report.console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        begun = asyncio.run(starts(args, scripted(stack, folder), folder))
    with (
        local_mesh(options_for(args.model, args.threads), console) as mesh,
        tempfile.TemporaryDirectory() as name,
    ):
        rows = asyncio.run(rates(args, mesh.address, Path(name)))
    ratios = [row["Envoy"]["per_s"] / row["direct"]["per_s"] for row in rows]
    added = begun["Envoy"]["p50_ms"] - begun["direct"]["p50_ms"]
    told = [
        (way, begun[way]["p50_ms"], begun[way]["p99_ms"],
         report.median((row[way]["per_s"] for row in rows), 1))
        for way in WAYS
    ]  # fmt: skip
    columns = ("", "start p50 (ms)", "p99", "tokens/s")
    console.print(report.table(f"{args.starts} starts, {args.rounds} rounds", columns, told))
    ratio = statistics.median(ratios)
    console.print(f"Envoy adds {added:+.2f} ms to a start; {ratio:.3f} of the tokens a second")
    report.write(args, starts=begun, added_p50_ms=round(added, 3), rate_ratio=round(ratio, 4),
                 rows=rows)  # fmt: skip


if __name__ == "__main__":
    main()
