"""A client's view of one contemplation, which fails on the first thing that must never be seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from cogitate.v1 import contemplation_service_pb2 as pb

ENDINGS = frozenset({"verdict", "failed", "cancelled"})


@dataclass
class Watch:
    """What a client has seen of one contemplation. ``take`` fails on a gap or a repeat."""

    last: int = 0
    kinds: list[str] = field(default_factory=list)
    text: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    times: list[tuple[float, str]] = field(default_factory=list)
    ending: pb.ContemplationEvent | None = None
    id: str = ""

    def take(self, event: pb.ContemplationEvent) -> None:
        kind = event.WhichOneof("event") or ""
        assert self.ending is None, f"{kind} after the ending"
        assert event.first_event_number == self.last + 1, "an event is lost or comes twice"
        assert kind != "text_retracted"
        self.last = event.event_number
        self.kinds.append(kind)
        self.times.append((time.monotonic(), kind))
        self.id = self.id or event.accepted.contemplation_id
        for delta in event.deltas.deltas:
            assert delta.token_offset == self.tokens.get(delta.agent_id, 0), "a token is lost"
            self.tokens[delta.agent_id] = delta.token_offset + delta.token_count
            self.text[delta.agent_id] = self.text.get(delta.agent_id, "") + delta.text
        if kind in ENDINGS:
            self.ending = event

    def outcome(self) -> tuple[Any, ...]:
        """What must not depend on what died."""
        assert self.ending is not None
        verdict = self.ending.verdict
        return verdict.key, verdict.degraded, self.tokens, self.text

    def gap_s(self, since: float, kind: str = "") -> float | None:
        """Time until the next event, of a kind if one is named."""
        later = [at for at, what in self.times if at > since and kind in ("", what)]
        return later[0] - since if later else None
