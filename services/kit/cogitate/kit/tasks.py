"""Bounded queues and background tasks that cannot be lost sight of."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cogitate.kit.telemetry import stack_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


class QueueClosed(Exception):
    """The queue was closed: nothing can be put, and nothing is left to get."""


@dataclass(frozen=True)
class QueueStatistics:
    """The state of a queue; `put_waits` counts the puts that found it full."""

    name: str
    capacity: int
    used: int
    max_used: int
    put_waits: int
    closed: bool


class BoundedQueue(Generic[T]):
    """A first-in first-out queue between tasks of one event loop, never longer than its capacity.

    Items put before `close` can still be got. Waiters are served in the order they came.
    """

    def __init__(self, capacity: int, name: str) -> None:
        if capacity < 1:
            raise ValueError("a queue needs a capacity of at least 1")
        self._capacity = capacity
        self._name = name
        self._items: deque[T] = deque()
        # Semaphores, because they serve their waiters in order. `close` adds one permit to each;
        # whoever takes it finds the queue closed and passes it on to the next waiter.
        self._free = asyncio.Semaphore(capacity)
        self._filled = asyncio.Semaphore(0)
        self._max_used = 0
        self._put_waits = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T) -> None:
        """Appends, waiting for room. Cancelled, it has put nothing. Raises QueueClosed."""
        if not self._closed and self._free.locked():
            self._put_waits += 1
        await self._free.acquire()
        if self._closed:
            self._free.release()
            raise QueueClosed(self._name)
        self._items.append(item)
        self._max_used = max(self._max_used, len(self._items))
        self._filled.release()

    async def offer(self, item: T) -> bool:
        """Appends if there is room at once; returns whether it did. Raises QueueClosed."""
        if not self._closed and self._free.locked():
            return False
        await self.put(item)
        return True

    async def get(self) -> T:
        """Takes the oldest item, waiting for one. Cancelled, it has taken nothing.

        Raises QueueClosed once the queue is closed and empty.
        """
        await self._filled.acquire()
        if not self._items:
            self._filled.release()
            raise QueueClosed(self._name)
        item = self._items.popleft()
        self._free.release()
        return item

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yields items until the queue is closed and empty."""
        while True:
            try:
                item = await self.get()
            except QueueClosed:
                return
            yield item

    def close(self) -> None:
        """Refuses further items; waiting puts fail, gets end with what is left. Idempotent."""
        if not self._closed:
            self._closed = True
            self._free.release()
            self._filled.release()

    def statistics(self) -> QueueStatistics:
        """Returns a snapshot for metrics and tests."""
        return QueueStatistics(
            name=self._name,
            capacity=self._capacity,
            used=len(self._items),
            max_used=self._max_used,
            put_waits=self._put_waits,
            closed=self._closed,
        )


class Supervisor:
    """Owns the background tasks between a service's start and its stop.

    Within one request use asyncio.TaskGroup instead. A task that fails is logged, by type and
    stack, and does not take the others with it: what must go on handles its own errors.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Starts a task."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def stop(self) -> None:
        """Cancels every task and waits until all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task %s failed: %s", task.get_name(), stack_of(error))
