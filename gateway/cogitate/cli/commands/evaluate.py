"""`cogitate eval`: accuracy, latency and tokens on any questions, through the running mesh."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cogitate.cli import flags, screen
from cogitate.cli.measure import compare, plot, report
from cogitate.cli.measure.ask import MeshAway, ask
from cogitate.cli.measure.bars import Bars
from cogitate.cli.measure.results import BadResults, Record, Results, read
from cogitate.cli.measure.run import Run
from cogitate.cli.measure.setting import BASELINES, RETRY, Setting, grid
from cogitate.cli.measure.statistics import Outcome
from cogitate.cli.mesh import access
from cogitate.cli.starting import Starting
from cogitate.cli.store import offering
from cogitate.client import AsyncClient
from cogitate.evals import gym, jsonl
from cogitate.evals.question import Question
from rich.console import Console

NAME = "eval"
HELP = "measure accuracy, latency and tokens"
DATASETS: Final = (
    "boards", "boards-hard", "easy-vqa", "countdown", "mixed-hard", "labels", "labels-hard",
    "tables", "tables-hard", "charts", "charts-hard", "pairs", "followups", "chains", "outside",
    "near-misses", "labels-known", "tables-known", "charts-known",
)  # fmt: skip
COMPARE: Final = "compare"
# A quorum per set: where a tool can prove an answer, wait for the proof.
_QUORUMS: Final = {"countdown": ("verified",)}
_DEFAULT_QUORUMS: Final = ("unbeatable",)
_DEFAULT_LIMIT: Final = 100
DESCRIPTION = """\
Asks questions through the mesh that runs here, or a private one, in every combination of --agents,
--strategy and --quorum, and prints accuracy with Wilson's 95 % interval, tokens by fate, and
latency as a client sees it. Questions are one of our sets; a file of JSON lines, or - for standard
input; or reasoning-gym:TASK, for which `pip install 'cogitate[reasoning]'`. Our sets are boards,
countdown, labels (words on cards), tables (receipts, timetables, lab reports) and charts, all but
countdown also as NAME-hard, with more noise; mixed-hard, all of these in turn; easy-vqa; pairs
(two pictures); followups (the last question of a conversation); chains (read, look up, calculate);
outside (to be declined) and near-misses (not to be declined: any answer counts); labels-known,
tables-known and charts-known, in forms of asking that mini was trained on: all else is not.

  cogitate eval countdown --agents 1,2,4,8,16 --limit 200 --baseline retry --out countdown
  cogitate eval mine.jsonl --agents 1,8 --quorum all,unbeatable --baseline judge --out mine
  cogitate eval reasoning-gym:chain_sum --model smollm2-135m-instruct --regex='-?[0-9]+'
  cogitate eval compare mine            # paired: what a quorum saves and what it costs
  cogitate eval compare before after    # the same settings in two folders

A line of a file: {"id": "7", "question": "What is 3 + 4?", "answer": "7"}; also "answers",
"choices", "image" or "images" (relative to the file), "system", "equivalence" and "regex".

With --out every result is in DIR/results.jsonl at once. Start the same command again after Ctrl-C
and it goes on where it was; the tables and plots are of all that DIR holds. All settings are asked
each question before the next one begins. One agent alone is greedy and `thinking`, more are
`contemplating`, unless told otherwise. Latency is honest with --concurrency 1 only, the default.

Baselines, for every number of agents N above 1: `judge` makes N single calls that differ by seed,
waits for all, and makes one more that is shown their answers; `retry`, for countdown only, has one
agent try until it has spent what N agents spent or proved its answer. Single calls sample at 0.8,
gangs at the model's own temperature; --temperature gives all of them one.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("dataset", metavar="SET", help="a set, a file, -, or compare; see above")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="of compare: 1 or 2")
    parser.add_argument(
        "--limit",
        type=flags.positive,
        metavar="N",
        help=f"questions ({_DEFAULT_LIMIT}; files: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of questions and agents (%(default)s)")
    parser.add_argument("--repeat", type=flags.positive, default=1, metavar="N", help="other seeds")
    parser.add_argument("--concurrency", type=flags.positive, default=1, metavar="N")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="results, tables and plots go there"
    )
    group = parser.add_argument_group("the grid")
    group.add_argument("--agents", type=flags.counts, default=(1, 8), metavar="1,8")
    group.add_argument("--strategy", type=flags.names, default=("vote",), metavar="vote,…")
    group.add_argument(
        "--quorum",
        type=flags.names,
        metavar="all,…",
        help="any the mesh knows; default: verified for countdown, else unbeatable",
    )
    group.add_argument(
        "--baseline", type=flags.names, default=(), metavar="judge,retry", help="see above"
    )
    group = parser.add_argument_group("the same for all of the grid")
    group.add_argument("--initial-agents", type=flags.positive, default=0, metavar="N")
    group.add_argument("--effort", choices=("instant", "thinking", "contemplating"), default="")
    group.add_argument("--temperature", type=float, metavar="T")
    group.add_argument("--max-tokens", type=flags.positive, metavar="N", help="each agent")
    group.add_argument("--regex", default="", metavar="PATTERN", help="every answer follows it")
    group.add_argument("--model", default="", metavar="NAME")
    group.add_argument("--deadline", type=flags.duration, default=60.0, metavar="60s")
    flags.add_access(parser)
    flags.add_mesh(parser)


def run(args: argparse.Namespace) -> int:
    """Asks, or compares what was asked; prints tables, and writes what --out says."""
    from cogitate.cli.main import UsageError

    try:
        if args.dataset == COMPARE:
            return _compare(args)
        if args.folders:
            raise UsageError(f"only `{COMPARE}` takes folders; --out says where results go")
        return _evaluate(args)
    except BadResults as error:
        raise UsageError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise UsageError(f"cannot use{where}: {error.strerror}") from None


def _evaluate(args: argparse.Namespace) -> int:
    settings = _grid(args)
    questions = _load(args.dataset, args.limit, args.seed)
    console = screen.console()
    with Results(args.out) as results:
        work = Run(questions, settings, results, args.seed, args.repeat, args.concurrency)
        ended = _ask_all(work, args, console)
        records = list(results)
    failed = _show(records, work, args.out, console)
    if isinstance(ended, MeshAway):
        console.print(f"[red]stopped:[/red] {ended}", highlight=False)
    if ended is not None and args.out:
        console.print("the same command goes on from here", highlight=False)
    if isinstance(ended, KeyboardInterrupt):
        return 130
    return 1 if ended is not None or failed else 0


def _ask_all(
    work: Run, args: argparse.Namespace, console: Console
) -> KeyboardInterrupt | MeshAway | None:
    """Asks what is not there yet; returns what ended it early."""
    kept = work.kept()
    if kept:
        console.print(f"{len(kept)} of {work.total} results are there already", highlight=False)
    if len(kept) == work.total:
        return None
    with ExitStack() as stack:
        found = access.running_beside(args.name, args.address, args.server)
        if found is None:
            starting = Starting(console, "no mesh is running; starting a private one")
            mesh = offering.located(flags.mesh_options(args), console)
            private = access.private(args.name, mesh, starting)
            found = stack.enter_context(private)
        try:
            asyncio.run(_go(found.address, work, kept, console))
        except (KeyboardInterrupt, MeshAway) as ended:
            return ended
    return None


async def _go(address: str, work: Run, kept: Sequence[Record], console: Console) -> None:
    async with AsyncClient(address) as client:

        async def one(question: Question, setting: Setting, seed: int, budget: int) -> Outcome:
            return await ask(client, question, setting, seed, budget)

        with Bars(console, work.settings, len(work.questions) * work.repeats, kept) as bars:
            await work.go(one, bars)


def _show(records: Sequence[Record], work: Run, folder: Path | None, console: Console) -> bool:
    """Shows and writes what was measured; says whether a setting came to nothing."""
    found = compare.measured(records)
    rows, comparisons = compare.rows(found), list(compare.within(found))
    said = report.remarks(rows, [one.concurrency for one in records], work.refusals)
    for table in report.tables(rows, comparisons):
        console.print(table)
    for remark in said:
        console.print(remark, highlight=False, markup=False)
    if folder is not None and rows:
        report.write(folder, "summary", rows, comparisons, said)
        console.print(f"[dim]results, tables and plots in[/dim] {folder}", highlight=False)
        _draw(rows, folder, console)
    return bool(work.refusals) or any(one.failed == one.runs for one in rows.values())


def _draw(rows: report.Rows, folder: Path, console: Console) -> None:
    if not plot.available():
        console.print("no plots: pip install 'cogitate[eval]'", highlight=False, markup=False)
        return
    for dataset in dict.fromkeys(dataset for dataset, _ in rows):
        of_it = {setting: row for (name, setting), row in rows.items() if name == dataset}
        file = re.sub(r"[^\w.-]+", "-", dataset)
        count = max(row.questions for row in of_it.values())
        title = f"{dataset}, {count} questions; bars are 95 % intervals"
        plot.frontier(of_it, title, folder / f"{file}-frontier.png")
        plot.by_agents(of_it, title, folder / f"{file}-agents.png")


def _compare(args: argparse.Namespace) -> int:
    from cogitate.cli.main import UsageError

    if len(args.folders) not in (1, 2):
        raise UsageError(f"`{COMPARE}` takes one folder or two")
    found = [compare.measured(read(folder)) for folder in args.folders]
    made = list(compare.within(found[0]) if len(found) == 1 else compare.between(*found))
    if not made:
        raise UsageError("no two settings there can be compared: they share no question")
    console = screen.console()
    for table in report.tables({}, made):
        console.print(table)
    console.print(report.PAIRED_NOTES, highlight=False)
    report.write(args.out or args.folders[-1], "comparison", {}, made, ())
    return 0


def _grid(args: argparse.Namespace) -> list[Setting]:
    from cogitate.cli.main import UsageError

    for name in args.baseline:
        if name not in BASELINES:
            raise UsageError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}")
    if RETRY in args.baseline and args.dataset != "countdown":
        raise UsageError("the baseline retry needs answers that a tool can prove: countdown")
    base = Setting(
        agents=1,
        initial_agents=args.initial_agents,
        effort=args.effort,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        model=args.model,
        regex=args.regex,
        deadline_s=args.deadline,
    )
    quorums = args.quorum or _QUORUMS.get(args.dataset, _DEFAULT_QUORUMS)
    return grid(base, args.agents, args.strategy, quorums, args.baseline)


def _load(name: str, limit: int | None, seed: int) -> Sequence[Question]:
    """Returns the questions of a set or file. Raises UsageError."""
    from cogitate.cli.main import UsageError

    try:
        if name in DATASETS:
            from cogitate.evals import datasets

            return datasets.load(name, limit or _DEFAULT_LIMIT, seed=seed)
        if name.startswith(gym.PREFIX):
            return gym.load(name, limit or _DEFAULT_LIMIT, seed=seed)
        if name == jsonl.STDIN or name.endswith(".jsonl") or Path(name).exists():
            return jsonl.load(name, limit)
    except (ImportError, jsonl.BadQuestion) as error:
        raise UsageError(str(error)) from None
    except KeyError as error:
        raise UsageError(str(error.args[0])) from None
    known = ", ".join((*DATASETS, f"{gym.PREFIX}TASK"))
    raise UsageError(f"there is no set {name!r} and no such file; there are {known}")
