"""Decoders come and go with the load, as Kubernetes and KEDA would have it: real processes.

    python -m tests.bench.live_scaling [--seconds 120] [--most 5] [--json F] [--plot F]

A day in two minutes: contemplations of eight agents come at random, at a rate that rises and falls
twice. The scaler asks the router's KEDA endpoint each second for its metric and target, applies
the rule of Kubernetes' autoscaler, starts decoders, and stops them by SIGTERM, upon which they
drain. Decoders are the real service with a model of random weights whose steps take ``--step``
seconds, so that they are limited by their places and not by this machine's two cores. Beside it,
the same load on as many decoders all the time as the scaler may have. Waits are from the question
to the first token; cost is the decoders' price an hour times the time they were there.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from cogitate.cli.mesh.plan import Options, log_file, members, port_count, ready_file
from cogitate.cli.mesh.processes import Processes, free_ports
from cogitate.kit.channels import open_channel
from cogitate.peers import keda_pb2, keda_pb2_grpc
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.fakes.decoder_nursery import Nursery
from tests.fakes.kubernetes import Autoscaler
from tests.fakes.tiny_model import write_tiny_model

AGENTS, TOKENS, PLACES = 8, 60, 16
METRIC = "cogitate-agents"
SYNC_S, STABILIZATION_S = 1.0, 10.0  # Kubernetes': 15 s and 300 s; the day is that much shorter
PRICE_PER_HOUR_USD = 0.09


@dataclass
class Seen:
    """What was there each second, and what came of each question."""

    rows: list[dict[str, float]] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    replica_s: float = 0.0


class Pool:
    """The decoders: those that were started last are the first to go."""

    def __init__(
        self, nursery: Nursery, planned: Sequence[Any], folder: Path, step_s: float
    ) -> None:
        self._nursery, self._planned, self._folder, self._step_s = nursery, planned, folder, step_s
        self.count = 0

    def scale(self, wanted: int) -> None:
        """Starts or drains until there are as many as wanted."""
        while self.count < wanted:
            one = self._planned[self.count]
            ready_file(self._folder, one.name).unlink(missing_ok=True)
            self._nursery.spawn(
                one.name, one.arguments, log_file(self._folder, one.name), self._step_s
            )
            self.count += 1
        while self.count > wanted:
            self.count -= 1
            self._nursery.signal(self._planned[self.count].name, signal.SIGTERM)

    def serving(self) -> int:
        """How many of them take work."""
        return sum(ready_file(self._folder, p.name).exists() for p in self._planned[: self.count])


def rate_at(share: float, peak: float) -> float:
    """Contemplations a second at a share of the day: a morning and a higher afternoon."""
    hump = 0.7 * math.exp(-(((share - 0.28) / 0.1) ** 2)) + math.exp(
        -(((share - 0.68) / 0.12) ** 2)
    )
    return peak * max(0.05, hump)


def question(seed: int) -> pb.ContemplationSpec:
    spec = pb.ContemplationSpec(
        agent_count=AGENTS, quorum="all", strategy="vote", allowed_tools=["none"]
    )
    spec.conversation.add(role="ROLE_USER").parts.add(text="Say what you like.")
    spec.sampling_params.max_tokens = TOKENS
    spec.sampling_params.ignore_eos = True
    spec.sampling_params.temperature = 0.9
    spec.sampling_params.seed = seed
    return spec


async def ask(stub: Any, seed: int, seen: Seen) -> None:
    began, first = time.monotonic(), 0.0
    try:
        async for answer in stub.Contemplate(
            pb.ContemplateRequest(spec=question(seed)), timeout=90.0
        ):
            event = answer.event
            if not first and event.deltas.deltas:
                first = time.monotonic() - began
            if event.WhichOneof("event") in ("failed", "cancelled"):
                seen.failed.append(event.failed.error.message)
    except grpc.RpcError as error:
        seen.failed.append(str(error.code()))  # type: ignore[attr-defined]
    seen.waits_s.append(first or time.monotonic() - began)


async def metric(stub: Any) -> tuple[float, float]:
    """The pool's sum and what one decoder is to have, as KEDA asks for them."""
    pool = keda_pb2.ScaledObjectRef(
        name="decoders", namespace="bench", scalerMetadata={"model": "tiny", "metrics": "agents"}
    )
    (spec,) = (await stub.GetMetricSpec(pool, timeout=5)).metricSpecs
    asked = keda_pb2.GetMetricsRequest(scaledObjectRef=pool, metricName=METRIC)
    (value,) = (await stub.GetMetrics(asked, timeout=5)).metricValues
    return value.metricValueFloat, spec.targetSizeFloat


async def day(args: argparse.Namespace, pool: Pool, at: dict[str, str], scales: bool) -> Seen:
    """One run of the load, scaled or on all decoders."""
    seen, chance, running = Seen(), random.Random(args.seed), set()
    scaler = Autoscaler(1, args.most, STABILIZATION_S)
    async with open_channel(at["gateway"]) as gateway, open_channel(at["router"]) as router:
        ask_stub, keda = ContemplationServiceStub(gateway), keda_pb2_grpc.ExternalScalerStub(router)
        began = last = time.monotonic()
        due = seed = 0.0
        synced = -math.inf
        while (now := time.monotonic() - began) < args.seconds or running:
            while due <= now and due < args.seconds:
                running.add(asyncio.ensure_future(ask(ask_stub, int(seed), seen)))
                seed += 1
                due += chance.expovariate(rate_at(due / args.seconds, args.rate))
            if now - synced >= SYNC_S:
                synced = now
                total, target = await metric(keda)
                if scales:
                    pool.scale(scaler.decide(now, pool.count, total, target))
                seen.rows.append(
                    {
                        "at_s": round(now, 2),
                        "rate": rate_at(now / args.seconds, args.rate) if now < args.seconds else 0,
                        "agents": total,
                        "replicas": pool.count,
                        "serving": pool.serving(),
                        "open": len(running),
                    }
                )
            seen.replica_s += pool.count * (time.monotonic() - last)
            last = time.monotonic()
            await asyncio.sleep(0.02)
            running = {task for task in running if not task.done()}
    return seen


def summary(name: str, seen: Seen) -> dict[str, Any]:
    ordered = sorted(seen.waits_s)
    return {
        "run": name,
        "contemplations": len(ordered),
        "failed": len(seen.failed),
        "wait_p50_s": round(statistics.median(ordered), 3),
        "wait_p99_s": round(ordered[int(0.99 * (len(ordered) - 1))], 3),
        "decoder_seconds": round(seen.replica_s, 1),
        "usd": round(seen.replica_s / 3600 * PRICE_PER_HOUR_USD, 5),
        "most_replicas": max(row["replicas"] for row in seen.rows),
        "rows": seen.rows,
        "waits_s": [round(wait, 3) for wait in seen.waits_s],
        "failures": sorted(set(seen.failed)),
    }


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Load, replicas, what is open, and waits, over time. Needs matplotlib (`eval`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (("contemplations a second", "rate"), ("decoders", "replicas"), ("open", "open"))
    figure, axes = pyplot.subplots(4, 1, figsize=(8, 8), layout="constrained")
    for run in runs:
        times = [row["at_s"] for row in run["rows"]]
        for axis, (title, key) in zip(axes, panels, strict=False):
            axis.step(times, [row[key] for row in run["rows"]], where="post", label=run["run"])
            axis.set_title(title, fontsize=9)
        label = f"{run['run']}: ${run['usd']:.4f}"
        axes[3].plot(
            sorted(run["waits_s"]),
            [i / len(run["waits_s"]) for i in range(len(run["waits_s"]))],
            label=label,
        )
    axes[3].set_title("share of first tokens within seconds", fontsize=9)
    axes[1].legend()
    axes[3].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=8.0, help="contemplations a second at most")
    parser.add_argument("--most", type=int, default=5)
    parser.add_argument("--step", type=float, default=0.01, metavar="S")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    console = report.console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_model(folder / "models")
        options = Options(
            decoders=args.most,
            model="tiny",
            models_path=str(folder / "models"),
            log_level="WARNING",
        )
        planned = members(options, free_ports(port_count(options)), folder, folder / "traces")
        decoders = [
            replace(m, arguments=(*m.arguments, "--max-sequence-count", str(PLACES)))
            for m in planned
            if m.module == "cogitate.agent_decoder"
        ]
        more = {"router": ("--keda-scaler",), "aggregator": ("--place-timeout-s", "60")}
        rest = [
            replace(m, arguments=(*m.arguments, *more.get(m.name, ())))
            for m in planned
            if m.module != "cogitate.agent_decoder"
        ]
        at = {m.name: m.address for m in planned}
        processes = Processes(rest, folder)
        with Nursery(planned[-1].environment) as nursery:
            pool = Pool(nursery, decoders, folder, args.step)
            try:
                processes.start()
                runs = []
                for run, scales in (("scaled", True), ("fixed", False)):
                    pool.scale(1 if scales else args.most)
                    while pool.serving() < pool.count:
                        time.sleep(0.05)
                    time.sleep(1.5)  # until the router has heard of them
                    console.print(f"{run}: {args.seconds:g} s …")
                    runs.append(summary(run, asyncio.run(day(args, pool, at, scales))))
            finally:
                with suppress(Exception):
                    pool.scale(0)
                processes.stop()
    columns = (
        "run",
        "contemplations",
        "failed",
        "wait_p50_s",
        "wait_p99_s",
        "decoder_seconds",
        "usd",
    )
    console.print(
        report.table("decoders by the load", columns, [[r[c] for c in columns] for r in runs])
    )
    report.write(args, runs=runs)
    if args.plot:
        draw(runs, args.plot)


if __name__ == "__main__":
    main()
