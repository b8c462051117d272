"""`cogitate eval`: accuracy, latency and tokens on a dataset, through the running mesh."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cogitate.cli import flags, screen
from cogitate.cli.measure import plot
from cogitate.cli.measure.run import (
    DEFAULT_QUORUM,
    QUORUMS,
    Question,
    Setting,
    measure,
    retry_baseline,
)
from cogitate.cli.measure.statistics import Outcome, Row, row, wilson
from cogitate.cli.mesh import access
from cogitate.cli.starting import Starting
from cogitate.cli.store import offering
from cogitate.client import AsyncClient
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

NAME = "eval"
HELP = "measure accuracy, latency and tokens"
DATASETS = ("boards", "boards-hard", "easy-vqa", "countdown")
DESCRIPTION = """\
Asks held-out questions through the mesh that runs here, or a private one, and prints accuracy with
Wilson's 95 % interval, latency as a client sees it, and tokens. One agent alone is greedy and
`thinking`, more are `contemplating`, unless told otherwise.

  cogitate eval countdown --agents 1,2,4,8,16 --limit 200 --retry-baseline --plot countdown.png
  cogitate eval boards --agents 1,8 --limit 1000 --json boards.json --concurrency 4

Latency is honest with --concurrency 1 only (the default). --retry-baseline also has one agent try
again and again, at temperature 0.8, until it has spent what N agents spent or proved its answer.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--agents", type=flags.counts, default=(1, 8), metavar="1,8")
    parser.add_argument("--limit", type=flags.positive, default=100, metavar="N", help="questions")
    parser.add_argument("--seed", type=int, default=0, help="of questions and agents (%(default)s)")
    parser.add_argument("--strategy", default="", metavar="NAME")
    parser.add_argument(
        "--quorum", default="", metavar="NAME", help="verified for countdown, else unbeatable"
    )
    parser.add_argument("--effort", choices=("instant", "thinking", "contemplating"), default="")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--model", default="", metavar="NAME")
    parser.add_argument("--deadline", type=flags.duration, default=60.0, metavar="60s")
    parser.add_argument("--concurrency", type=flags.positive, default=1, metavar="N")
    parser.add_argument("--retry-baseline", action="store_true", help="for countdown; see above")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (extra eval)")
    flags.add_access(parser)
    flags.add_mesh(parser)


def run(args: argparse.Namespace) -> int:
    """Measures every number of agents, prints a table, writes what was asked for."""
    from cogitate.cli.main import UsageError

    if args.retry_baseline and args.dataset != "countdown":
        raise UsageError("--retry-baseline needs answers that a tool can prove: countdown")
    if args.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UsageError("--plot needs matplotlib: pip install 'cogitate[eval]'") from None
    questions = _load(args)
    console = screen.console()
    with ExitStack() as stack:
        found = access.running(args.name, args.address)
        if found is None:
            starting = Starting(console, "no mesh is running; starting a private one")
            mesh = offering.located(flags.mesh_options(args), console)
            private = access.private(args.name, mesh, starting)
            found = stack.enter_context(private)
        rows = asyncio.run(_measure(found.address, questions, args, console))
    console.print(render(rows))
    if args.json:
        text = json.dumps({"rows": [one.to_json() for one in rows]}, indent=2) + "\n"
        args.json.write_text(text, encoding="utf-8")
        console.print(f"[dim]rows in[/dim] {args.json}", highlight=False)
    if args.plot:
        plot.draw(rows, args.plot)
        console.print(f"[dim]plot in[/dim] {args.plot}", highlight=False)
    return 1 if any(one.errors == one.questions for one in rows) else 0


def render(rows: Sequence[Row]) -> Table:
    """Draws the rows as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("dataset", "agents", "strategy", "quorum"):
        table.add_column(name, justify="right" if name == "agents" else "left")
    for name in ("right", "95 % interval", "p50", "p95", "tokens", "errors"):
        table.add_column(name, justify="right")
    for one in rows:
        low, high = one.ci95
        table.add_row(
            one.dataset,
            str(one.agents),
            one.strategy,
            one.quorum,
            f"[bold]{one.accuracy:.1%}[/bold] of {one.questions}",
            f"{low:.1%} – {high:.1%}",
            f"{one.latency_p50_s:.2f} s",
            f"{one.latency_p95_s:.2f} s",
            f"{one.tokens_mean:.0f}",
            str(one.errors) if one.errors else "",
        )
    return table


async def _measure(
    address: str, questions: Sequence[Question], args: argparse.Namespace, console: Console
) -> list[Row]:
    quorum = args.quorum or QUORUMS.get(args.dataset, DEFAULT_QUORUM)
    rows = []
    async with AsyncClient(address) as client:
        with _progress(console) as progress:
            for agents in args.agents:
                setting = Setting(
                    agents=agents,
                    strategy=args.strategy,
                    quorum=quorum,
                    seed=args.seed,
                    deadline_s=args.deadline,
                    model=args.model,
                    effort=args.effort,
                    temperature=args.temperature,
                )
                counter = _Counter(progress, f"{args.dataset} × {agents}", len(questions))
                outcomes = await measure(
                    client, questions, setting, args.concurrency, counter.count
                )
                name = args.strategy or "vote"
                rows.append(row(args.dataset, agents, name, quorum, outcomes))
                if args.retry_baseline and agents > 1:
                    counter = _Counter(progress, f"one agent, {agents}× tries", len(questions))
                    tried = await retry_baseline(
                        client,
                        questions,
                        setting,
                        [one.tokens for one in outcomes],
                        args.concurrency,
                        counter.count,
                    )
                    rows.append(row(args.dataset, agents, plot.RETRY, quorum, tried))
    return rows


class _Counter:
    """Moves one bar and shows the accuracy so far."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total, said="")
        self._right = self._count = 0

    def count(self, outcome: Outcome) -> None:
        """Notes one outcome."""
        self._right += outcome.right
        self._count += 1
        low, high = wilson(self._right, self._count)
        said = f"{self._right / self._count:.1%} ({low:.0%}–{high:.0%})"
        self._progress.update(self._task, advance=1, said=said)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _load(args: argparse.Namespace) -> Sequence[Question]:
    from cogitate.cli.main import UsageError

    try:
        from cogitate.evals import datasets

        loaded: Sequence[Question] = datasets.load(args.dataset, args.limit, seed=args.seed)
    except ImportError as error:
        raise UsageError(str(error)) from None
    return loaded
