"""Block pool: free + used = total, reservations hold, everything comes back."""

from __future__ import annotations

import pytest
from cogitate.agent_decoder.core.block_pool import BlockPool, OutOfBlocks
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

pytestmark = pytest.mark.property


class PoolMachine(RuleBasedStateMachine):
    """Owners reserve, allocate, share and let go in any order; a model keeps the count."""

    @initialize(num_blocks=st.integers(1, 12), size=st.integers(1, 4))
    def begin(self, num_blocks: int, size: int) -> None:
        self.pool = BlockPool(num_blocks, size)
        self.reserved = 0
        self.holdings: list[list[int]] = []

    @rule(count=st.integers(0, 14))
    def reserve(self, count: int) -> None:
        possible = self.pool.can_reserve(count)
        try:
            self.pool.reserve(count)
        except OutOfBlocks:
            assert not possible
        else:
            assert possible
            self.reserved += count

    @rule(count=st.integers(0, 14))
    def unreserve(self, count: int) -> None:
        if count <= self.reserved:
            self.pool.unreserve(count)
            self.reserved -= count
        else:
            with pytest.raises(ValueError, match="given back"):
                self.pool.unreserve(count)

    @rule(count=st.integers(0, 14))
    def allocate(self, count: int) -> None:
        if count > self.reserved:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            return
        held = {block for blocks in self.holdings for block in blocks}
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        assert not held & set(blocks), "a block with two owners"
        self.reserved -= count
        self.holdings.append(blocks)

    @precondition(lambda self: self.holdings)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(self.holdings))
        self.pool.share(blocks)
        self.holdings.append(list(blocks))

    @precondition(lambda self: self.holdings)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holdings) - 1))
        self.pool.release(self.holdings.pop(index))

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        held = {block for blocks in self.holdings for block in blocks}
        assert self.pool.num_free == self.pool.num_blocks - len(held)
        assert self.pool.num_available == self.pool.num_free - self.reserved
        for block in held:
            owners = sum(blocks.count(block) for blocks in self.holdings)
            assert self.pool.ref_count(block) == owners

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for blocks in self.holdings:
            self.pool.release(blocks)
        self.pool.unreserve(self.reserved)
        assert self.pool.num_available == self.pool.num_blocks


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
