"""Where a client stands in a contemplation's numbered events, and what to do when a call breaks.

Pure: no clock, no socket. Invariants (test_client_cursor):
1. Every event is given out once and in order, however often the call breaks.
2. A gap is an error, unless the client asked for events to be left out.
3. Between two events at most `max_retries` calls are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cogitate.client._errors import CogitateError
from cogitate.v1 import contemplation_service_pb2 as pb2

ENDINGS: Final = ("verdict", "failed", "cancelled")
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 2.0


@dataclass
class Cursor:
    """`last` is the number of the last event given out; `ending` the event that ended it all."""

    resumes: bool
    filtered: bool = False
    max_retries: int = 6
    contemplation_id: str = ""
    trace_id: str = ""
    last: int = 0
    event_count: int = 0
    ending: pb2.ContemplationEvent | None = None
    retries: int = 0

    def take(self, event: pb2.ContemplationEvent) -> bool:
        """Says whether `event` is new; remembers it if so. Raises CogitateError on a gap."""
        first = event.first_event_number or event.event_number
        if event.event_number <= self.last:
            return False
        if first <= self.last or (first > self.last + 1 and not self.filtered):
            raise CogitateError(
                f"events {self.last + 1} to {event.event_number} do not follow on each other",
                code="DATA_LOSS",
                metadata={"after": str(self.last), "first": str(first)},
            )
        self.last = event.event_number
        self.event_count += 1
        self.retries = 0
        if event.HasField("accepted"):
            self.contemplation_id = event.accepted.contemplation_id
            self.trace_id = event.accepted.trace.trace_id
        if event.WhichOneof("event") in ENDINGS:
            self.ending = event
        return True

    def after_break(self, error: CogitateError) -> float:
        """Returns how long to wait before the next call; raises `error` if there is to be none."""
        if not self.resumes or not error.retryable or self.retries >= self.max_retries:
            raise error
        delay_s: float = min(_FIRST_DELAY_S * 2**self.retries, _LONGEST_DELAY_S)
        self.retries += 1
        return max(delay_s, min(error.retry_after_s or 0.0, _LONGEST_DELAY_S))
