"""Bytes between sites: what crossed in a span of time, and what a plainer mesh would send."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tests.multihost.layout import DESK, TRAFFIC

Counts = list[dict[str, Any]]
Table = dict[str, dict[str, int]]  # pair of sites, then whose traffic: bytes

# Empty frames that keep connections alive and acknowledgements have no port of their own: they
# count for the service whose connection it is.
UNKNOWN: Final = "other"


def between(before: Counts, after: Counts) -> Table:
    """Bytes from ``before`` to ``after``; the desk, where the clients are, is left out."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sign, counts in ((-1, before), (1, after)):
        for one in counts:
            if DESK in (one["from"], one["to"]):
                continue
            for port, (_, size) in one["ports"].items():
                name = TRAFFIC.get(int(port), UNKNOWN)
                table[f"{one['from']} > {one['to']}"][name] += sign * size
    return {pair: {k: v for k, v in sorted(of.items()) if v} for pair, of in table.items()}


def total(table: Table, services: Iterable[str] | None = None) -> int:
    """All bytes, or those of some services."""
    wanted = None if services is None else set(services)
    return sum(
        size
        for of in table.values()
        for name, size in of.items()
        if wanted is None or name in wanted
    )


def per_contemplation(busy: Table, idle: Table, busy_s: float, idle_s: float, num: int) -> Table:
    """What one contemplation added to what an idle mesh sends in the same time."""
    found: Table = {}
    for pair, of in busy.items():
        found[pair] = {
            name: round((size - idle.get(pair, {}).get(name, 0) * busy_s / idle_s) / num)
            for name, size in of.items()
        }
    return found


def sums(table: Table) -> Mapping[str, int]:
    """By service, over all pairs."""
    found: dict[str, int] = defaultdict(int)
    for of in table.values():
        for name, size in of.items():
            found[name] += size
    return dict(sorted(found.items()))
