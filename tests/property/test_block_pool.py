"""Block pool: free + used = total, what cannot be given changes nothing, all comes back."""

from __future__ import annotations

import itertools

import pytest
from cogitate.agent_decoder.core.block_pool import BlockPool, OutOfBlocks
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

pytestmark = pytest.mark.property


NAMES = (b"a", b"b", b"c", b"d")


class PoolMachine(RuleBasedStateMachine):
    """Owners allocate, share, name and let go in any order; a model keeps the count."""

    @initialize(num_blocks=st.integers(1, 12), size=st.integers(1, 4))
    def begin(self, num_blocks: int, size: int) -> None:
        self.pool = BlockPool(num_blocks, size)
        self.holdings: list[list[int]] = []
        self.named: dict[bytes, int] = {}

    @rule(count=st.integers(0, 14))
    def allocate(self, count: int) -> None:
        if not self.pool.can_allocate(count):
            free = self.pool.num_free
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            assert self.pool.num_free == free < count
            return
        held = {block for blocks in self.holdings for block in blocks}
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count
        # What a block held is forgotten when it is handed out anew.
        self.named = {name: b for name, b in self.named.items() if b not in blocks}
        assert not held & set(blocks), "a block with two owners"
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

    @precondition(lambda self: self.holdings)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def name(self, data: st.DataObject, name: bytes) -> None:
        held = [block for blocks in self.holdings for block in blocks]
        if not held:
            return
        block = data.draw(st.sampled_from(held))
        if name not in self.named and block not in self.named.values():
            self.named[name] = block
        self.pool.name(block, name)

    @rule(names=st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    def allocate_named(self, names: list[bytes]) -> None:
        blocks = self.pool.allocate_named(names)
        # Whether a name outlived its owners is the pool's; if it did, it is the same block.
        assert blocks == [self.named[name] for name in names[: len(blocks)]]
        held = {block for owned in self.holdings for block in owned}
        known = itertools.takewhile(lambda n: self.named.get(n) in held, names)
        assert len(blocks) >= len(list(known))
        self.holdings.append(blocks)

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        held = {block for blocks in self.holdings for block in blocks}
        assert self.pool.num_free == self.pool.num_blocks - len(held)
        for block in held:
            owners = sum(blocks.count(block) for blocks in self.holdings)
            assert self.pool.ref_count(block) == owners

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for blocks in self.holdings:
            self.pool.release(blocks)
        assert self.pool.num_free == self.pool.num_blocks


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_named_block_is_found_again_until_its_memory_is_needed() -> None:
    pool = BlockPool(4, 2)
    first = pool.allocate(2)
    pool.name(first[0], b"a")
    pool.name(first[1], b"b")
    pool.release(first)
    assert pool.num_free == 4
    assert pool.allocate_named([b"a", b"b", b"c"]) == first
    assert len(pool.allocate(2)) == 2
    pool.release(first)
    # The end of the chain goes first: its beginning is of use without it.
    assert pool.allocate(1) == [first[1]]
    assert pool.allocate_named([b"a", b"b"]) == [first[0]]


def test_blocks_without_a_name_are_handed_out_before_named_ones() -> None:
    pool = BlockPool(3, 2)
    (named,) = pool.allocate(1)
    pool.name(named, b"a")
    pool.release([named])
    assert named not in pool.allocate(2)


def test_only_an_owner_may_name() -> None:
    with pytest.raises(ValueError, match="no owner"):
        BlockPool(1, 1).name(0, b"a")
