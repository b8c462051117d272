"""`cogitate down`: drains and stops a mesh."""

from __future__ import annotations

import argparse
import os
import signal
import time

from cogitate.cli import flags, screen
from cogitate.cli.mesh import state

NAME = "down"
HELP = "drain and stop a mesh"
DESCRIPTION = """\
Asks the mesh to finish what runs, waits until every process has ended, and leaves none behind.

  cogitate down
  cogitate down --name wide --timeout 5s
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument("--name", default="default", help="of the mesh (%(default)s)")
    parser.add_argument(
        "--timeout",
        type=flags.duration,
        default=60.0,
        help="kill what has not ended by then (60s)",
    )


def run(args: argparse.Namespace) -> int:
    """Stops a mesh; that none is running is no error."""
    console = screen.console()
    note = state.read(args.name)
    if note is None:
        console.print(f"No mesh {args.name!r} is running.")
        return 0
    _signal([note.supervisor] if note.supervisor.is_alive() else note.survivors(), signal.SIGTERM)
    began, killed = time.monotonic(), False
    with console.status("draining …"):
        while left := note.survivors():
            if not killed and time.monotonic() - began > args.timeout:
                _signal(left, signal.SIGKILL)
                killed = True
            time.sleep(0.05)
    state.forget(args.name)
    took = f"{time.monotonic() - began:.1f} s"
    if killed:
        console.print(f"[yellow]Killed after {took}[/yellow]: it did not drain in time.")
        return 1
    console.print(f"The mesh {args.name!r} is down, drained in {took}.")
    return 0


def _signal(processes: list[state.Identity], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue
