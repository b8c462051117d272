"""What the benchmarks beside the decode table share: flags, the console, the JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench import machine


def parser(doc: str) -> argparse.ArgumentParser:
    """With the flags all have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE")
    return made


def resolved(text: str) -> Path:
    """A path from the command line: workers run in another folder."""
    return Path(text).resolve()


def console() -> Console:
    """As wide as the terminal, or 120 where there is none."""
    return Console(width=None if sys.stdout.isatty() else 120)


def progress(to: Console) -> Progress:
    """A bar with how many are done and how long it has taken."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=to)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """The first column is names, the others are numbers."""
    made = Table(title=title)
    for i, name in enumerate(columns):
        made.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        made.add_row(*map(str, row))
    return made


def write(args: argparse.Namespace, **found: Any) -> None:
    """Writes the JSON, machine and settings included, if it was asked for."""
    if args.json:
        settings = {name: v.name if isinstance(v, Path) else v for name, v in vars(args).items()}
        whole = {"machine": machine.facts(), "settings": settings, **found}
        args.json.write_text(json.dumps(whole, indent=2) + "\n")


def median(values: Iterable[float], digits: int = 3) -> float:
    """Rounded."""
    return round(statistics.median(values), digits)


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Of seconds."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": round(statistics.median(ordered), 4),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 4),
        "max": round(ordered[-1], 4),
    }
