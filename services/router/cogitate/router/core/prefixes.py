"""Which endpoints lately were given which prefix: a guess at what their prefix caches hold.

It is a guess since endpoints do not say what they forget. It is bounded twice: the prefixes used
least lately are forgotten, and of one prefix only the endpoints used last are remembered; a process
that ended is forgotten at once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Prefixes:
    """Owns the memory: prefix digest -> endpoint id -> incarnation, the last used at the end."""

    most_prefixes: int = 10_000
    most_endpoints: int = 8  # of each prefix
    known: OrderedDict[str, dict[str, int]] = field(default_factory=OrderedDict)

    def note(self, digest: str, endpoint_id: str, incarnation: int) -> None:
        """Remembers that an endpoint computes a prefix; an empty digest is no prefix."""
        if not digest or not self.most_prefixes:
            return
        where = self.known.setdefault(digest, {})
        self.known.move_to_end(digest)
        where.pop(endpoint_id, None)
        where[endpoint_id] = incarnation
        if len(where) > self.most_endpoints:
            del where[next(iter(where))]
        if len(self.known) > self.most_prefixes:
            self.known.popitem(last=False)

    def where(self, digest: str) -> dict[str, int]:
        """The endpoints that may hold a prefix, with the incarnation that was given it."""
        return self.known.get(digest, {}) if digest else {}
