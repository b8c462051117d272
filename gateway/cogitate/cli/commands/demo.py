"""`cogitate demo`: a private mesh, two questions about pictures, everything shown."""

from __future__ import annotations

import argparse
from pathlib import Path

from cogitate.cli import flags, screen
from cogitate.cli.commands import ask
from cogitate.cli.mesh import access
from cogitate.cli.mesh.processes import MeshError
from cogitate.cli.starting import Starting
from cogitate.cli.store import offering
from cogitate.client import AskOptions
from rich.rule import Rule

NAME = "demo"
HELP = "start a mesh, ask about two pictures, show everything"
DESCRIPTION = """\
Starts a private mesh, asks eight agents about two pictures of numbered cards, shows them side by
side, the verdicts with their certificates and the traces, and shuts everything down.

  cogitate demo
  cogitate demo --agents 16 --plain
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--agents", type=flags.positive, default=8, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--plain", action="store_true", help="lines instead of lanes")
    parser.add_argument(
        "--examples", type=Path, metavar="FOLDER", help="where the pictures are (examples/)"
    )
    parser.add_argument("--name", default="default", help="whose span store is used (%(default)s)")
    flags.add_mesh(parser)
    parser.set_defaults(json=False)


def run(args: argparse.Namespace) -> int:
    """Runs the demo."""
    folder = _examples(args.examples)
    console = screen.console()
    starting = Starting(console, "starting a private mesh of separate processes")
    mesh = offering.located(flags.mesh_options(args), console)
    with access.private(args.name, mesh, starting) as found:
        for image, question, quorum in QUESTIONS:
            if not (folder / image).is_file():
                continue
            console.print(Rule(style="dim"))
            asked = AskOptions(
                images=[folder / image],
                agents=args.agents,
                effort="contemplating",
                quorum=quorum,
                seed=args.seed,
                deadline_s=60.0,
            )
            answer = ask.show(found, question, asked, args, console)
            ask.print_trace(console, access.Access(found.address, found.trace_store), answer)
    console.print("[dim]The mesh is down again; nothing is left running.[/dim]")
    return 0


QUESTIONS = (
    ("board.png", "What is the sum of the red cards?", "unbeatable"),
    (
        "countdown.png",
        "Use each number on the red cards once with + - * to make 26.",
        "verified",
    ),
)


def _examples(given: Path | None) -> Path:
    checkout = Path(__file__).resolve().parents[4] / "examples"
    for folder in [given] if given else [Path("examples"), checkout]:
        if folder is not None and any((folder / image).is_file() for image, *_ in QUESTIONS):
            return folder
    raise MeshError(
        "the demo's pictures (board.png, countdown.png) are not here; run it in a checkout, "
        "or say where they are with --examples"
    )
