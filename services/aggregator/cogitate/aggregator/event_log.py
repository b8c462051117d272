"""The numbered events of a contemplation: journalled first, then readable from any number.

A reader keeps a cursor into the log, so a slow one costs no memory and slows nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from cogitate.aggregator.journal import Journal
from cogitate.v1 import contemplation_service_pb2 as pb

ENDINGS = frozenset({"verdict", "failed", "cancelled"})


class EventLog:
    """Events of one contemplation. ``published`` of them are on disk and may be read."""

    def __init__(self, contemplation_id: str) -> None:
        self.contemplation_id = contemplation_id
        self.events: list[pb.ContemplationEvent] = []
        self.published = 0
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the last published event is an ending."""
        return self.published > 0 and is_ending(self.events[self.published - 1])

    def add(self, event: pb.ContemplationEvent) -> None:
        """Numbers an event; it can be read once it is published."""
        event.event_number = event.first_event_number = len(self.events) + 1
        event.event_time.FromNanoseconds(time.time_ns())
        self.events.append(event)

    def publish(self, count: int) -> None:
        """Lets readers see the first ``count`` events."""
        self.published = max(self.published, count)
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def read(self, after: int) -> AsyncIterator[pb.ContemplationEvent]:
        """Events with numbers above ``after``, live, to the ending."""
        position = after
        while True:
            while position < self.published:
                event = self.events[position]
                position += 1
                yield event
                if is_ending(event):
                    return
            if self.ended:
                return
            await self._news.wait()


def is_ending(event: pb.ContemplationEvent) -> bool:
    """Whether nothing can follow this event."""
    return event.WhichOneof("event") in ENDINGS


class JournalWriter:
    """Journals what gathered while the last commit ran, then publishes it (group commit)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pending: list[tuple[EventLog, pb.ContemplationEvent]] = []
        self._wake = asyncio.Event()

    def write(self, log: EventLog, event: pb.ContemplationEvent) -> None:
        """Numbers an event and queues it for the journal."""
        log.add(event)
        self._pending.append((log, event))
        self._wake.set()

    async def run(self) -> None:
        """Writes until cancelled; what is queued then is written before it returns."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._commit()
        finally:
            await self._commit()

    async def _commit(self) -> None:
        batch, self._pending = self._pending, []
        if not batch:
            return
        rows = [
            (log.contemplation_id, event.event_number, event.SerializeToString())
            for log, event in batch
        ]
        await asyncio.to_thread(self._journal.append, rows)
        for log, event in batch:
            if is_ending(event):
                ending = event.SerializeToString()
                now = event.event_time.ToNanoseconds()
                await asyncio.to_thread(self._journal.end, log.contemplation_id, now, ending)
            log.publish(event.event_number)
