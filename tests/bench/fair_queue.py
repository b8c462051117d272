"""Are tenants treated alike, and does an overload cost answers? A mesh with its queue, and without.

    python -m tests.bench.fair_queue [MODEL_DIRECTORY] [--seconds 40] [--overload 10] [--json F]

*Fairness*: four tenants that always want more than there is, two of them with one agent a
contemplation and two with sixteen; what each was given is counted in sampled tokens while all of
them wait, and Jain's index is over these. *Overload*: first a few clients ask again and again,
which is the peak; then contemplations come at random, `--overload` times as often as were answered
at the peak. Goodput is the rate of whole answers within the deadline, which is `--deadline` times
what an answer took at the peak. A refusal is timed from the request to its sentence. All agents
write the same number of tokens. Tenants are told apart at the aggregator, by the metadata a gateway
sets.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
from cogitate.kit.channels import open_channel
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.bench.kv_memory import MINI
from tests.bench.local_mesh import local_mesh, options_for

TENANTS = {"small-1": 1, "small-2": 1, "large-1": 16, "large-2": 16}
QUESTION = "Why is the sky blue?"
WARM_S = 3.0
SOON_MS = 50.0  # who is refused is to hear of it within


@dataclass
class Run:
    """One contemplation, as its client saw it."""

    tenant: str
    began_s: float
    took_s: float = 0.0
    outcome: str = ""
    tokens: int = 0
    tokens_at: list[tuple[float, int]] = field(default_factory=list)


def request(args: argparse.Namespace, agents: int, seed: int) -> pb.ContemplateRequest:
    """Agents that write exactly so many tokens."""
    message = common.Message(role=common.ROLE_USER, parts=[common.Part(text=QUESTION)])
    spec = pb.ContemplationSpec(
        conversation=[message], model=args.model.name, agent_count=agents, strategy="vote",
        quorum="all", allowed_tools=["none"],
    )  # fmt: skip
    spec.sampling_params.max_tokens = spec.sampling_params.min_tokens = args.tokens
    spec.sampling_params.temperature, spec.sampling_params.seed = 0.8, seed
    return pb.ContemplateRequest(spec=spec)


async def ask(
    stub: ContemplationServiceStub, args: argparse.Namespace, run: Run, agents: int, seed: int,
    timeout_s: float,
) -> None:  # fmt: skip
    """Reads one contemplation to its end, and notes what happens as it does."""
    metadata = (("x-cogitate-tenant", run.tenant),)
    try:
        call = stub.Contemplate(request(args, agents, seed), timeout=timeout_s, metadata=metadata)
        async for response in call:
            event = response.event
            if event.HasField("deltas"):
                count = sum(delta.token_count for delta in event.deltas.deltas)
                run.tokens_at.append((time.perf_counter(), count))
            elif event.HasField("verdict"):
                run.outcome = "answer" if not event.verdict.degraded_reasons else "cut"
            elif event.HasField("failed"):
                run.outcome = event.failed.reason
    except grpc.aio.AioRpcError as error:
        shed = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # at the door
        run.outcome = "REJECTED" if shed else error.code().name
    run.took_s = time.perf_counter() - run.began_s


async def closed(
    stub: ContemplationServiceStub, args: argparse.Namespace, clients: dict[str, int],
    seconds: float, timeout_s: float,
) -> tuple[list[Run], float]:  # fmt: skip
    """So many clients a tenant, each of which asks again when it is answered."""
    runs: list[Run] = []
    end = time.perf_counter() + seconds
    seeds = iter(range(10**9))

    async def client(tenant: str) -> None:
        agents = TENANTS.get(tenant, args.agents)
        while time.perf_counter() < end:
            run = Run(tenant, time.perf_counter())
            runs.append(run)
            await ask(stub, args, run, agents, next(seeds), timeout_s)
            if run.outcome not in ("answer", "cut"):
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(client(t)) for t, n in clients.items() for _ in range(n)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return runs, end - seconds


async def opened(
    stub: ContemplationServiceStub, args: argparse.Namespace, rate: float, deadline_s: float
) -> list[Run]:
    """Contemplations that come at random moments, whatever becomes of the others."""
    draw = random.Random(1)
    runs: list[Run] = []
    end = time.perf_counter() + args.seconds
    async with asyncio.TaskGroup() as tasks:
        while time.perf_counter() < end:
            run = Run(f"t{len(runs) % 4}", time.perf_counter())
            runs.append(run)
            tasks.create_task(ask(stub, args, run, args.agents, len(runs), deadline_s))
            await asyncio.sleep(draw.expovariate(rate))
    return runs


def jain(values: list[float]) -> float:
    """1 if all are equal, 1/n if one has everything (Jain, Chiu and Hawe, 1984)."""
    return sum(values) ** 2 / (len(values) * sum(v * v for v in values)) if any(values) else 0.0


def fairness(runs: list[Run], began: float, seconds: float) -> dict[str, Any]:
    """Tokens a tenant was given between the warm-up and the end."""
    given: Counter[str] = Counter(dict.fromkeys(TENANTS, 0))
    for run in runs:
        for at, count in run.tokens_at:
            if began + WARM_S <= at <= began + seconds:
                given[run.tenant] += count
    return {
        "tokens": dict(given),
        "jain": round(jain([float(v) for v in given.values()]), 4),
        "outcomes": dict(Counter(f"{run.tenant}: {run.outcome}" for run in runs)),
    }


def goodput(runs: list[Run], deadline_s: float, seconds: float) -> dict[str, Any]:
    """Answers in time, and how soon the others were told."""
    answered = sorted(r.took_s for r in runs if r.outcome == "answer" and r.took_s <= deadline_s)
    refused = sorted(1000 * r.took_s for r in runs if r.outcome == "REJECTED")
    found: dict[str, Any] = {
        "asked_per_s": round(len(runs) / seconds, 2),
        "answers_per_s": round(len(answered) / seconds, 3),
        "outcomes": dict(Counter(run.outcome for run in runs)),
    }
    if answered:
        found["answer_p50_s"] = round(statistics.median(answered), 2)
    if refused:
        found["refusal_p50_ms"] = round(statistics.median(refused), 1)
        found["refusal_p99_ms"] = round(refused[min(len(refused) - 1, int(0.99 * len(refused)))], 1)
        in_time = sum(took <= SOON_MS for took in refused)
        found["refused_soon"] = round(in_time / len(refused), 3)
    return found


async def measure(address: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both parts at one mesh."""
    async with open_channel(address) as channel:
        stub = ContemplationServiceStub(channel)
        await ask(stub, args, Run("warm", 0.0), args.agents, 0, 120.0)
        clients = {t: args.clients if n == 1 else args.clients // 4 for t, n in TENANTS.items()}
        runs, began = await closed(stub, args, clients, args.seconds, 60.0)
        found = {"fairness": fairness(runs, began, args.seconds)}
        await asyncio.sleep(2.0)
        at_once = {f"t{i}": 4 for i in range(4)}
        runs, began = await closed(stub, args, at_once, args.seconds, 60.0)
        # What was answered in the warm-up, or is under way at the end, is not counted.
        inside = [r for r in runs if r.outcome and r.began_s + r.took_s >= began + WARM_S]
        found["peak"] = goodput(inside, 60.0, args.seconds - WARM_S)
        rate = args.overload * found["peak"]["answers_per_s"]
        deadline_s = args.deadline * found["peak"].get("answer_p50_s", 1.0)
        await asyncio.sleep(2.0)
        runs = await opened(stub, args, max(rate, 0.1), deadline_s)
        found["overload"] = goodput(runs, deadline_s, args.seconds)
        found["overload"]["deadline_s"] = round(deadline_s, 2)
        found["kept"] = round(
            found["overload"]["answers_per_s"] / max(1e-9, found["peak"]["answers_per_s"]), 3
        )
        return found


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__ or "")
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=MINI, help="(%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="of each part (%(default)s)")
    parser.add_argument("--overload", type=float, default=10.0, help="times the peak (%(default)s)")
    parser.add_argument(
        "--deadline", type=float, default=3.0, help="times the peak's answer (%(default)s)"
    )
    parser.add_argument("--agents", type=int, default=8, help="under overload (%(default)s)")
    parser.add_argument("--clients", type=int, default=24, help="of a small tenant (%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="of each agent (%(default)s)")
    parser.add_argument("--queues", default="1000,0", help="lengths of the queue (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    console = report.console()
    rows: list[dict[str, Any]] = []
    with report.progress(console) as bar:
        for length in bar.track([int(n) for n in args.queues.split(",")], description="queues"):
            os.environ["COGITATE_ROUTER_MAX_QUEUE_COUNT"] = str(length)
            with local_mesh(options_for(args.model, args.threads), console) as mesh:
                found = asyncio.run(measure(mesh.addresses["aggregator"], args))
            rows.append({"queue": length, **found})
    lines = [
        (
            row["queue"], row["fairness"]["jain"],
            " ".join(str(n) for n in row["fairness"]["tokens"].values()),
            row["peak"]["answers_per_s"], row["overload"]["asked_per_s"],
            row["overload"]["answers_per_s"], f"{row['kept']:.0%}",
            row["overload"].get("refusal_p50_ms", "-"), row["overload"].get("refusal_p99_ms", "-"),
            row["overload"].get("refused_soon", "-"),
        )
        for row in rows
    ]  # fmt: skip
    columns = (
        "queue", "Jain", "tokens of 1, 1, 16, 16 agents", "peak answers/s", "asked/s",
        "answers/s", "kept", "refused p50 ms", "p99 ms", f"within {SOON_MS:.0f} ms",
    )  # fmt: skip
    console.print(report.table("tenants and overload", columns, lines))
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
