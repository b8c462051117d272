"""What does a client cost that stops reading? The other clients' tokens, the aggregator's memory.

    python -m tests.bench.stalled_reader [--seconds 60] [--rounds 1] [--agents 8] [--json F]

A contemplation whose agents write without end (scripted decoders) is read by one client; in turns
nobody else is there, and a second client is there that attached and does not read. The table has
the tokens a second that the first client got, the aggregator's CPU time for them, and by how much
its memory (PSS) grew.
At the end the second client reads on: what it gets must be without gaps.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogitate.kit.channels import open_channel
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.bench.journal_cost import cpu_s
from tests.fakes.decoder import FakeDecoder
from tests.fakes.router import FakeRouter
from tests.fakes.tools import FakeTools

STEP_S = 0.004
WORDS = ["word "] * 10_000_000


@dataclass
class Run:
    """What one stretch measured."""

    stalled: int
    tokens_per_s: float
    memory_kib: float
    coalesced: str
    cpu_ms_per_1000: float  # the aggregator's, of tokens


def memory_kib(pid: int) -> float:
    """Proportional set size."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1])
    return 0.0


async def read(call: Any, seconds: float) -> int:
    """Reads for a time; returns the tokens."""
    ends, tokens = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        event = (await call.read()).event
        tokens += sum(delta.token_count for delta in event.deltas.deltas)
    return tokens


async def stretch(stub: Any, pid: int, args: argparse.Namespace, stalled: int) -> Run:
    """One contemplation, with or without somebody who does not read."""
    spec = pb.ContemplationSpec(agent_count=args.agents, quorum="all")
    spec.conversation.add(role="ROLE_USER", parts=[common.Part(text="Go on.")])
    call = stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=args.seconds * 3 + 30)
    id_ = (await call.read()).event.accepted.contemplation_id
    await read(call, 3.0)  # to where its memory does not grow by itself
    other = None
    if stalled:
        other = stub.Attach(pb.AttachRequest(contemplation_id=id_), timeout=args.seconds * 3)
        last = 0
        while last < 10:
            last = (await other.read()).event.event_number
    before, began, cpu_before = memory_kib(pid), time.monotonic(), cpu_s(pid)
    tokens = await read(call, args.seconds)
    cpu_ms = (cpu_s(pid) - cpu_before) * 1e6 / max(1, tokens)
    wall_s, grown = time.monotonic() - began, memory_kib(pid) - before
    told = ""
    if other is not None:
        told = await catch_up(other, last, stub, id_)
        other.cancel()
    call.cancel()
    await asyncio.sleep(1.0)
    return Run(stalled, tokens / wall_s, grown, told, cpu_ms)


async def catch_up(call: Any, last: int, stub: Any, id_: str) -> str:
    """Reads on to where the contemplation is; returns events and messages. Fails on a gap."""
    got = await stub.GetContemplation(pb.GetContemplationRequest(contemplation_id=id_), timeout=5)
    goal, begins, messages = got.summary.last_event_number, last, 0
    while last < goal:
        event = (await call.read()).event
        assert event.first_event_number == last + 1, "an event is lost"
        last, messages = event.event_number, messages + 1
    return f"{last - begins} events in {messages} messages"


async def measure(args: argparse.Namespace, folder: Path) -> list[Run]:
    async with AsyncExitStack() as stack:
        decoder = await stack.enter_async_context(
            FakeDecoder(lambda agent: WORDS[:200_000], step_s=STEP_S)
        )
        router = await stack.enter_async_context(FakeRouter({"d": decoder.address}))
        tools = await stack.enter_async_context(FakeTools())
        ready = folder / "ready"
        process = subprocess.Popen(
            [
                sys.executable, "-m", "cogitate.aggregator", "--listen", "127.0.0.1:0",
                "--journal", str(folder / "journal.sqlite"), "--ready-file", str(ready),
                "--router-address", router.address, "--tool-executor-address", tools.address,
                # Longer than it lasts, so that it is the log that has to cope and not an eviction.
                "--write-stall-s", str(args.seconds * 3 + 30),
                "--max-duration-s", str(args.seconds * 3 + 30),
            ],
            env=os.environ,
        )  # fmt: skip
        try:
            while not ready.exists():
                await asyncio.sleep(0.05)
            channel = open_channel(ready.read_text().strip())
            stack.push_async_callback(channel.close)
            stub = ContemplationServiceStub(channel)
            await stretch(stub, process.pid, argparse.Namespace(agents=args.agents, seconds=2), 0)
            turns = [s for number in range(args.rounds) for s in ((0, 1), (1, 0))[number % 2]]
            return [await stretch(stub, process.pid, args, stalled) for stalled in turns]
        finally:
            process.terminate()
            process.wait(20)


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--agents", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs = asyncio.run(measure(args, Path(name)))
    rows = [
        (r.stalled, round(r.tokens_per_s, 1), round(r.cpu_ms_per_1000, 1), round(r.memory_kib),
         r.coalesced)
        for r in runs
    ]  # fmt: skip
    columns = [
        "stalled clients", "tokens/s of the other", "CPU ms of 1,000 tokens", "memory grew (KiB)",
        "read afterwards",
    ]  # fmt: skip
    report.console().print(report.table("a client that does not read", columns, rows))
    rate = {s: statistics.median(r.tokens_per_s for r in runs if r.stalled == s) for s in (0, 1)}
    cpu = {s: statistics.median(r.cpu_ms_per_1000 for r in runs if r.stalled == s) for s in (0, 1)}
    grown = {s: statistics.median(r.memory_kib for r in runs if r.stalled == s) for s in (0, 1)}
    report.write(
        args,
        rate_ratio=round(rate[1] / rate[0], 4),
        cpu_ratio=round(cpu[1] / cpu[0], 4),
        memory_kib=round(grown[1] - grown[0]),
        runs=[vars(run) for run in runs],
    )


if __name__ == "__main__":
    main()
