"""Why agents ran where they ran, as a contemplation's events tell it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cogitate.v1 import contemplation_service_pb2 as pb2


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint's share of one placement, with its reason."""

    event_number: int
    endpoint_id: str
    provider: str
    region: str
    agent_ids: tuple[int, ...]
    reason: str


@dataclass
class Explanation:
    """All placements of a contemplation, in order, and what went wrong with agents."""

    policy: str = ""
    places: list[Place] = field(default_factory=list)
    # Reason -> endpoints, and one of them as an example; of the latest placement.
    unused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    ending: str = ""

    @classmethod
    def read(cls, events: Iterable[pb2.ContemplationEvent]) -> Explanation:
        """Takes the events to the ending, or to where they stop."""
        found = cls()
        for event in events:
            found.take(event)
        return found

    def take(self, event: pb2.ContemplationEvent) -> None:
        """Takes one event."""
        kind = event.WhichOneof("event")
        if kind == "placed":
            self._placed(event)
        elif kind == "agent_lost":
            lost = event.agent_lost
            then = "it goes on elsewhere" if lost.resumed else "it does not go on"
            where = f"left {lost.endpoint_id}" if lost.endpoint_id else "got no other place"
            self.losses.append(f"agent {lost.agent_id} {where} ({lost.reason}); {then}")
        elif kind in ("verdict", "failed", "cancelled"):
            self.ending = kind

    def _placed(self, event: pb2.ContemplationEvent) -> None:
        placed = event.placed
        self.policy = placed.policy or self.policy
        for one in placed.placements:
            self.places.append(
                Place(
                    event.event_number, one.endpoint_id, one.provider, one.region,
                    tuple(one.agent_ids), one.reason,
                )
            )  # fmt: skip
        self.unused.clear()
        self.examples.clear()
        for unused in placed.rejected:
            self.unused[unused.reason] += max(1, unused.endpoint_count)
            self.examples.setdefault(unused.reason, unused.endpoint_id)
