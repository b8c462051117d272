"""Are budgets and deadlines kept? Many questions with random limits, through a real mesh.

    python -m tests.bench.limits_held [--questions 2000] [--seed 1] [--json F]

A third of the questions has a budget of tokens, a third a deadline, a third both, with 1 to 8
agents and every strategy of one round. Overshoot is what was sampled beyond the budget. A deadline
is met if an answer, finished or not, is at the client before it; where none was there yet the
contemplation fails by name, which is counted apart. *Waiting* deadlines leave less time than the
fastest answer of these questions took: nothing can be there.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from cogitate.cli.mesh.plan import Options
from cogitate.client import Client, CogitateError

from tests.bench import report
from tests.bench.local_mesh import local_mesh

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"


def limits(random: Random) -> dict[str, Any]:
    """What one question may cost."""
    kind = random.randrange(3)
    asked: dict[str, Any] = {
        "agents": random.randint(1, 8),
        "quorum": random.choice(["all", "unbeatable", "posterior", "first:2"]),
        "strategy": random.choice(["vote", "confidence"]),
    }
    if kind != 1:
        asked["budget_tokens"] = random.randint(asked["agents"], 400)
    if kind != 0:
        asked["deadline_s"] = random.uniform(0.02, 1.0)
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


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and the worst of each."""
    over = [
        r["tokens"] - r["budget_tokens"] for r in runs if "tokens" in r and "budget_tokens" in r
    ]
    timed = [r for r in runs if "deadline_s" in r]
    fastest = min((r["took_s"] for r in runs if r["outcome"] == "answered"), default=0.0)
    possible = [r for r in timed if r["deadline_s"] > fastest]
    late = [r for r in timed if r["took_s"] > r["deadline_s"]]
    return {
        "questions": len(runs),
        "outcomes": dict(Counter(r["outcome"] for r in runs)),
        "with_budget": len(over),
        "most_overshoot_tokens": max(over, default=0),
        "with_deadline": len(timed),
        "late": len(late),
        "latest_ms": round(max((1000 * (r["took_s"] - r["deadline_s"]) for r in late), default=0)),
        "fastest_answer_ms": round(1000 * fastest),
        "deadlines_after_that": len(possible),
        "of_these_answered_in_time": sum(
            r["outcome"] in ("answered", "cut short") and r["took_s"] <= r["deadline_s"]
            for r in possible
        ),
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args: argparse.Namespace = parser.parse_args()
    random, runs = Random(args.seed), []
    to = report.console()
    with local_mesh(Options(), to) as mesh:
        with Client(mesh.address) as client, report.progress(to) as progress:
            client.ask(QUESTION, images=[BOARD])
            task = progress.add_task("questions", total=args.questions)
            for number in range(args.questions):
                runs.append(ask(client, limits(random), number))
                progress.advance(task)
    found = summary(runs)
    for name, value in found.items():
        to.print(f"{name.replace('_', ' ')}: {value}")
    report.write(args, summary=found, runs=runs)


if __name__ == "__main__":
    main()
