"""`cogitate fleet`: the endpoints as the router sees them."""

from __future__ import annotations

import argparse

from cogitate.cli import flags, screen
from cogitate.cli.mesh import access
from cogitate.client import Client, Endpoint, Fleet
from rich import box
from rich.table import Table
from rich.text import Text

NAME = "fleet"
HELP = "list the endpoints and their load"
DESCRIPTION = (
    "Lists the agent-decoders as the router sees them: where, what, how busy, at what price. "
    "`off` is by how much the router's predictions of their steps were wrong lately."
)

_STATES = {"READY": "green", "STALE": "yellow", "DRAINING": "yellow", "EJECTED": "red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    flags.add_access(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a table."""
    with Client(access.require(args.name, args.address).address, timeout_s=10) as client:
        fleet = client.fleet()
    screen.console().print(render(fleet))
    return 0


def render(fleet: Fleet) -> Table:
    """Draws the fleet."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{fleet.lease_count} contemplations hold a lease, {fleet.queued_count} wait",
        caption_justify="left",
    )
    for name in ("endpoint", "state", "where", "models", "engine"):
        table.add_column(name, no_wrap=name in ("endpoint", "state"))
    for name in ("agents", "busy", "KV free", "step", "off", "$/h", "$/Mtok"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in fleet.endpoints:
        table.add_row(
            Text(one.endpoint_id, "bold"),
            Text(one.state.lower(), _STATES.get(one.state, "")),
            f"{one.provider} {one.region}",
            ", ".join(one.models),
            f"{one.engine} {one.hardware}",
            _agents(one),
            f"{one.busy:.0%}",
            f"{one.free_blocks / one.total_blocks:.0%}" if one.total_blocks else "–",
            f"{one.step_s * 1000:.0f} ms" if one.step_s else "–",
            f"{one.prediction_error:.0%}" if one.learned_step_s else "–",
            f"{one.price_per_hour_usd:.3f}{' spot' if one.is_spot else ''}",
            f"{one.price_per_million_tokens_usd:.2f}" if one.price_per_million_tokens_usd else "–",
        )
    return table


def _agents(one: Endpoint) -> str:
    waiting = f" +{one.waiting}" if one.waiting else ""
    return f"{one.running + one.paused}{waiting}/{one.max_sequence_count}"
