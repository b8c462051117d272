"""What does HTTP cost one contemplation? Its lanes over SSE, beside the aggregator's own stream.

    python -m tests.bench.gateway_tax [MODEL_DIRECTORY] [--agents 8] [--tokens 96] [--json F]

One decoder, real processes. In turns, the same question with the same seed, so that the same tokens
are sampled: `Contemplate` at the aggregator itself by gRPC, and chat completions at the gateway
with `cogitate.events: all`. Tokens a second are between the first text and the last; the first text
is counted from the request. Ratios are of the two in one round; the table shows medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import grpc
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.bench.decode.__main__ import FOLDERS, MODEL
from tests.bench.local_mesh import local_mesh, options_for

QUESTION = "Tell a long story about {} ships and the harbour they sailed from."


@dataclass
class Seen:
    """What one stream showed; times in seconds."""

    tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def add(self, count: int, began_s: float) -> None:
        """Books tokens that came now."""
        now_s = time.monotonic() - began_s
        self.first_s = self.first_s or now_s
        self.tokens, self.last_s = self.tokens + count, now_s

    @property
    def per_s(self) -> float:
        """Tokens a second behind the first."""
        return self.tokens / max(1e-9, self.last_s - self.first_s)


async def over_grpc(address: str, args: argparse.Namespace, number: int) -> Seen:
    """The aggregator's own stream."""
    seen = Seen()
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        spec = pb.ContemplationSpec(model=args.model.name, agent_count=args.agents, quorum="all")
        spec.strategy = "vote"
        part = common.Part(text=QUESTION.format(number))
        spec.conversation.add(role="ROLE_USER", parts=[part])
        spec.sampling_params.max_tokens, spec.sampling_params.seed = args.tokens, number
        stub, began_s = ContemplationServiceStub(channel), time.monotonic()
        async for response in stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=120):
            if count := sum(one.token_count for one in response.event.deltas.deltas):
                seen.add(count, began_s)
    return seen


async def over_http(address: str, args: argparse.Namespace, number: int) -> Seen:
    """The same by the gateway's chat completions."""
    host, _, port = address.rpartition(":")
    own = {"agents": args.agents, "quorum": "all", "strategy": "vote", "events": "all"}
    body = {
        "model": args.model.name, "stream": True, "seed": number, "max_tokens": args.tokens,
        "messages": [{"role": "user", "content": QUESTION.format(number)}], "cogitate": own,
    }  # fmt: skip
    raw, seen = json.dumps(body).encode(), Seen()
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    began_s = time.monotonic()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw)
    )
    assert b" 200 " in (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]
    while (line := await reader.readline()) != b"data: [DONE]\n":
        assert line, "the stream broke off"
        if line.startswith(b"data: {") and b'"deltas"' in line:
            event: Any = json.loads(line[6:])["cogitate"]["event"]
            seen.add(sum(one["token_count"] for one in event["deltas"]["deltas"]), began_s)
    writer.close()
    return seen


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("model", nargs="?", type=report.resolved, default=FOLDERS[0] / MODEL)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    console, rows = report.console(), []
    with local_mesh(options_for(args.model, args.threads), console) as mesh:
        asked = {
            "gRPC": lambda number: over_grpc(mesh.addresses["aggregator"], args, number),
            "HTTP": lambda number: over_http(mesh.http, args, number),
        }
        with report.progress(console) as progress:
            task = progress.add_task("questions", total=(args.rounds + 1) * 2)
            for number in range(args.rounds + 1):
                seen = {}
                for name in ("gRPC", "HTTP") if number % 2 else ("HTTP", "gRPC"):
                    # Both find the prompt cached: it is asked once more before.
                    asyncio.run(over_grpc(mesh.addresses["aggregator"], args, number))
                    seen[name] = asyncio.run(asked[name](number))
                    progress.advance(task)
                assert seen["gRPC"].tokens == seen["HTTP"].tokens
                if number:
                    rows.append(
                        {name: vars(one) | {"per_s": one.per_s} for name, one in seen.items()}
                    )
    rate = statistics.median(row["HTTP"]["per_s"] / row["gRPC"]["per_s"] for row in rows)
    later_ms = 1000 * statistics.median(
        row["HTTP"]["first_s"] - row["gRPC"]["first_s"] for row in rows
    )
    told = [
        (
            name,
            report.median((row[name]["per_s"] for row in rows), 1),
            report.median((row[name]["first_s"] * 1000 for row in rows), 1),
        )
        for name in ("gRPC", "HTTP")
    ]
    console.print(report.table("one contemplation", ("", "tokens/s", "first text (ms)"), told))
    console.print(f"by HTTP {rate:.3f} of the tokens a second, the first text {later_ms:+.1f} ms")
    report.write(args, rate_ratio=round(rate, 4), first_later_ms=round(later_ms, 2), rows=rows)


if __name__ == "__main__":
    main()
