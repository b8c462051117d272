"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """A `cogitate.kit.clock.Clock` in virtual time; `advance` wakes sleepers in order of time."""

    def __init__(self, *, monotonic: float = 1000.0, time: float = 1_700_000_000.0) -> None:
        self._now = monotonic
        self._epoch_offset = time - monotonic
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Returns the virtual time."""
        return self._now

    def time(self) -> float:
        """Returns the virtual time since the Unix epoch."""
        return self._now + self._epoch_offset

    def jump(self, seconds: float) -> None:
        """Moves `time` alone, as a clock adjustment does."""
        self._epoch_offset += seconds

    @property
    def sleeper_count(self) -> int:
        """How many tasks are asleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, delay_s: float) -> None:
        """Waits until `advance` has moved time far enough."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + delay_s, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Moves time; whoever wakes runs at the time it asked for, and may sleep again."""
        await _settle()
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
                await _settle()
        self._now = end


async def _settle() -> None:
    """Lets every task that can run do so; ten rounds cover chains of awaits in practice."""
    for _ in range(10):
        await asyncio.sleep(0)
