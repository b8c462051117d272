"""What does HTTP cost? Tokens over SSE for a second of a core, beside LiteLLM; memory of streams.

    python -m tests.bench.gateway_http [--rounds 5] [--tokens 20000] [--streams 2000]
                                       [--litellm .cache/peers/litellm/bin/litellm] [--json F]

A scripted aggregator, in a process of its own, writes tokens as fast as they are taken: one
agent's, a token an event. They are read over SSE from the gateway's chat completions, from the same
by gRPC, and, where it is installed (`pip install 'litellm[proxy]'` in an environment of its own),
from a LiteLLM proxy whose upstream is the gateway's HTTP: in turns, the same contemplations. What
is counted is tokens for a second of processor time of the process that is measured (LiteLLM's
without the gateway's), so that it matters less what else the machine does.

Eight agents (`cogitate.events: all`) are rows of their own: eight tokens an event, as lanes. Then
`--streams` streams are opened in which nothing happens, and the gateway's memory is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from cogitate.cli.mesh.processes import free_ports
from cogitate.kit.config import ServiceConfig
from cogitate.kit.lifecycle import run
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.bench.journal_cost import cpu_s
from tests.bench.stalled_reader import memory_kib
from tests.fakes.aggregator import FakeAggregator, Step, Wait

START_S = 90.0


# -- the scripted aggregator -------------------------------------------------------------------


def script(request: pb.ContemplateRequest) -> Sequence[Step]:
    """As many tokens as asked for, of as many agents; none means silence."""
    spec, agents = request.spec, max(1, request.spec.agent_count)
    accepted = pb.ContemplationEvent(
        accepted=pb.Accepted(model=spec.model, agent_count=agents, strategy="vote")
    )
    if not (count := spec.sampling_params.max_tokens - 1):
        return (accepted, Wait(3600.0))
    # Some proxies take equal chunks in a row for a model that hangs.
    texts = [f" token{i}" for i in range(min(count, 997))]
    events = [
        pb.ContemplationEvent(
            deltas=pb.AgentDeltas(
                deltas=[
                    pb.AgentTextDelta(
                        agent_id=i, attempt=1, text=text, is_answer=True, token_count=1
                    )
                    for i in range(agents)
                ]
            )
        )
        for text in texts
    ]
    written = "".join(texts[i % len(texts)] for i in range(count))
    answer = written.strip() if agents == 1 else "done"
    ballot = common.Ballot(answer=answer, key="k", finish_reason=common.FINISH_REASON_STOP)
    verdict = common.Verdict(
        answer=answer, key="k", certificate=common.Certificate(ballots=[ballot]),
        usage=common.Usage(sampled_token_count=count * agents),
    )  # fmt: skip
    return (
        accepted,
        *(events[i % len(events)] for i in range(count)),
        pb.ContemplationEvent(verdict=verdict),
    )


class Forgetful(FakeAggregator):
    """Plays, and keeps nothing of what it played."""

    async def _play(self, played: Any, after: int, context: Any) -> Any:
        number = 0
        for step in played.steps:
            if isinstance(step, Wait):
                await asyncio.sleep(step.delay_s)
                continue
            number += 1
            if step.HasField("accepted"):
                step.accepted.contemplation_id = played.id
            step.event_number = step.first_event_number = number
            yield step
        self.played.pop(played.id, None)
        self.by_request_id.clear()


async def build(_: ServiceConfig, server: grpc.aio.Server) -> Any:
    """The scripted aggregator as a service."""
    return Forgetful(server, script)


# -- processes ---------------------------------------------------------------------------------


@contextmanager
def process(*command: str, ready: Path | None = None, **more: str) -> Iterator[int]:
    """Runs a process until the block is left; yields its number once it is ready."""
    started = subprocess.Popen(
        command, env={**os.environ, **more}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + START_S
        while ready is not None and not ready.exists():
            assert started.poll() is None and time.monotonic() < ends, f"{command[0]} is not ready"
            time.sleep(0.05)
        yield started.pid
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()


# -- clients -----------------------------------------------------------------------------------


class Http:
    """Reads streams without a library: nothing but bytes, so that the reader costs little."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self, agents: int, tokens: int) -> Any:
        """Asks; returns reader and writer behind the status line."""
        own = {"agents": agents, "events": "all" if agents > 1 else "none"}
        body: dict[str, Any] = {
            "model": "mini", "stream": True, "max_tokens": tokens + 1,
            "messages": [{"role": "user", "content": "Go on."}],
        }  # fmt: skip
        if agents > 1:
            body["cogitate"] = own
        else:
            body["reasoning_effort"] = "medium"
        raw = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer sk-none\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(raw), raw)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n", 1)[0], (head, await reader.read(2000))
        return reader, writer

    async def tokens(self, agents: int, tokens: int) -> int:
        """Reads a stream to its end; returns the tokens."""
        reader, writer = await self.open(agents, tokens)
        mark, count, tail = b" token", 0, b""
        while part := await reader.read(1 << 18):
            whole = tail + part
            count += whole.count(mark)
            if b"data: [DONE]" in whole:
                break
            tail = whole[-len(mark) + 1 :] if not whole.endswith(mark) else b""
            tail = whole[max(whole.rfind(mark) + len(mark), len(whole) - 12) :]
        writer.close()
        return count


async def over_grpc(address: str, agents: int, tokens: int) -> int:
    """The same by gRPC, whose client parses the events."""
    async with grpc.aio.insecure_channel(address) as channel:
        spec = pb.ContemplationSpec(model="mini", agent_count=agents)
        spec.sampling_params.max_tokens = tokens + 1
        spec.conversation.add(role="ROLE_USER", parts=[common.Part(text="Go on.")])
        call = ContemplationServiceStub(channel).Contemplate(
            pb.ContemplateRequest(spec=spec), timeout=300
        )
        count = 0
        async for response in call:
            count += len(response.event.deltas.deltas)
        return count


async def idle(http: Http, pid: int, count: int) -> dict[str, float]:
    """Opens silent streams; returns the gateway's memory before and with them."""
    before = memory_kib(pid)
    opened = [await http.open(1, 0) for _ in range(count)]
    await asyncio.sleep(2.0)
    found = {"streams": count, "before_mib": before / 1024, "with_mib": memory_kib(pid) / 1024}
    for _, writer in opened:
        writer.close()
    return {name: round(value, 1) for name, value in found.items()}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs everything."""
    console = report.console()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        upstream = folder / "upstream"
        command = (sys.executable, "-m", "tests.bench.gateway_http", "--upstream", str(upstream))
        stack.enter_context(process(*command, ready=upstream))
        ready, port = folder / "gateway", free_ports(1)[0]
        gateway = stack.enter_context(
            process(
                sys.executable, "-m", "cogitate.gateway", "--listen", "127.0.0.1:0",
                "--http-listen", f"127.0.0.1:{port}", "--ready-file", str(ready),
                "--aggregator-address", upstream.read_text().strip(),
                "--max-concurrent-rpcs", "10000", "--max-duration-s", "3600",
                "--default-deadline-s", "3700", ready=ready,
            )
        )  # fmt: skip
        http, address = Http(port), ready.read_text().strip()
        turns: dict[str, tuple[int, Any]] = {
            "gRPC, one agent": (gateway, lambda: over_grpc(address, 1, args.tokens)),
            "SSE, one agent": (gateway, lambda: http.tokens(1, args.tokens)),
            "gRPC, eight agents": (gateway, lambda: over_grpc(address, 8, args.tokens // 8)),
            "SSE, eight agents": (gateway, lambda: http.tokens(8, args.tokens // 8)),
        }
        if Path(args.litellm).exists():
            proxy = Http(free_ports(1)[0])
            pid = stack.enter_context(litellm(args, folder, proxy._port, port))
            turns["LiteLLM, one agent"] = (pid, lambda: proxy.tokens(1, args.tokens))
        with report.progress(console) as progress:
            task = progress.add_task("turns", total=(args.rounds + 1) * len(turns))
            for number in range(args.rounds + 1):
                for name, (pid, turn) in turns.items():
                    cpu, wall = cpu_s(pid), time.monotonic()
                    tokens = asyncio.run(turn())
                    spent, wall = cpu_s(pid) - cpu, time.monotonic() - wall
                    if number:  # the first warms up
                        row = {"turn": name, "tokens": tokens, "cpu_s": round(spent, 3)}
                        rows.append(row | {"wall_s": round(wall, 3)})
                    progress.advance(task)
        memory = asyncio.run(idle(http, gateway, args.streams)) if args.streams else {}
    return {"rows": rows, "idle": memory}


@contextmanager
def litellm(args: argparse.Namespace, folder: Path, port: int, upstream: int) -> Iterator[int]:
    """The LiteLLM proxy, one worker, whose only model is the gateway's."""
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: mini\n    litellm_params:\n      model: openai/mini\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
    )
    command = (args.litellm, "--config", str(config), "--port", str(port), "--host", "127.0.0.1")
    more = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    more["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # nobody else reaches it
    with process(*command, **more) as pid:
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            try:
                asyncio.run(Http(port).tokens(1, 4))
                break
            except (OSError, AssertionError, asyncio.IncompleteReadError):
                time.sleep(1.0)
        else:
            raise RuntimeError("the LiteLLM proxy does not answer")
        yield pid


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--litellm", default=".cache/peers/litellm/bin/litellm")
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        config = ServiceConfig(
            listen="127.0.0.1:0", ready_file=args.upstream, max_concurrent_rpcs=10_000,
            default_deadline_s=3700.0,
        )  # fmt: skip
        sys.exit(run("upstream", config, build))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name:
        found = measure(args, Path(name))
    told, rates = [], {}
    for name in dict.fromkeys(row["turn"] for row in found["rows"]):
        mine = [row for row in found["rows"] if row["turn"] == name]
        rates[name] = report.median((r["tokens"] / max(r["cpu_s"], 0.01) for r in mine), 0)
        wall = report.median((r["tokens"] / r["wall_s"] for r in mine), 0)
        told.append((name, f"{rates[name]:,.0f}", f"{wall:,.0f}"))
    columns = ("", "tokens for a second of a core", "tokens/s")
    console = report.console()
    console.print(report.table("token events through the gateway", columns, told))
    if "LiteLLM, one agent" in rates:
        ratio = rates["SSE, one agent"] / rates["LiteLLM, one agent"]
        console.print(f"the gateway passes {ratio:.1f} times as many as the LiteLLM proxy")
    if found["idle"]:
        console.print(
            "{streams} silent streams: {before_mib} MiB, then {with_mib}".format(**found["idle"])
        )
    report.write(args, tokens_per_core_s=rates, **found)


if __name__ == "__main__":
    main()
