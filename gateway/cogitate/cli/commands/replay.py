"""`cogitate replay`: a contemplation once more, beside what it was."""

from __future__ import annotations

import argparse

from cogitate.cli import flags, screen
from cogitate.cli.mesh import access
from cogitate.cli.view.transcripts import Agreement, Transcripts, compare
from cogitate.client import Client
from rich import box
from rich.table import Table
from rich.text import Text

NAME = "replay"
HELP = "run a contemplation again and compare it with what it was"
DESCRIPTION = """\
Reads a contemplation from its journal, asks the same with the same seed, and compares every agent's
text and the verdict. On the same build each agent writes the very same tokens; one that was stopped
at another moment has the beginning of the other. Client tools and deadlines are not replayed.

  cogitate replay 4f2a91e0-…
  cogitate replay --last

Exits with 1 if an agent's text or the answer differs.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", metavar="ID", help="of a contemplation that ended")
    which.add_argument("--last", action="store_true", help="the latest one")
    flags.add_access(parser)


def run(args: argparse.Namespace) -> int:
    """Replays, prints a table, and says whether it is the same."""
    from cogitate.cli.main import UsageError

    console = screen.console()
    with Client(access.require(args.name, args.address).address) as client:
        if args.last and not client.list(limit=1):
            raise UsageError("there is no contemplation yet; ask something first")
        given = client.list(limit=1)[0].contemplation_id if args.last else args.id
        with client.attach(given) as stream:
            before = Transcripts.read(stream)
        with console.status("asking the same again …"), client.replay(given) as stream:
            after = Transcripts.read(stream)
            console.print(f"{given} again as {stream.contemplation_id}", highlight=False)
    agreement = compare(before, after)
    console.print(render(agreement))
    for note in agreement.notes:
        console.print(note, highlight=False)
    return 0 if agreement.same else 1


def render(agreement: Agreement) -> Table:
    """A line an agent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("agent", justify="right")
    for name in ("tokens then", "now", "the same"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in agreement.rows:
        verdict = Text("yes", "green") if row.same else Text("no", "red")
        table.add_row(str(row.agent_id), str(row.before), str(row.after), verdict)
    return table
