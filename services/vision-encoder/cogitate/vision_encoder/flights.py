"""Work that several callers wait for, done once.

A flight belongs to the service, not to the caller who came first: each may leave without harm to
the others. When the last one leaves, the work is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from cogitate.kit.errors import CogitateError, NoEndpoint
from cogitate.kit.tasks import Supervisor

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """The work in progress by key."""

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self._supervisor = supervisor
        self._name = name
        self._tasks: dict[K, asyncio.Task[V | CogitateError]] = {}
        self._num_waiters: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def join(self, key: K) -> Seat[V] | None:
        """Takes a seat on the flight of `key`, or returns None if there is none to join."""
        task = self._tasks.get(key)
        if task is None:
            return None
        self._num_waiters[key] += 1
        return Seat(task, lambda: self._leave(key, task))

    def start(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> Seat[V]:
        """Starts the flight of `key`, in the caller's context, and takes the first seat on it.

        Every seat must be left.
        """
        assert key not in self._tasks
        task = self._supervisor.spawn(_settled(work), name=self._name)
        self._tasks[key] = task
        self._num_waiters[key] = 1
        task.add_done_callback(lambda done: self._land(key, done))
        return Seat(task, lambda: self._leave(key, task))

    def _leave(self, key: K, task: asyncio.Task[V | CogitateError]) -> None:
        if self._tasks.get(key) is not task:
            return  # it has landed
        self._num_waiters[key] -= 1
        if not self._num_waiters[key]:
            # At once, not when the task has noticed: the next caller must not join it.
            self._land(key, task)
            task.cancel()

    def _land(self, key: K, task: asyncio.Task[V | CogitateError]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key], self._num_waiters[key]


class Seat(Generic[V]):
    """One caller's part in a flight; a context manager that leaves it."""

    def __init__(self, task: asyncio.Task[V | CogitateError], leave: Callable[[], None]) -> None:
        self._task = task
        self._leave: Callable[[], None] | None = leave

    async def result(self) -> V:
        """Waits for the result. Raises what the work raised. Cancelled, it harms no other."""
        await asyncio.wait([self._task])
        if self._task.cancelled():
            raise NoEndpoint("the vision-encoder stopped", reason="UNAVAILABLE")
        result = self._task.result()
        if isinstance(result, CogitateError):
            raise result
        return result

    def leave(self) -> None:
        """Gives the seat up; the second time does nothing."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def __enter__(self) -> Seat[V]:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


async def _settled(work: Callable[[], Coroutine[Any, Any, V]]) -> V | CogitateError:
    # An expected error is a result: nobody may be left to see it raised.
    try:
        return await work()
    except CogitateError as error:
        return error
