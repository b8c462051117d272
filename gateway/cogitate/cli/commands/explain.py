"""`cogitate explain`: why each agent of a contemplation was placed where it ran."""

from __future__ import annotations

import argparse

from cogitate.cli import flags, screen
from cogitate.cli.mesh import access
from cogitate.cli.view.explanation import Explanation
from cogitate.client import Client
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

NAME = "explain"
HELP = "say why each agent ran where it ran"
DESCRIPTION = """\
Reads a contemplation's events: every placement with the router's reason and the policy's name,
agents that were lost and moved, and why the other endpoints were not used. One that still runs is
followed to its end.

  cogitate explain 4f2a91e0-…
  cogitate explain --last
"""
_UNUSED_SHOWN = 12


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", metavar="ID", help="of a contemplation")
    which.add_argument("--last", action="store_true", help="the latest one")
    flags.add_access(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the placements; 1 if there were none."""
    from cogitate.cli.main import UsageError

    with Client(access.require(args.name, args.address).address) as client:
        if args.last and not client.list(limit=1):
            raise UsageError("there is no contemplation yet; ask something first")
        given = client.list(limit=1)[0].contemplation_id if args.last else args.id
        with client.attach(given) as stream:
            found = Explanation.read(stream)
    console = screen.console()
    console.print(f"{given}, placed by the policy {found.policy or '–'}", highlight=False)
    console.print(render(found))
    return 0 if found.places else 1


def render(found: Explanation) -> Group:
    """A line an endpoint's share, then losses, then the endpoints not used."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("event", justify="right")
    for name in ("endpoint", "where", "agents"):
        table.add_column(name)
    table.add_column("why", overflow="fold")
    for one in found.places:
        table.add_row(
            str(one.event_number),
            Text(one.endpoint_id, "bold"),
            f"{one.provider} {one.region}",
            ", ".join(map(str, one.agent_ids)),
            Text(one.reason),
        )
    lines = [Text(line, "yellow") for line in found.losses]
    shown = found.unused.most_common(_UNUSED_SHOWN)
    for reason, count in shown:
        whom = found.examples[reason]
        others = f" and {count - 1} more" if count > 1 else ""
        lines.append(Text(f"not used: {whom}{others}: {reason}", "dim"))
    if len(found.unused) > len(shown):
        lines.append(Text(f"and {len(found.unused) - len(shown)} more reasons", "dim"))
    return Group(table, *lines)
