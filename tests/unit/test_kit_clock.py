"""The fake clock keeps the promises the real one makes."""

from __future__ import annotations

import asyncio

import pytest
from cogitate.kit.clock import Clock, SystemClock

from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.unit


async def test_sleepers_wake_in_order_and_at_their_time() -> None:
    clock: Clock = FakeClock(monotonic=0.0)
    assert isinstance(clock, FakeClock)
    woke: list[tuple[str, float]] = []

    async def sleeper(name: str, delay_s: float, times: int) -> None:
        for _ in range(times):
            await clock.sleep(delay_s)
            woke.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleeper("slow", 5.0, 1))
        tasks.create_task(sleeper("fast", 2.0, 3))
        await clock.advance(5.0)
        assert woke == [("fast", 2.0), ("fast", 4.0), ("slow", 5.0)]
        await clock.advance(1.0)
    assert woke[-1] == ("fast", 6.0)


async def test_a_cancelled_sleeper_is_gone() -> None:
    clock = FakeClock()
    task = asyncio.ensure_future(clock.sleep(1.0))
    await asyncio.sleep(0)
    assert clock.sleeper_count == 1
    task.cancel()
    await clock.advance(2.0)
    assert task.cancelled()
    assert clock.sleeper_count == 0


def test_a_clock_adjustment_moves_only_the_time_of_day() -> None:
    clock = FakeClock()
    before = clock.monotonic(), clock.time()
    clock.jump(-3600)
    assert (clock.monotonic(), clock.time()) == (before[0], before[1] - 3600)


async def test_sleep_is_a_cancellation_point_even_for_no_time() -> None:
    for clock in (SystemClock(), FakeClock()):
        passed = []
        asyncio.get_running_loop().call_soon(passed.append, True)
        await clock.sleep(0)
        assert passed, type(clock).__name__
