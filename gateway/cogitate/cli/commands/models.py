"""`cogitate models`: what can be asked now."""

from __future__ import annotations

import argparse

from cogitate.cli import flags, screen
from cogitate.cli.mesh import access
from cogitate.cli.mesh.processes import MeshError
from cogitate.client import Client
from rich import box
from rich.table import Table

NAME = "models"
HELP = "list the models that can be asked"
DESCRIPTION = "Lists the models that the mesh's endpoints serve now."


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    flags.add_access(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a table."""
    with Client(access.require(args.name, args.address).address, timeout_s=10) as client:
        models = client.models()
        default = client.server_info().default_model
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    table.add_column("images")
    table.add_column("endpoints", justify="right")
    table.add_column("sequences at once", justify="right")
    for one in models:
        name = f"[bold]{one.name}[/bold]" + (" [dim]default[/dim]" if one.name == default else "")
        table.add_row(
            name,
            "yes" if one.vision else "no",
            str(one.endpoint_count),
            str(one.max_sequence_count),
        )
    if not models:
        raise MeshError("no endpoint serves a model now; see `cogitate fleet`")
    screen.console().print(table)
    return 0
