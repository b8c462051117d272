"""Batches are full, in order, and fair."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.vision_encoder.core.batching import FairQueue
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytestmark = pytest.mark.property

TENANTS = ["a", "b", "c"]


class QueueMachine(RuleBasedStateMachine):
    """Plays the queue against one list for each tenant."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.waiting: dict[str, list[int]] = {tenant: [] for tenant in TENANTS}
        self.next = 0

    @rule(tenant=st.sampled_from(TENANTS))
    def push(self, tenant: str) -> None:
        self.queue.push(tenant, self.next)
        self.waiting[tenant].append(self.next)
        self.next += 1

    @rule(size=st.integers(0, 5))
    def take(self, size: int) -> None:
        before = sum(map(len, self.waiting.values()))
        taken = self.queue.take(size)
        assert len(taken) == min(size, before)
        for item in taken:
            tenant = next(name for name in TENANTS if item in self.waiting[name])
            assert self.waiting[tenant].pop(0) == item

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from([name for name in TENANTS if self.waiting[name]]))
        item = data.draw(st.sampled_from(self.waiting[tenant]))
        assert self.queue.remove(tenant, item)
        assert not self.queue.remove(tenant, item)
        self.waiting[tenant].remove(item)

    @invariant()
    def same(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values()))


test_machine: Any = QueueMachine.TestCase


@given(st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 20)), st.integers(1, 7))
def test_turns(counts: dict[str, int], size: int) -> None:
    queue: FairQueue[str] = FairQueue()
    for tenant, count in counts.items():
        for _ in range(count):
            queue.push(tenant, tenant)
    order: list[str] = []
    while batch := queue.take(size):
        order += batch
    left = dict(counts)
    while left:
        # One round: each tenant that still waits has one turn.
        assert sorted(order[: len(left)]) == sorted(left)
        del order[: len(left)]
        left = {tenant: count - 1 for tenant, count in left.items() if count > 1}
    assert not order
