"""What a violation is, and how a list of them becomes one error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cogitate.kit.errors import InvalidRequest

SHOWN: Final = 5


@dataclass(frozen=True)
class Violation:
    """One field, dotted from what was checked, and what it has to be."""

    field: str
    reason: str


def require(found: Sequence[Violation], root: str = "") -> None:
    """Raises InvalidRequest if anything was found; `root` is where in the request it was."""
    if not found:
        return
    shown = "; ".join(f"{one.field} {one.reason}" for one in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    first = found[0].field
    field = f"{root}.{first}" if root and not first.startswith("filter.") else first
    raise InvalidRequest(
        shown + more,
        field=field,
        metadata={"field": field, "violation_count": str(len(found))},
    )


def is_json_object(text: str) -> bool:
    """Says whether `text` is one JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
