"""`cogitate ask`: one question, watched."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from cogitate.cli import flags, screen
from cogitate.cli.mesh import access
from cogitate.cli.starting import Starting
from cogitate.cli.store import offering
from cogitate.cli.view import annotate, trace, verdict
from cogitate.cli.view.watch import (
    JsonOutput,
    LiveOutput,
    PlainOutput,
    error_line,
    last_line,
    watch,
)
from cogitate.client import Answer, AskOptions, CogitateError, InvalidRequest, LookupTable
from cogitate.kit.trace_store import TraceStore
from rich.console import Console

NAME = "ask"
HELP = "ask a question and watch the agents"
DESCRIPTION = """\
Asks the mesh that runs here, or starts a private one for this question and takes it down after.
On a terminal it shows one lane an agent: what it writes, where it looks, what it calculates, how it
votes; then the verdict with its certificate and the trace. Elsewhere it prints lines.

  cogitate ask "What is the sum of the red cards?" --image examples/board.png --agents 8
  cogitate ask "What is the sum of the red cards?" --image examples/board.png --annotate seen.png
  cogitate ask "Use each number on the red cards once with + - * to make 26." \\
      --image examples/countdown.png --agents 16 --quorum verified --deadline 10s
  cogitate ask "What is the capital of France?" --model smollm2-135m-instruct --agents 4
  cogitate ask "Is there a circle?" --image examples/shape.png \\
      --json-schema '{"enum": ["yes", "no"]}'
  cogitate ask "Is sodium within its reference range?" --image examples/lab.png \\
      --table examples/ranges.csv
  cogitate ask "Is there a circle?" --image shape.png --json | tail -1 | jq .answer

With --json every line is an event, and the last one the verdict with `answer`, `ballots`,
`certificate` and `usage`, or `error`. Exit codes: 0 an answer, 1 none, 2 wrong use.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("question", help='the question; "-" reads it from standard input')
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="may be given several times"
    )
    parser.add_argument(
        "--table", action="append", default=[], metavar="FILE.csv",
        help="a table agents may look things up in, called as the file is; several may be given",
    )  # fmt: skip
    add_options(parser)
    parser.add_argument(
        "--annotate", metavar="OUT.png",
        help="draw where agents looked on the image; of several, OUT-2.png and so on",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one event a line, the verdict last")
    parser.add_argument("--plain", action="store_true", help="lines instead of lanes")
    parser.add_argument("--no-trace", action="store_true", help="do not draw the trace")
    flags.add_access(parser)
    flags.add_mesh(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how a question is worked on."""
    group = parser.add_argument_group("how it is worked on")
    group.add_argument("--agents", type=int, metavar="N", help="how many agents")
    group.add_argument(
        "--initial-agents",
        type=int,
        default=0,
        metavar="N",
        help="begin with these, or as many as the quorum needs, and widen while there is dissent",
    )
    group.add_argument("--effort", choices=("instant", "thinking", "contemplating"))
    group.add_argument(
        "--strategy", default="", metavar="NAME",
        help="auto (the default), vote, confidence, refine, best_of or synthesis",
    )  # fmt: skip
    group.add_argument(
        "--quorum",
        default="",
        metavar="NAME",
        help="all, unbeatable, unanimous:k, posterior:d, first:m or verified",
    )
    group.add_argument(
        "--equivalence",
        default="",
        metavar="NAME",
        help="which answers are the same: auto, number, choice, text, json or embedding:c",
    )
    group.add_argument("--model", default="", metavar="NAME", help="default: the server's")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed, the same tokens")
    group.add_argument("--temperature", type=float, metavar="T", help="0 (greedy) to 2")
    group.add_argument(
        "--deadline",
        type=flags.duration,
        metavar="10s",
        help="the answer is given by then, from what exists",
    )
    group.add_argument(
        "--budget-tokens", type=int, default=0, metavar="N", help="all agents together"
    )
    group.add_argument("--budget-usd", type=float, default=0.0, metavar="USD")
    group.add_argument("--max-tokens", type=int, metavar="N", help="each agent")
    group.add_argument(
        "--tool", action="append", metavar="NAME", help="allow this one only; none allows none"
    )
    group.add_argument(
        "--json-schema",
        type=flags.json_schema,
        metavar="FILE|JSON",
        help="the answer is JSON that follows it",
    )
    group.add_argument("--regex", default="", metavar="PATTERN", help="the answer follows it")
    group.add_argument("--provider", action="append", default=[], metavar="NAME")
    group.add_argument("--region", action="append", default=[], metavar="NAME")


def options(args: argparse.Namespace) -> AskOptions:
    """Returns what the flags say, for the client."""
    tools = args.tool
    return AskOptions(
        agents=args.agents,
        initial_agents=args.initial_agents,
        effort=args.effort,
        strategy=args.strategy,
        quorum=args.quorum,
        equivalence=args.equivalence,
        model=args.model,
        seed=args.seed,
        temperature=args.temperature,
        deadline_s=args.deadline,
        budget_tokens=args.budget_tokens,
        budget_usd=args.budget_usd,
        max_tokens=args.max_tokens,
        tools=[] if tools == ["none"] else tools,
        json_schema=args.json_schema or "",
        regex=args.regex,
        providers=args.provider,
        regions=args.region,
    )


def run(args: argparse.Namespace) -> int:
    """Asks, shows, and returns the exit code."""
    from cogitate.cli.main import UsageError

    for path in args.image:
        if not Path(path).is_file():
            raise UsageError(f"there is no image {path}")
    if args.annotate and not args.image:
        raise UsageError("--annotate needs an --image to draw on")
    text = sys.stdin.read() if args.question == "-" else args.question
    asked = options(args)
    asked["images"] = args.image
    try:
        asked["tables"] = [LookupTable.from_csv(path) for path in args.table]
    except InvalidRequest as error:
        raise UsageError(error.message) from None
    console = screen.console(stderr=args.json)
    found = access.running_beside(args.name, args.address, args.server)
    try:
        if found is not None:
            answer = show(found, text, asked, args, console)
        else:
            starting = Starting(console, "no mesh is running; starting a private one")
            mesh = offering.located(flags.mesh_options(args), console)
            with access.private(args.name, mesh, starting) as found:
                answer = show(found, text, asked, args, console)
    except CogitateError as error:
        if error.reason == "UNKNOWN_MODEL" and args.model:
            error.message += f". {offering.advice(args.model)}"
        if not args.json:
            raise
        print(json.dumps(error_line(error), ensure_ascii=False), flush=True)
        return 1
    if args.annotate:
        annotate.save(args.annotate, args.image, answer.certificate.sights)
    if not (args.json or args.no_trace):
        print_trace(console, found, answer)
    return 0


def show(
    found: access.Access,
    text: str,
    asked: AskOptions,
    args: argparse.Namespace,
    console: Console,
) -> Answer:
    """Asks one question and shows it as the flags say; returns its answer."""
    if args.json:
        with JsonOutput(console) as quiet:
            answer = asyncio.run(watch(found.address, text, asked, quiet))
        print(json.dumps(last_line(answer), ensure_ascii=False), flush=True)
        return answer
    if console.is_terminal and not args.plain:
        with LiveOutput(console, text) as live:
            answer = asyncio.run(watch(found.address, text, asked, live))
    else:
        with PlainOutput(console) as plain:
            answer = asyncio.run(watch(found.address, text, asked, plain))
    console.print(verdict.render(answer))
    return answer


def print_trace(console: Console, found: access.Access, answer: Answer) -> None:
    """Draws the trace of an answer once its spans have arrived, if the store is on this machine."""
    if found.trace_store is None or not answer.trace_id:
        return
    store = TraceStore(found.trace_store)
    if not found.private:  # a private mesh has written all when it is down
        store.wait_until_quiet()
    if spans := store.spans(answer.trace_id):
        console.print()
        console.print(trace.render(spans, width=console.width))
