"""A call runs once, is forgotten in order, and places are given back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from cogitate.kit.errors import AlreadyExists, NotOwner, Rejected
from cogitate.tool_executor.core.capacity import Capacity
from cogitate.tool_executor.core.ledger import (
    ENTRY_BYTES,
    EpochFence,
    Join,
    Key,
    Ledger,
    Replay,
    Start,
)
from cogitate.tool_executor.core.types import Execution, Outcome
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytestmark = pytest.mark.property

KEYS = [Key(tenant, "c", call) for tenant in "ab" for call in "123"]
PRINTS = [b"x", b"y"]
MAX_RESULTS, MAX_BYTES, TTL_S = 3, 3 * ENTRY_BYTES + 100, 10.0


class LedgerMachine(RuleBasedStateMachine):
    """Plays the ledger against a list of what should be known."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(max_results=MAX_RESULTS, max_bytes=MAX_BYTES, ttl_s=TTL_S)
        self.now = 0.0
        self.running: dict[Key, bytes] = {}
        # Oldest use first: key, fingerprint, text, expiry.
        self.finished: list[tuple[Key, bytes, str, float]] = []

    @rule(key=st.sampled_from(KEYS), fingerprint=st.sampled_from(PRINTS))
    def begin(self, key: Key, fingerprint: bytes) -> None:
        self.finished = [each for each in self.finished if each[0] != key or each[3] > self.now]
        known = next((each for each in self.finished if each[0] == key), None)
        expected = known[1] if known else self.running.get(key)
        if expected is not None and expected != fingerprint:
            with pytest.raises(AlreadyExists):
                self.ledger.begin(key, fingerprint, self.now)
            return
        decision = self.ledger.begin(key, fingerprint, self.now)
        if known:
            assert isinstance(decision, Replay) and decision.execution.replayed
            assert decision.execution.outcome.text == known[2]
            self.finished.remove(known)
            self.finished.append(known)
        elif key in self.running:
            assert decision == Join()
        else:
            assert decision == Start()
            self.running[key] = fingerprint

    @precondition(lambda self: self.running)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 50, 200, 5000]))
    def finish(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.running, key=str)))
        execution = Execution(key.call_id, "t", "1", "builtin", Outcome(text="z" * size), 0.0)
        self.ledger.finish(key, execution, self.now)
        entry = (key, self.running.pop(key), "z" * size, self.now + TTL_S)
        self.finished.append(entry)
        while len(self.finished) > MAX_RESULTS or self.bytes() > MAX_BYTES:
            self.finished.pop(0)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running, key=str)))
        del self.running[key]
        self.ledger.abandon(key)

    @rule(step=st.sampled_from([0.0, 1.0, 9.0, 10.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule()
    def expire(self) -> None:
        self.ledger.expire(self.now)
        self.finished = [each for each in self.finished if each[3] > self.now]

    def bytes(self) -> int:
        return sum(ENTRY_BYTES + len(each[2]) for each in self.finished)

    @invariant()
    def same(self) -> None:
        assert self.ledger.num_running == len(self.running)
        assert self.ledger.num_results == len(self.finished) <= MAX_RESULTS
        assert self.ledger.num_bytes == self.bytes() <= MAX_BYTES


test_machine: Any = LedgerMachine.TestCase


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
def test_capacity(steps: list[tuple[bool, str]]) -> None:
    capacity = Capacity(max_calls=5, max_calls_per_tenant=3)
    held: Counter[str] = Counter()
    for is_admission, tenant in steps:
        if is_admission:
            if held.total() < 5 and held[tenant] < 3:
                capacity.admit(tenant)
                held[tenant] += 1
            else:
                with pytest.raises(Rejected) as caught:
                    capacity.admit(tenant)
                assert caught.value.retry_after_s
        elif held[tenant]:
            capacity.release(tenant)
            held[tenant] -= 1
        assert capacity.num_held == held.total()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4)), max_size=40))
def test_an_epoch_never_goes_back(steps: list[tuple[str, int]]) -> None:
    fence = EpochFence(10)
    newest: dict[str, int] = {}
    for contemplation, epoch in steps:
        if epoch < newest.get(contemplation, 0):
            with pytest.raises(NotOwner):
                fence.check("t", contemplation, epoch)
        else:
            fence.check("t", contemplation, epoch)
            newest[contemplation] = epoch


def test_the_fence_remembers_so_many() -> None:
    fence = EpochFence(2)
    for name in "abc":
        fence.check("t", name, 5)
    fence.check("t", "a", 1)  # forgotten
    with pytest.raises(NotOwner):
        fence.check("t", "c", 1)
