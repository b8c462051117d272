"""Does `confidence` decide on a real engine what DeepConf, written down again, decides off line?

    python -m tests.bench.deepconf_recorded [MODEL_DIRECTORY] [--questions 20] [--json F]

A real mesh with two decoders; every agent reports the 20 likeliest tokens of each position, so the
journal holds recordings. The reference (arXiv 2508.15260, section 3.2) computes everything of them
anew with numpy: token confidence, the mean over a window of 32, the lowest of a run, the warm-up's
percentile, who falls under it, and the weighed vote. Compared are the threshold, who is stopped and
at which token, and the winner. The threshold travels: an agent is held to it from the token on that
its endpoint says it had when it came.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cogitate.aggregator.course import replay
from cogitate.aggregator.sqlite_journal import SqliteJournal
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import journal_pb2
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.bench.decode.__main__ import FOLDERS, MODEL
from tests.bench.local_mesh import local_mesh, options_for

QUESTIONS = (
    "Why is the sky blue?",
    "How is bread made?",
    "Is a tomato a fruit? Explain.",
    "What is the largest ocean, and why does it matter?",
    "Name an animal of the sea and say something about it.",
)
TOP_K, WINDOW = 20, 32
FLOAT32 = 1e-4  # confidences travel as float32


@dataclass
class Recording:
    """One agent as its endpoint told it: a confidence for each token, and its ending."""

    confidences: list[float] = field(default_factory=list)
    unheld: float = math.inf  # its tokens when the threshold came to where it runs, if it did
    stopped: bool = False
    answer: str = ""

    @property
    def groups(self) -> list[float]:
        """Group confidence at each token that has a whole window behind it, oldest first."""
        sums = np.convolve(self.confidences, np.ones(WINDOW) / WINDOW, mode="valid")
        return list(sums) if len(self.confidences) >= WINDOW else []

    @property
    def lowest(self) -> float:
        """Lowest group confidence; of less than a window, the mean of all; 0 of nothing."""
        if not self.confidences:
            return 0.0
        return float(min(self.groups, default=np.mean(self.confidences)))


@dataclass
class Compared:
    """What agrees in one contemplation, counted."""

    agents: int = 0
    warm_up: int = 0
    stopped: int = 0
    agree: int = 0
    late: int = 0  # fell before the threshold came, and ran on
    threshold_differs: int = 0
    winner_differs: int = 0
    others: list[dict[str, Any]] = field(default_factory=list)  # who is not judged alike


def ask(stub: Any, model: str, number: int, agents: int, tokens: int, kept: float) -> Any:
    """One contemplation to its end; returns its id and the verdict."""
    spec = pb.ContemplationSpec(
        model=model, agent_count=agents, strategy=f"confidence:{kept}", quorum="all",
        equivalence="text", allowed_tools=["none"],
    )  # fmt: skip
    text = QUESTIONS[number % len(QUESTIONS)]
    spec.conversation.add(role="ROLE_USER", parts=[common.Part(text=text)])
    params = spec.sampling_params
    params.seed, params.temperature, params.max_tokens, params.logprobs = number, 0.9, tokens, TOP_K
    id_ = ""
    for response in stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=300):
        id_ = id_ or response.event.accepted.contemplation_id
        last = response.event
    return id_, last.verdict


def journalled(file: Path, id_: str) -> tuple[list[bytes], float]:
    """What the state machine was given, in order, and the threshold that it made of it."""

    async def read() -> tuple[list[bytes], float]:
        journal = SqliteJournal(str(file))
        try:
            record, entries = await journal.get(id_), await journal.entries(id_)
        finally:
            await journal.close()
        assert record is not None
        return entries, replay(record, entries).course.machine.rounds.threshold or 0.0

    return asyncio.run(read())


def recorded(entries: Sequence[bytes], num_warm_up: int) -> tuple[dict[int, Recording], list[int]]:
    """Agents' recordings, and who ended first: the warm-up."""
    agents: dict[int, Recording] = {}
    ended: list[int] = []
    for raw in entries:
        entry = journal_pb2.JournalInput.FromString(raw)
        response = entry.heard.response
        for delta in response.step.deltas:
            agent = agents.setdefault(delta.agent_id, Recording())
            for top in delta.top_logprobs:
                agent.confidences.append(-float(np.mean(np.float64(top.logprobs[:TOP_K]))))
        if response.HasField("finished"):
            finished = response.finished
            agent = agents.setdefault(finished.agent_id, Recording())
            agent.stopped = finished.finish_reason == common.FINISH_REASON_CONFIDENCE
            agent.answer = finished.answer
            if finished.confidence.HasField("threshold_token_count"):
                agent.unheld = finished.confidence.threshold_token_count
            if not agent.stopped:
                ended.append(finished.agent_id)
    return agents, ended[:num_warm_up]


def compare(
    agents: dict[int, Recording], warm_up: list[int], args: argparse.Namespace,
    threshold: float, winner: str,
) -> Compared:  # fmt: skip
    """The reference's decisions beside the mesh's."""
    made = Compared(agents=len(agents), warm_up=len(warm_up))
    known = [agents[i].lowest for i in warm_up if agents[i].lowest > 0.0]
    bar = float(np.percentile(known, 100 * (1 - args.kept))) if known else 0.0
    made.threshold_differs = int(abs(bar - threshold) > FLOAT32)
    weights: dict[str, float] = {}
    for id_, agent in agents.items():
        made.stopped += agent.stopped
        if id_ not in warm_up and bar:
            _judge(made, agent, bar)
        if not agent.stopped:
            weights[agent.answer] = weights.get(agent.answer, 0.0) + agent.lowest
    best = max(weights.values(), default=0.0)
    winners = {answer for answer, weight in weights.items() if weight >= best - FLOAT32}
    made.winner_differs = int(winner not in winners)
    return made


def _judge(made: Compared, agent: Recording, bar: float) -> None:
    """Whether the reference stops it, and where."""
    falls = [WINDOW + i for i, group in enumerate(agent.groups) if group < bar - FLOAT32]
    later = [at for at in falls if at > agent.unheld]
    at = len(agent.confidences)
    made.late += len(later) < len(falls)
    agrees = all(fall == at for fall in later)  # or with that token it ended by itself
    if agent.stopped:
        agrees = agrees and at > agent.unheld and bool(agent.groups[-1] < bar + FLOAT32)
    made.agree += agrees
    if not agrees:
        made.others.append({"tokens": at, "stopped": agent.stopped, "unheld": str(agent.unheld),
                            "falls": later})  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__ or "")
    usual = next((f / MODEL for f in FOLDERS if (f / MODEL).exists()), FOLDERS[0] / MODEL)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=usual, help="(%(default)s)"
    )
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=160, help="most of each agent (%(default)s)")
    parser.add_argument("--kept", type=float, default=0.5, help="share to keep (%(default)s)")
    args: argparse.Namespace = parser.parse_args()
    to = report.console()
    total = Compared()
    options = replace(options_for(args.model, 1), decoders=2)
    num_warm_up = max(4, -(-args.agents // 4))
    with local_mesh(options, to) as mesh, report.progress(to) as progress:
        task = progress.add_task("questions", total=args.questions)
        with grpc.insecure_channel(mesh.address) as channel:
            stub = ContemplationServiceStub(channel)
            for number in range(args.questions):
                id_, verdict = ask(
                    stub, args.model.name, number, args.agents, args.tokens, args.kept
                )
                entries, threshold = journalled(mesh.folder / "journal.sqlite", id_)
                recordings = recorded(entries, num_warm_up)
                one = compare(*recordings, args, threshold, verdict.answer)
                for name, value in vars(one).items():
                    setattr(total, name, getattr(total, name) + value)
                progress.advance(task)
    judged = total.agents - total.warm_up
    to.print(
        report.table(
            f"{args.questions} contemplations of {args.agents} agents: {args.model.name}",
            (
                "agents judged",
                "stopped",
                "the reference agrees",
                "fell earlier",
                "other thresholds",
                "other winners",
            ),
            [
                (
                    judged,
                    total.stopped,
                    total.agree,
                    total.late,
                    total.threshold_differs,
                    total.winner_differs,
                )
            ],
        )
    )
    report.write(args, summary=vars(total) | {"judged": judged})


if __name__ == "__main__":
    main()
