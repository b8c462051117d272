"""How long does an agent live after the decision? Steps it still makes, and the time to its end.

    python -m tests.bench.kill_latency [MODEL_DIRECTORY] [--agents 8] [--questions 20] [--json F]

A real mesh; quorum `first:1`, so that the first agent that answers decides and the others are
killed while they write. An answer hands over all tokens of its step, its siblings' too, so what
an agent sampled beside the tokens seen before `decided` was sampled after the step of the
decision. Times are the journal's: from `decided` to each `agent_killed`, the endpoint's
acknowledgement, in whose step the agent's memory was freed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from cogitate.client import Client

from tests.bench import report
from tests.bench.decode.__main__ import FOLDERS, MODEL
from tests.bench.local_mesh import local_mesh, options_for

QUESTIONS = (
    "Name three animals of the sea and say one thing about each.",
    "Why is the sky blue? Answer in a few sentences.",
    "Write a short story about a lighthouse.",
    "How is bread made?",
)


def ask(client: Client, model: str, number: int, agents: int, tokens: int) -> dict[str, Any]:
    """One contemplation: of each killed agent, tokens and seconds after the decision."""
    stream = client.contemplate(
        QUESTIONS[number % len(QUESTIONS)], model=model, agents=agents, strategy="vote",
        quorum="first:1", seed=number, temperature=0.8, max_tokens=tokens, tools=[],
    )  # fmt: skip
    seen: Counter[int] = Counter()
    decided_ns = 0
    late_tokens, late_s = [], []
    with stream:
        for event in stream:
            kind = event.WhichOneof("event")
            if kind == "deltas" and not decided_ns:
                seen.update({delta.agent_id: delta.token_count for delta in event.deltas.deltas})
            elif kind == "decided":
                decided_ns = event.event_time.ToNanoseconds()
            elif kind == "agent_killed":
                killed = event.agent_killed.agent
                late_tokens.append(killed.sampled_token_count - seen[killed.agent_id])
                late_s.append((event.event_time.ToNanoseconds() - decided_ns) / 1e9)
        answer = stream.answer()
    return {
        "late_tokens": late_tokens, "late_s": late_s, "tokens": answer.usage.sampled_tokens
    }  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    usual = next((f / MODEL for f in FOLDERS if (f / MODEL).exists()), FOLDERS[0] / MODEL)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=usual, help="(%(default)s)"
    )
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96, help="most of each agent (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args: argparse.Namespace = parser.parse_args()
    to = report.console()
    with local_mesh(options_for(args.model, args.threads), to) as mesh:
        with Client(mesh.address) as client, report.progress(to) as progress:
            task = progress.add_task("questions", total=args.questions)
            runs = []
            for number in range(args.questions):
                runs.append(ask(client, args.model.name, number, args.agents, args.tokens))
                progress.advance(task)
    late = Counter(count for run in runs for count in run["late_tokens"])
    waits = sorted(1000 * seconds for run in runs for seconds in run["late_s"])
    to.print(
        report.table(
            f"{sum(late.values())} agents killed while they wrote: {args.model.name}",
            ("steps after the decision", "agents"),
            sorted(late.items()),
        )
    )
    summary: dict[str, Any] = {"killed": len(waits), "late_tokens": dict(sorted(late.items()))}
    if waits:
        summary |= {
            "acknowledged_median_ms": report.median(waits, 1),
            "acknowledged_most_ms": round(waits[-1], 1),
        }
        to.print(
            f"acknowledged after {summary['acknowledged_median_ms']} ms (median), "
            f"{summary['acknowledged_most_ms']} ms at most"
        )
    report.write(args, summary=summary, runs=runs)


if __name__ == "__main__":
    main()
