"""Queues stay within their capacity and lose nothing, whoever is cancelled when."""

from __future__ import annotations

import asyncio
import logging

import pytest
from cogitate.kit.tasks import BoundedQueue, QueueClosed, Supervisor

pytestmark = pytest.mark.unit


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_items_come_out_in_order_and_never_more_than_the_capacity_wait() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3, "numbers")

    async def produce() -> None:
        for n in range(20):
            await queue.put(n)
        queue.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(produce())
        got = [n async for n in queue]
    assert got == list(range(20))
    statistics = queue.statistics()
    assert (statistics.name, statistics.capacity) == ("numbers", 3)
    assert (statistics.used, statistics.max_used, statistics.closed) == (0, 3, True)
    assert statistics.put_waits > 0


async def test_waiting_puts_are_served_in_the_order_they_came() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, "q")
    puts = [asyncio.ensure_future(queue.put(n)) for n in range(5)]
    await settle()
    assert [put.done() for put in puts] == [True, False, False, False, False]
    assert [await queue.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    await asyncio.gather(*puts)
    assert queue.statistics().put_waits == 4


async def test_offer_never_waits() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, "q")
    assert await queue.offer(1)
    assert not await queue.offer(2)
    assert await queue.get() == 1
    assert await queue.offer(3)
    queue.close()
    with pytest.raises(QueueClosed):
        await queue.offer(4)


async def test_close_wakes_everybody_and_keeps_what_was_put() -> None:
    full: BoundedQueue[int] = BoundedQueue(1, "full")
    await full.put(0)
    putters = [asyncio.ensure_future(full.put(n)) for n in (1, 2, 3)]
    empty: BoundedQueue[int] = BoundedQueue(1, "empty")
    getters = [asyncio.ensure_future(empty.get()) for _ in range(3)]
    await settle()
    for queue in (full, empty):
        queue.close()
        queue.close()
    for waiter in await asyncio.gather(*putters, *getters, return_exceptions=True):
        assert isinstance(waiter, QueueClosed)
    assert await full.get() == 0
    for _ in range(2):
        with pytest.raises(QueueClosed):
            await full.get()
        with pytest.raises(QueueClosed):
            await full.put(9)


@pytest.mark.parametrize("cancel_at", range(8))
async def test_a_cancelled_waiter_takes_and_leaves_nothing(cancel_at: int) -> None:
    """Cancels one of four puts and four gets after each number of loop turns."""
    queue: BoundedQueue[int] = BoundedQueue(2, "q")
    puts = [asyncio.ensure_future(queue.put(n)) for n in range(4)]
    gets = [asyncio.ensure_future(queue.get()) for _ in range(4)]
    for _ in range(cancel_at % 4):
        await asyncio.sleep(0)
    (puts if cancel_at < 4 else gets)[2].cancel()
    await settle()
    put = [n for n in range(4) if puts[n].done() and not puts[n].cancelled()]
    got = [get.result() for get in gets if get.done() and not get.cancelled()]
    queue.close()
    left = [n async for n in queue]
    assert sorted(got + left) == put
    await asyncio.gather(*puts, *gets, return_exceptions=True)


def test_a_queue_has_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BoundedQueue(0, "none")


async def test_a_supervisor_cancels_and_awaits_its_tasks() -> None:
    ended = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    supervisor = Supervisor()
    for name in ("a", "b"):
        supervisor.spawn(work(name), name=name)
    await settle()
    assert len(supervisor) == 2
    await supervisor.stop()
    assert sorted(ended) == ["a", "b"]
    assert len(supervisor) == 0


async def test_a_failed_task_is_logged_without_what_it_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        raise KeyError("a secret prompt")

    supervisor = Supervisor()
    with caplog.at_level(logging.ERROR):
        task = supervisor.spawn(work(), name="reporter")
        await settle()
    assert task.done()
    assert len(supervisor) == 0
    assert "reporter" in caplog.text
    assert "KeyError at" in caplog.text
    assert "secret" not in caplog.text
    await supervisor.stop()
