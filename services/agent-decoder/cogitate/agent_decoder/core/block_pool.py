"""Memory of the KV cache in blocks of positions, shared by reference count.

A block that was named keeps what it holds after its last owner let go, until the memory is needed:
whoever comes with the same name shares it again (the prefix cache). Among free blocks those
without a name are handed out first, then the named ones that were used longest ago.

Invariants (property tests in ``tests/property/test_block_pool.py``):

1. free + used == total, and every used block has at least one owner.
2. What cannot be given changes nothing.
3. After all owners let go every block is free again.
4. A name stands for one block at most, and a block handed out anew has none.

Source: PagedAttention (arXiv 2309.06180); ask-then-act pairs as in nano-vllm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class OutOfBlocks(Exception):
    """The pool cannot give what was asked; it is unchanged."""


class BlockPool:
    """Blocks with reference counts. One user: not thread-safe."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError("a pool needs at least one block of at least one position")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        # Popping from the end hands out low numbers first, which keeps the touched memory small.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._by_name: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._named_free: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks without an owner, named ones included."""
        return len(self._free) + len(self._named_free)

    @property
    def num_cached(self) -> int:
        """Free blocks that keep what they hold under a name."""
        return len(self._named_free)

    def blocks_for(self, num_positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-num_positions // self.block_size)

    def can_allocate(self, count: int) -> bool:
        """Whether ``allocate(count)`` would succeed."""
        return count <= self.num_free

    def allocate(self, count: int) -> list[int]:
        """Takes blocks, all or nothing. Each has one owner. Raises OutOfBlocks. O(count)."""
        if not self.can_allocate(count):
            raise OutOfBlocks(f"{count} blocks asked, {self.num_free} free")
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._named_free.popitem(last=False)
        del self._by_name[self._names.pop(block)]
        return block

    def name(self, block: int, name: bytes) -> None:
        """Says what a full block of one's own holds. A name or a block that is taken stays."""
        if self._ref_counts[block] == 0:
            raise ValueError(f"block {block} has no owner to name it")
        if name not in self._by_name and block not in self._names:
            self._by_name[name], self._names[block] = block, name

    def allocate_named(self, names: Sequence[bytes]) -> list[int]:
        """Takes or shares the blocks of the longest run of known names, from the first on."""
        blocks: list[int] = []
        for name in names:
            if (block := self._by_name.get(name)) is None:
                break
            self._ref_counts[block] += 1
            self._named_free.pop(block, None)
            blocks.append(block)
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Adds one owner to each block; shared blocks are read-only for all of them."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                raise ValueError(f"block {block} has no owner to share with")
            self._ref_counts[block] += 1

    def release(self, blocks: list[int]) -> None:
        """Removes one owner from each block; the last owner frees it.

        The last block goes first: of a chain that is used least, its end is forgotten first.
        """
        for block in reversed(blocks):
            if self._ref_counts[block] == 0:
                raise ValueError(f"block {block} was released twice")
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._let_go(block)

    def _let_go(self, block: int) -> None:
        if block in self._names:
            self._named_free[block] = None
        else:
            self._free.append(block)

    def ref_count(self, block: int) -> int:
        """Owners of a block."""
        return self._ref_counts[block]

    def check_integrity(self) -> None:
        """Raises AssertionError when an invariant does not hold. O(num_blocks)."""
        used = sum(count > 0 for count in self._ref_counts)
        free = [*self._free, *self._named_free]
        assert used + len(free) == self.num_blocks, "free + used != total"
        assert len(set(free)) == len(free), "a block is free twice"
        assert all(self._ref_counts[block] == 0 for block in free), "a free block has an owner"
        assert {n: b for b, n in self._names.items()} == self._by_name, "names and blocks differ"
        assert not set(self._free) & set(self._names), "a named block is free as unnamed"
