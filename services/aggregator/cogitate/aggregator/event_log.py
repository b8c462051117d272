"""The numbered events of a contemplation: journalled first, then readable from any number.

A reader keeps a cursor into the log, so a slow one costs no memory and slows nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from cogitate.aggregator.journal import Journal, Row
from cogitate.kit.telemetry import stack_of
from cogitate.v1 import contemplation_service_pb2 as pb

logger = logging.getLogger(__name__)

ENDINGS = frozenset({"verdict", "failed", "cancelled"})
# How often a journal that fails is tried again.
RETRY_S = 0.25


class EventLog:
    """Events of one contemplation. ``published`` of them may be read."""

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
        """Numbers and dates an event; it can be read once it is published. Times never go back."""
        earlier = self.events[-1].event_time.ToNanoseconds() if self.events else 0
        event.event_number = event.first_event_number = len(self.events) + 1
        event.event_time.FromNanoseconds(max(earlier, time.time_ns()))
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
            if self.ended:
                return
            await self._news.wait()


def is_ending(event: pb.ContemplationEvent) -> bool:
    """Whether nothing can follow this event."""
    return event.WhichOneof("event") in ENDINGS


class JournalWriter:
    """Journals what gathered while the last commit ran, then publishes it (group commit).

    While the journal fails or hangs, contemplations that run go on from memory, and what they say
    is kept until it can be written: nothing is missing afterwards. New ones are refused meanwhile
    (``failing``), so what is kept is bounded by what runs.
    """

    def __init__(self, journal: Journal, timeout_s: float) -> None:
        self._journal, self._timeout_s = journal, timeout_s
        self.failing = False
        self._pending: list[tuple[EventLog, pb.ContemplationEvent]] = []
        self._unwritten: list[Row] = []
        self._commit_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopping = False

    def write(self, log: EventLog, event: pb.ContemplationEvent) -> None:
        """Numbers an event and queues it for the journal."""
        log.add(event)
        self._pending.append((log, event))
        self._wake.set()

    def stop(self) -> None:
        """Lets ``run`` return once everything was tried to be written."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Writes until stopped. Not to be cancelled: a commit cannot be taken back."""
        while True:
            try:
                async with asyncio.timeout(RETRY_S if self.failing else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            batch, self._pending = self._pending, []
            self._unwritten += [_row(log, event) for log, event in batch]
            if self._unwritten:
                await self._commit()
            for log, event in batch:
                log.publish(event.event_number)
            if self._stopping and not self._pending:
                return

    async def _commit(self) -> None:
        """Writes what is unwritten, or at least tries; waits for no longer than the timeout."""
        stuck = self._commit_task is not None
        if self._commit_task is None:
            self._commit_task = asyncio.create_task(self._append(list(self._unwritten)))
        await asyncio.wait((self._commit_task,), timeout=0 if stuck else self._timeout_s)
        if not self._commit_task.done():
            self._fail("the commit hangs")
            return
        error, self._commit_task = self._commit_task.exception(), None
        if error is not None:
            self._fail(stack_of(error))
        elif self.failing and not self._unwritten:
            self.failing = False
            logger.warning("the journal is written again")

    async def _append(self, rows: list[Row]) -> None:
        await asyncio.to_thread(self._journal.append, rows)
        del self._unwritten[: len(rows)]

    def _fail(self, why: str) -> None:
        if not self.failing:
            logger.error("the journal cannot be written, going on from memory: %s", why)
        self.failing = True


def _row(log: EventLog, event: pb.ContemplationEvent) -> Row:
    end_ns = event.event_time.ToNanoseconds() if is_ending(event) else None
    return (log.contemplation_id, event.event_number, event.SerializeToString(), end_ns)
