"""How long do programs of tools live after the decision that makes them pointless?

    python -m tests.bench.tool_release [--questions 20] [--agents 8] [--json F]

Real aggregator and tool-executor, scripted agents: all but one wait, each for a program of its own
that would run on and on. When all programs run, that one answers, and the quorum `first:1` decides
by it. Counted is from the client's `decided` to the moment when no process is left below the
tool-executor, and to the verdict, looked at every 2 ms. `--early` answers while sandboxes start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.fakes.decoder import Call, End, FakeDecoder, Hold, Step
from tests.fakes.router import FakeRouter

LOOK_S = 0.002
SETTLE_S = 0.3
PATIENCE_S = 10.0


class Script:
    """The first agent answers when it is let; the others run programs."""

    def __init__(self) -> None:
        self.hold = Hold()

    def __call__(self, agent: decoder_pb.AgentSpec) -> list[Step]:
        if agent.agent_id == 0:
            return [self.hold, "word ", End("7")]
        code = f"import time\nwhile True:\n    time.sleep(0.01)  # {agent.agent_id}"
        return [Call("python", json.dumps({"code": code})), End("8")]


def children(pid: int) -> set[int]:
    """All processes below one."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words[0] != "Z":
                below.setdefault(int(words[1]), []).append(int(entry.name))
    found, left = set(), [pid]
    while left:
        more = below.get(left.pop(), [])
        found |= set(more)
        left += more
    return found


async def started(stack: AsyncExitStack, module: str, *flags: str) -> tuple[int, str]:
    """A service as a process; its pid and address."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    ready = Path(folder) / "ready"
    process = subprocess.Popen(
        [
            sys.executable, "-m", module, "--listen", "127.0.0.1:0", "--ready-file", str(ready),
            "--log-level", "ERROR", *flags,
        ],
        env=dict(os.environ),
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.terminate)
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit(f"{module} does not start")
        await asyncio.sleep(0.05)
    return process.pid, ready.read_text().strip()


async def ask(
    stub: Any, script: Script, executor: int, args: argparse.Namespace
) -> dict[str, float]:
    """One contemplation: how many processes there were, and when the last of them was gone."""
    script.hold = Hold()
    spec = pb.ContemplationSpec(agent_count=args.agents, quorum="first:1")
    spec.allowed_tools.append("python")
    spec.conversation.add(role="ROLE_USER", parts=[common.Part(text="Go on.")])
    call = stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=60)
    num_started, decided_s, verdict_s = 0, 0.0, 0.0
    while not verdict_s:
        event = (await call.read()).event
        kind = event.WhichOneof("event")
        num_started += kind == "tool_call_started"
        if kind == "tool_call_started" and num_started == args.agents - 1:
            letting = asyncio.create_task(let(script.hold, executor, args))
        elif kind == "decided":
            decided_s = time.monotonic()
            looking = asyncio.create_task(gone(executor))
        elif kind == "verdict":
            verdict_s = time.monotonic()
    gone_s = await looking
    return {
        "processes": await letting,
        "gone_ms": round(1000 * (gone_s - decided_s), 1),
        "verdict_ms": round(1000 * (verdict_s - decided_s), 1),
    }


async def let(hold: Hold, executor: int, args: argparse.Namespace) -> int:
    """Lets the first agent answer once all programs run; returns how many processes there are."""
    count, before = 0, -1
    while not args.early and (count < args.agents - 1 or count != before):
        await asyncio.sleep(SETTLE_S)
        before, count = count, len(children(executor))
    hold.open.set()
    return len(children(executor))


async def gone(executor: int) -> float:
    """When the last process is gone."""
    ends = time.monotonic() + PATIENCE_S
    while children(executor):
        if time.monotonic() > ends:
            raise SystemExit("programs of tools outlive the contemplation")
        await asyncio.sleep(LOOK_S)
    return time.monotonic()


async def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    """All questions, one after the other."""
    async with AsyncExitStack() as stack:
        script = Script()
        decoder = await stack.enter_async_context(FakeDecoder(script, step_s=LOOK_S))
        router = await stack.enter_async_context(FakeRouter({"d": decoder.address}))
        # No sandboxes that wait: whatever runs below the executor is in use.
        executor, tools = await started(
            stack, "cogitate.tool_executor", "--python-warm-count", "0",
            "--python-running-count", str(args.agents),
        )  # fmt: skip
        _, address = await started(
            stack, "cogitate.aggregator",
            "--router-address", router.address, "--tool-executor-address", tools,
        )  # fmt: skip
        channel = open_channel(address)
        stack.push_async_callback(channel.close)
        stub = ContemplationServiceStub(channel)
        return [await ask(stub, script, executor, args) for _ in range(args.questions)]


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__ or "")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--early", action="store_true", help="decide while sandboxes start")
    args = parser.parse_args()
    runs = asyncio.run(measure(args))
    gone_ms = sorted(run["gone_ms"] for run in runs)
    summary = {
        "programs": (args.agents - 1) * len(runs),
        "gone_median_ms": report.median(gone_ms, 1),
        "gone_most_ms": gone_ms[-1],
        "verdict_median_ms": report.median([run["verdict_ms"] for run in runs], 1),
    }
    report.console().print(
        report.table("programs after the decision", list(summary), [list(summary.values())])
    )
    report.write(args, summary=summary, runs=runs)


if __name__ == "__main__":
    main()
