"""What does telemetry cost? Gangs of `mini` with spans and metrics on and off, in alternation.

    python -m tests.bench.telemetry_overhead [--rounds 30] [--agents 8] [--tokens 200] [--json F]

One process, one engine, one event loop: gangs run through the service's runtime, without gRPC.
``on`` means all of it: spans and metrics go by OTLP to a sink in a process of its own, which throws
them away; both every two seconds, metrics five times as often as by default. ``off`` is a service
without a destination: the engine counts, nobody reads. ``bare`` is an engine whose counters do
nothing, to see what counting costs. Starting and ending exporters is not timed. The sides change
places from round to round; a ratio is the median over rounds of a side's time to that of ``bare``
in the same round, with the quartiles of these. Where other programs share the machine, look at the
processor's time: it varies less than the clock's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from cogitate.agent_decoder import native_engine
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.core.counters import EngineCounters
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.checkpoint import read_directory, shapes_in
from cogitate.agent_decoder.runtime import Runtime
from cogitate.kit import metrics, telemetry
from cogitate.kit.config import ServiceConfig, model_directory
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb

SIDES = ("bare", "off", "on")
COLLECT_S, SPANS_EVERY_MS = 2.0, "2000"
WARM_UP_TOKENS = 8
REPLIES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": trace_pb.ExportTraceServiceResponse,
    "opentelemetry.proto.collector.metrics.v1.MetricsService": (
        metrics_pb.ExportMetricsServiceResponse
    ),
}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class NoCounters(EngineCounters):
    """Counts nothing."""

    def book_step(self, *_: Any) -> None: ...
    def hear(self, *_: Any) -> None: ...


def sink() -> None:
    """Takes what is exported and throws it away, until its input ends. Prints its port."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    for service, reply in REPLIES.items():
        raw = reply().SerializeToString()
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context, raw=raw: raw)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
        )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


@contextmanager
def running_sink() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.bench.telemetry_overhead", "--sink"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
        child.stdin.close()


class Bench:
    """The engine of one model behind the service's runtime."""

    def __init__(self, runtime: Runtime, args: argparse.Namespace) -> None:
        self._args, self.runtime = args, runtime
        directory = model_directory(args.model)
        checkpoint = read_directory(directory, weights=False)
        _, template = loader.interpret(checkpoint, shapes_in(directory, checkpoint.config))
        control = template.control
        # Never calls, never ends, never answers: every gang is the same work.
        self._bias = dict.fromkeys((control.call, *control.end, control.answer), -100.0)
        self._gangs = 0

    async def gang(self, max_tokens: int) -> int:
        """Runs one gang to its end; returns how many tokens it sampled."""
        self._gangs += 1
        params = common.SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, temperature=0.8, logit_bias=self._bias
        )
        agents = [
            pb.AgentSpec(agent_id=i, seed=i, sampling_params=params, traceparent=PARENT)
            for i in range(self._args.agents)
        ]
        part = common.Part(text="What is the sum of the red cards?")
        opening = pb.OpenGang(
            contemplation_id=f"c{self._gangs}",
            gang_id="g",
            model=self.runtime.about.model,
            agents=agents,
            conversation=[common.Message(role=common.ROLE_USER, parts=[part])],
        )
        sampled = 0

        async def commands() -> AsyncIterator[pb.DecodeRequest]:
            yield pb.DecodeRequest(open=opening)
            yield pb.DecodeRequest(close=pb.CloseGang())

        async def write(response: pb.DecodeResponse) -> None:
            nonlocal sampled
            response.SerializeToString()  # as gRPC would
            sampled += response.finished.usage.sampled_token_count

        await self.runtime.decode(commands(), write)
        return sampled

    async def block(self, side: str, endpoint: str) -> dict[str, float]:
        """Times some gangs, one after another, on one side."""
        engine = self.runtime.engine
        engine.counters = NoCounters() if side == "bare" else EngineCounters()
        exporters: list[Any] = []
        if side == "on":
            config = ServiceConfig(otlp_endpoint=endpoint, metrics_interval_s=COLLECT_S)
            exporters = [telemetry.setup("bench", config), metrics.setup("bench", config)]
            self.runtime.meter.export()
        await self.gang(WARM_UP_TOKENS)
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = [await self.gang(self._args.tokens) for _ in range(self._args.gangs)]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        for exporter in exporters:
            await asyncio.to_thread(exporter.shutdown)
        assert set(tokens) == {self._args.agents * self._args.tokens}, tokens
        return {"wall_s": wall, "cpu_s": cpu}


async def measure(args: argparse.Namespace, endpoint: str) -> list[dict[str, dict[str, float]]]:
    """Rounds of one block a side; the first warms up and is not counted."""
    config = AgentDecoderConfig(model=args.model, threads=args.threads)
    bench = Bench(Runtime(config, "bench", await native_engine.prepare(config)), args)
    bench.runtime.start()
    rounds = []
    for number in range(args.rounds + 1):
        turn = number % len(SIDES)
        order = SIDES[turn:] + SIDES[:turn]
        rounds.append({side: await bench.block(side, endpoint) for side in order})
    await bench.runtime.stop()
    return rounds[1:]


def summary(rounds: list[dict[str, dict[str, float]]], side: str) -> dict[str, Any]:
    """Medians of a side and its ratio to `bare`, round by round."""
    row: dict[str, Any] = {"side": side, "rounds": len(rounds)}
    for what in ("wall_s", "cpu_s"):
        ratios = [one[side][what] / one["bare"][what] for one in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(rounds) > 1 else ratios * 3
        row[what] = round(statistics.median(one[side][what] for one in rounds), 4)
        row[f"{what[:-2]}_ratio"] = round(middle, 4)
        row[f"{what[:-2]}_quartiles"] = [round(low, 4), round(high, 4)]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--gangs", type=int, default=2, help="gangs in a block")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.sink:
        sink()
        return
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = SPANS_EVERY_MS
    with running_sink() as endpoint:
        rounds = asyncio.run(measure(args, endpoint))
    rows = [summary(rounds, side) for side in SIDES]
    print(
        f"{'':6}"
        + "".join(f"{what:>9}{'ratio':>9}{'quartiles':>16}" for what in ("wall s", "CPU s"))
    )
    for row in rows:
        cells = [row["side"].ljust(6)]
        for what in ("wall", "cpu"):
            low, high = row[f"{what}_quartiles"]
            cells.append(f"{row[what + '_s']:9.3f}{row[what + '_ratio']:9.3f}{low:9.3f}–{high:.3f}")
        print(" ".join(cells))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
