"""Are budgets and deadlines kept? Many questions with random limits, through a real mesh.

    python -m tests.bench.limits_held [--questions 2000] [--seed 1] [--json F]

A third of the questions has a budget of tokens, a third a deadline, a third both, with 1 to 8
agents and every strategy of one round. Overshoot is what was sampled beyond the budget. A deadline
is met if an answer is at the client before it. Some limits leave no answer: fewer tokens than one
agent needs, less time than the same number of agents takes without limits. Both are measured
first, and *possible* are those above the most that was needed; below it, a failure that names the
limit is right, and counted apart.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cogitate.cli.mesh.plan import Options
from cogitate.client import Client, CogitateError

from tests.bench import report
from tests.bench.local_mesh import local_mesh

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"
MOST_AGENTS = 8


def limits(random: Random) -> dict[str, Any]:
    """What one question may cost."""
    kind = random.randrange(3)
    asked: dict[str, Any] = {
        "agents": random.randint(1, MOST_AGENTS),
        "quorum": random.choice(["all", "unbeatable", "posterior", "first:2"]),
        "strategy": random.choice(["vote", "confidence"]),
    }
    if kind != 1:
        asked["budget_tokens"] = random.randint(asked["agents"], 400)
    if kind != 0:
        asked["deadline_s"] = random.uniform(0.02, 1.5)
    return asked


def ask(client: Client, asked: dict[str, Any], seed: int) -> dict[str, Any]:
    """What became of one question."""
    began = time.perf_counter()
    run = dict(asked)
    try:
        answer = client.ask(QUESTION, images=[BOARD], seed=seed, **asked)
    except CogitateError as error:
        run |= {"outcome": error.reason, "took_s": time.perf_counter() - began}
        return run
    run["took_s"] = time.perf_counter() - began
    run["tokens"] = answer.usage.sampled_tokens
    run["outcome"] = "cut short" if answer.degraded else "answered"
    return run


@dataclass(frozen=True)
class Needs:
    """The most that was needed without limits: seconds by number of agents, tokens of one agent."""

    seconds: dict[int, float]
    tokens: int


def needs(client: Client, repeats: int) -> Needs:
    """Asks without limits."""
    seconds: dict[int, float] = {}
    most = 0
    for agents in range(1, MOST_AGENTS + 1):
        for seed in range(repeats):
            began = time.perf_counter()
            answer = client.ask(QUESTION, images=[BOARD], seed=seed, agents=agents, quorum="all")
            took = time.perf_counter() - began
            seconds[agents] = max(seconds.get(agents, 0.0), took)
            most = max(most, *(ballot.sampled_tokens for ballot in answer.certificate.ballots))
    return Needs(seconds, most)


def is_possible(run: dict[str, Any], needed: Needs) -> bool:
    """Whether there is an answer within the limits."""
    enough_time = run.get("deadline_s", math.inf) > needed.seconds[run["agents"]]
    return enough_time and run.get("budget_tokens", math.inf) >= needed.tokens


def summary(runs: list[dict[str, Any]], needed: Needs) -> dict[str, Any]:
    """Counts and the worst of each."""
    over = [
        r["tokens"] - r["budget_tokens"] for r in runs if "tokens" in r and "budget_tokens" in r
    ]
    timed = [r for r in runs if "deadline_s" in r]
    late = [r for r in timed if r["took_s"] > r["deadline_s"]]
    possible = [r for r in runs if is_possible(r, needed)]
    answered = [r for r in possible if r["outcome"] in ("answered", "cut short")]
    in_time = [r for r in answered if r["took_s"] <= r.get("deadline_s", math.inf)]
    return {
        "questions": len(runs),
        "outcomes": dict(Counter(r["outcome"] for r in runs)),
        "budgets_with_an_answer": len(over),
        "most_overshoot_tokens": max(0, *over) if over else 0,
        "deadlines": len(timed),
        "heard_of_late": len(late),
        "latest_ms": round(max((1000 * (r["took_s"] - r["deadline_s"]) for r in late), default=0)),
        "one_agent_needs_tokens": needed.tokens,
        "possible": len(possible),
        "possible_and_answered": len(answered),
        "possible_and_answered_in_time": len(in_time),
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=6, help="without limits (%(default)s)")
    args: argparse.Namespace = parser.parse_args()
    random, runs = Random(args.seed), []
    to = report.console()
    with local_mesh(Options(), to) as mesh:
        with Client(mesh.address) as client, report.progress(to) as progress:
            needed = needs(client, args.repeats)
            task = progress.add_task("questions", total=args.questions)
            for number in range(args.questions):
                runs.append(ask(client, limits(random), number))
                progress.advance(task)
    found = summary(runs, needed)
    for name, value in found.items():
        to.print(f"{name.replace('_', ' ')}: {value}")
    report.write(args, summary=found, runs=runs)


if __name__ == "__main__":
    main()
