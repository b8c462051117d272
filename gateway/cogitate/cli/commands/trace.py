"""`cogitate trace`: a trace from the local store as a tree."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cogitate.cli import screen
from cogitate.cli.mesh import state
from cogitate.cli.mesh.processes import MeshError
from cogitate.cli.view import trace
from cogitate.kit.trace_store import TraceStore
from rich.console import Console

NAME = "trace"
HELP = "draw a trace as a tree"
DESCRIPTION = """\
Draws what every service did for one contemplation: a tree of spans with bars on one time axis, and
the ballots and kills as events. ID is a contemplation's id or a trace id, or the beginning of one.

  cogitate trace --last
  cogitate trace 4f2a91e0 --full
"""
_SEARCHED = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", metavar="ID", help="a contemplation or a trace")
    which.add_argument("--last", action="store_true", help="the latest contemplation")
    which.add_argument("--list", action="store_true", help="list what is stored, newest first")
    parser.add_argument("--full", action="store_true", help="draw every span, join none")
    parser.add_argument("--no-events", action="store_true", help="leave the events out")
    parser.add_argument("--store", type=Path, metavar="FILE", help="another span store")
    parser.add_argument("--name", default="default", help="of the mesh (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draws a trace; says so if there is none."""
    path = args.store or state.trace_store(args.name)
    store, console = TraceStore(path), screen.console()
    if not path.exists():
        raise MeshError(f"there are no traces yet: {path} does not exist; ask something first")
    if args.list:
        return _list(store, console)
    if args.last:
        store.wait_until_quiet()
    trace_id = _last(store) if args.last else _find(store, args.id)
    spans = store.spans(trace_id) if trace_id else []
    if not spans:
        wanted = "a contemplation" if args.last else repr(args.id)
        raise MeshError(f"there is no trace of {wanted} in {path}; see `cogitate trace --list`")
    console.print(f"[dim]trace[/dim] {trace_id}", highlight=False)
    console.print(
        trace.render(spans, width=console.width, fold=not args.full, events=not args.no_events)
    )
    return 0


def _last(store: TraceStore) -> str | None:
    found = store.traces(_SEARCHED)
    return next((one.trace_id for one in found if one.contemplation_id), None)


def _find(store: TraceStore, id: str) -> str | None:
    if re.fullmatch(r"[0-9a-f]{32}", id) and store.spans(id):
        return id
    if exact := store.find(id):
        return exact
    starts = [
        one.trace_id
        for one in store.traces(_SEARCHED)
        if one.trace_id.startswith(id) or one.contemplation_id.startswith(id)
    ]
    return starts[0] if len(set(starts)) == 1 else None


def _list(store: TraceStore, console: Console) -> int:
    for one in store.traces(20):
        length_ms = (one.end_ns - one.start_ns) / 1e6
        console.print(
            f"{one.trace_id[:12]}  {one.contemplation_id or '–':<36}  {one.name:<40.40} "
            f"{one.span_count:>4} spans {length_ms:>9.1f} ms",
            highlight=False,
        )
    return 0
