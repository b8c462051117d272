"""The numbered events of a contemplation: journalled first, then readable from any number.

A reader keeps a cursor. The newest events are in memory, older ones are read back from the journal,
and a live reader that fell behind gets text coalesced: a slow one costs no memory and slows nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cogitate.aggregator import wire
from cogitate.aggregator.coalesce import coalesce
from cogitate.aggregator.journal import Journal, Ownership, Row
from cogitate.kit.errors import NotOwner
from cogitate.kit.telemetry import stack_of
from cogitate.v1 import contemplation_service_pb2 as pb

logger = logging.getLogger(__name__)

ENDINGS = frozenset({"verdict", "failed", "cancelled"})
# How often a journal that fails is tried again.
RETRY_S = 0.25
# Events kept in memory of each contemplation, beside those that are not written yet.
MAX_HELD = 128
# A reader that was up to date and is now further behind than this gets text coalesced.
BEHIND = 32
# Events read back from the journal at a time.
CHUNK = 256

Fetch = Callable[[str, int, int], Awaitable[list[bytes]]]


class EventLog:
    """Events of one contemplation. ``published`` of them may be read, ``written`` are journalled.

    ``fetch`` reads events back: of an id, after a number, up to a limit.
    """

    def __init__(self, contemplation_id: str, fetch: Fetch, last: int = 0) -> None:
        """Begins after the events the journal has already."""
        self.contemplation_id, self._fetch = contemplation_id, fetch
        self.published = self.written = self.last = last
        self.fenced = self.has_text = False
        self._held: deque[pb.ContemplationEvent] = deque()
        self._ending: int | None = None
        self._news = asyncio.Event()

    @classmethod
    def ended_with(cls, contemplation_id: str, fetch: Fetch, last: int) -> EventLog:
        """A log that ended long ago."""
        log = cls(contemplation_id, fetch, last)
        log._ending = last
        return log

    @property
    def has_ending(self) -> bool:
        """Whether an ending was added; it may not be published yet."""
        return self._ending is not None

    @property
    def ended(self) -> bool:
        """Whether the ending is published."""
        return self._ending is not None and self.published >= self._ending

    @property
    def held(self) -> Sequence[pb.ContemplationEvent]:
        """What is in memory, in order."""
        return self._held

    def add(self, event: pb.ContemplationEvent) -> None:
        """Appends the next event; it can be read once it is published."""
        self.last = event.event_number
        self._held.append(event)
        self.has_text = self.has_text or event.HasField("deltas")
        if is_ending(event):
            self._ending = self.last

    def publish(self, number: int, *, written: bool = True) -> None:
        """Lets readers see events up to a number, and forgets old ones the journal has."""
        self.published = max(self.published, number)
        if written:
            self.written = max(self.written, number)
        while len(self._held) > MAX_HELD and self._held[0].event_number <= self.written:
            self._held.popleft()
        self._wake()

    def fence(self) -> None:
        """Another aggregator has the contemplation: readers are told to go there."""
        self.fenced = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def read(self, after: int) -> AsyncIterator[pb.ContemplationEvent]:
        """Events with numbers above ``after``, live, to the ending. Raises NotOwner, Damaged.

        What was there before is read as it is; later on, text is coalesced when it piles up.
        """
        position, live = after, False
        while True:
            while position < self.published:
                behind = live and self.published - position > BEHIND
                for event in await self._next(position, behind):
                    position = event.event_number
                    yield event
            if self.ended:
                return
            if self.fenced:
                raise NotOwner("another aggregator took this contemplation over")
            live = True
            await self._news.wait()

    async def _next(self, position: int, behind: bool) -> Iterable[pb.ContemplationEvent]:
        """Some events after a position below ``published``."""
        first = self._held[0].event_number if self._held else self.last + 1
        if position + 1 >= first:
            skipped = position + 1 - first
            if not behind:
                return (self._held[skipped],)
            return coalesce([e for e in self._held if position < e.event_number <= self.published])
        raw = await self._fetch(self.contemplation_id, position, CHUNK)
        found = [wire.to_journalled(event) for event in raw]
        if not found or found[0].first_event_number != position + 1:
            raise wire.Damaged("the journal's record of this contemplation is damaged")
        return coalesce(found) if behind else found


def is_ending(event: pb.ContemplationEvent) -> bool:
    """Whether nothing can follow this event."""
    return event.WhichOneof("event") in ENDINGS


@dataclass(slots=True)
class _Pending:
    """What is to be written, in order, and up to where each log may be read then."""

    rows: list[Row] = field(default_factory=list)
    logs: dict[Ownership, tuple[EventLog, int]] = field(default_factory=dict)

    def add(self, log: EventLog, row: Row) -> None:
        self.rows.append(row)
        self.logs[row.ownership] = (log, log.last)


class JournalWriter:
    """Journals what gathered since the last commit, then publishes it (group commit).

    After a pause the next event is written at once, the first text and an ending always are; else
    commits begin ``interval_s`` apart, because they cost more than what is in them.

    While the journal fails or hangs, contemplations that run go on from memory, and what they say
    is kept until it can be written: nothing is missing afterwards. New ones are refused meanwhile
    (``failing``), so what is kept is bounded by what runs. Where another aggregator shares the
    journal, nothing is shown before it is written: the other could tell it differently.
    """

    def __init__(
        self,
        journal: Journal,
        timeout_s: float,
        on_fenced: Callable[[Ownership], None] = lambda _: None,
        interval_s: float = 0.0,
    ) -> None:
        """``on_fenced`` is told what this aggregator does not own any more."""
        self._journal, self._timeout_s, self._on_fenced = journal, timeout_s, on_fenced
        self._interval_s, self._began_s = interval_s, -math.inf
        self._hurry = asyncio.Event()
        self.failing = False
        self._pending = _Pending()
        self._unwritten = _Pending()
        self._commit_task: asyncio.Task[frozenset[Ownership]] | None = None
        self._num_committing = 0
        self._wake = asyncio.Event()
        self._stopping = False

    def write(self, log: EventLog, row: Row, events: Sequence[pb.ContemplationEvent]) -> None:
        """Queues an input and its events. Inputs without events wait for the next commit."""
        had_text = log.has_text
        for event in events:
            log.add(event)
        self._pending.add(log, row)
        if events:
            self._wake.set()
        if log.has_ending or log.has_text > had_text:
            self._hurry.set()

    def stop(self) -> None:
        """Lets ``run`` return once everything was tried to be written."""
        self._stopping = True
        self._wake.set()
        self._hurry.set()

    async def run(self) -> None:
        """Writes until stopped. Not to be cancelled: a commit cannot be taken back."""
        while True:
            try:
                async with asyncio.timeout(RETRY_S if self.failing else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            await self._pause()
            self._wake.clear()
            self._hurry.clear()
            batch, self._pending = self._pending, _Pending()
            self._unwritten.rows += batch.rows
            self._unwritten.logs |= batch.logs
            if self._unwritten.rows:
                await self._commit()
            if self.failing and not self._journal.shared:
                for log, number in list(self._unwritten.logs.values()):
                    log.publish(number, written=False)
            if self._stopping and not self._pending.rows:
                return

    async def _pause(self) -> None:
        """Until the next commit may begin."""
        left_s = self._began_s + self._interval_s - time.monotonic()
        if left_s > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
        self._began_s = time.monotonic()

    async def _commit(self) -> None:
        """Writes what is unwritten, or at least tries; waits for no longer than the timeout."""
        stuck = self._commit_task is not None
        if self._commit_task is None:
            self._num_committing = len(self._unwritten.rows)
            rows = self._unwritten.rows[: self._num_committing]
            self._commit_task = asyncio.create_task(self._append(rows), name="commit")
        await asyncio.wait((self._commit_task,), timeout=0 if stuck else self._timeout_s)
        if not self._commit_task.done():
            self._fail("the commit hangs")
            return
        error, task = self._commit_task.exception(), self._commit_task
        self._commit_task = None
        if error is not None:
            self._fail(stack_of(error))
            return
        self._written(task.result())
        if self.failing and not self._unwritten.rows:
            self.failing = False
            logger.warning("the journal is written again")

    async def _append(self, rows: list[Row]) -> frozenset[Ownership]:
        return await self._journal.append(rows)

    def _written(self, fenced: frozenset[Ownership]) -> None:
        rows = self._unwritten.rows[: self._num_committing]
        del self._unwritten.rows[: self._num_committing]
        numbers = {row.ownership: row.events[-1][0] for row in rows if row.events}
        left = {row.ownership for row in self._unwritten.rows}
        for mine in {row.ownership for row in rows}:
            log, _ = self._unwritten.logs[mine]
            if mine in fenced:
                log.fence()
                self._on_fenced(mine)
            elif mine in numbers:
                log.publish(numbers[mine])
            if mine not in left:
                del self._unwritten.logs[mine]

    def _fail(self, why: str) -> None:
        if not self.failing:
            logger.error("the journal cannot be written: %s", why)
        self.failing = True
