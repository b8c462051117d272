"""The block pool's edges; its invariants are in tests/property/test_block_pool.py."""

from __future__ import annotations

import pytest
from cogitate.agent_decoder.core.block_pool import BlockPool, OutOfBlocks

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("blocks", "size"), [(0, 1), (1, 0), (-1, 4)])
def test_an_empty_pool_is_no_pool(blocks: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        BlockPool(blocks, size)


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(positions: int, blocks: int) -> None:
    assert BlockPool(4, 16).blocks_for(positions) == blocks


def test_what_cannot_be_had_changes_nothing() -> None:
    pool = BlockPool(4, 16)
    pool.allocate(3)
    assert pool.can_allocate(1)
    assert not pool.can_allocate(2)
    with pytest.raises(OutOfBlocks, match="2 blocks asked, 1 free"):
        pool.allocate(2)
    assert pool.num_free == 1
    pool.check_integrity()


def test_shared_blocks_come_back_with_their_last_owner() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.allocate(2)
    assert blocks == [0, 1]
    pool.share(blocks)
    pool.release(blocks)
    assert (pool.num_free, pool.ref_count(0)) == (2, 1)
    pool.release(blocks)
    assert pool.num_free == 4


def test_mistakes_are_told() -> None:
    pool = BlockPool(4, 16)
    with pytest.raises(ValueError, match="no owner"):
        pool.share([0])
    with pytest.raises(ValueError, match="twice"):
        pool.release([0])
