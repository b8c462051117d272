"""How soon does a synthesized answer begin after the last draft, with its prompt computed ahead?

    python -m tests.bench.synthesis_ahead [MODEL_DIRECTORY] [--agents 8] [--questions 20] [--json F]

Two meshes of real processes with one decoder each, that differ in the aggregators' knob `prepare`.
Each question is asked of both with one seed, and they take turns at being first; no mesh sees a
question twice, so no cache of an earlier one helps. Agents end where the model ends its turn, and
so after different numbers of tokens. The first question of each side warms up and is not counted.
Times are the journal's: from the last ballot of the first round to the first `verdict_delta`. How
many answers are the very same on both sides is told; drafts that came in another order make
another prompt.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cogitate.client import Client

from tests.bench import report
from tests.bench.decode.__main__ import FOLDERS, MODEL
from tests.bench.local_mesh import LocalMesh, local_mesh, options_for

QUESTIONS = (
    "Name three animals of the sea and say one thing about each.",
    "Why is the sky blue? Answer in a few sentences.",
    "How is bread made?",
    "What should one think of before moving to another city?",
    "Explain to a child why ships float.",
    "How can somebody learn to cook in a month?",
    "Why do leaves change their colour?",
    "What makes a good friend?",
)
KNOB = "COGITATE_AGGREGATOR_PREPARE"
SIDES = ("ahead", "after")


@contextmanager
def mesh_with(args: argparse.Namespace, to: Any, *, prepare: bool) -> Iterator[LocalMesh]:
    """A mesh whose aggregator computes ahead, or not."""
    os.environ[KNOB] = str(prepare).lower()
    try:
        context = local_mesh(options_for(args.model, args.threads), to)
        mesh = context.__enter__()
    finally:
        del os.environ[KNOB]
    try:
        yield mesh
    finally:
        context.__exit__(None, None, None)


def ask(client: Client, args: argparse.Namespace, number: int) -> dict[str, Any]:
    """One contemplation: times in seconds, positions of prompts, the answer."""
    question = f"Question {number}: {QUESTIONS[number % len(QUESTIONS)]}"
    stream = client.contemplate(
        question, model=args.model.name, agents=args.agents, strategy="synthesis", quorum="all",
        seed=number, temperature=0.8, max_tokens=args.tokens, tools=[], on_disconnect="continue",
    )  # fmt: skip
    ballots: list[int] = []
    order: list[int] = []
    lost: list[str] = []
    prompts: list[Any] = []
    first_ns = 0
    with stream:
        for event in stream:
            kind, ns = event.WhichOneof("event"), event.event_time.ToNanoseconds()
            if kind == "ballot_cast" and event.ballot_cast.ballot.round_number == 1:
                ballots.append(ns)
                order.append(event.ballot_cast.ballot.agent_id)
            elif kind == "agent_lost":
                lost.append(event.agent_lost.reason)
            elif kind == "prefilled":
                prompts.append(event.prefilled)
            elif kind == "verdict_delta" and not first_ns:
                first_ns = ns
        answer = stream.answer()
    return {
        "wait_s": (first_ns - ballots[-1]) / 1e9 if first_ns else None,
        "last_gap_s": (ballots[-1] - ballots[-2]) / 1e9 if len(ballots) > 1 else None,
        "drafts_s": (ballots[-1] - ballots[0]) / 1e9,
        "total_s": answer.duration_s,
        "prompt": prompts[-1].prompt_token_count,
        "cached": prompts[-1].cached_token_count,
        "prefill_s": prompts[-1].prefill_duration.ToNanoseconds() / 1e9,
        "prepared": sum(prompt.gang_id.startswith("prepare") for prompt in prompts),
        "tokens": answer.usage.sampled_tokens,
        "order": order,
        "lost": lost,
        "answer": answer.answer,
    }


def measure(clients: dict[str, Client], args: argparse.Namespace, to: Any) -> list[dict[str, Any]]:
    """Every question of both sides, in turns; what is found is written after each."""
    runs = []
    with report.progress(to) as progress:
        task = progress.add_task("questions", total=args.questions + 1)
        for number in range(args.questions + 1):
            turns = SIDES if number % 2 else SIDES[::-1]
            found = {side: ask(clients[side], args, number) for side in turns}
            same = found["ahead"].pop("answer") == found["after"].pop("answer")
            if number:
                runs.append({"question": number, "same_answer": same, **found})
                report.write(args, runs=runs)
            progress.advance(task)
    return runs


def row(name: str, runs: list[dict[str, Any]], key: str, digits: int = 3) -> tuple[Any, ...]:
    """Medians of both sides, and of what they differ by within a question."""
    both = [(run["ahead"][key], run["after"][key]) for run in runs]
    both = [pair for pair in both if None not in pair]
    if not both:
        return name, "-", "-", "-"
    return (
        name,
        report.median((a for a, _ in both), digits),
        report.median((b for _, b in both), digits),
        report.median((a - b for a, b in both), digits),
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    usual = next((f / MODEL for f in FOLDERS if (f / MODEL).exists()), FOLDERS[0] / MODEL)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=usual, help="(%(default)s)"
    )
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256, help="most of each agent (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    to = report.console()
    with (
        mesh_with(args, to, prepare=True) as one,
        mesh_with(args, to, prepare=False) as two,
        Client(one.address) as ahead,
        Client(two.address) as after,
    ):
        runs = measure({"ahead": ahead, "after": after}, args, to)
    rows = [
        row("last ballot to first word, s", runs, "wait_s"),
        row("its prefill, s", runs, "prefill_s"),
        row("positions of its prompt", runs, "prompt", 0),
        row("of them cached", runs, "cached", 0),
        row("prompts computed ahead", runs, "prepared", 0),
        row("first to last ballot, s", runs, "drafts_s"),
        row("to the verdict, s", runs, "total_s"),
    ]
    columns = ("medians", *SIDES, "difference")
    to.print(report.table(f"{args.agents} agents: {args.model.name}", columns, rows))
    same = sum(run["same_answer"] for run in runs)
    alike = sum(run["ahead"]["order"] == run["after"]["order"] for run in runs)
    to.print(f"of {len(runs)} questions {alike} had their drafts in one order, {same} one answer")
    summary: dict[str, Any] = {n: dict(zip(columns[1:], v, strict=True)) for n, *v in rows}
    report.write(args, summary={**summary, "same_order": alike, "same_answers": same}, runs=runs)


if __name__ == "__main__":
    main()
