"""Chooses what is encoded next: the views that wait, tenants taking turns.

Invariants (tests/property/test_vision_batching.py):

1. Every item pushed is taken once or removed, and in each tenant's own order (test_machine).
2. A batch never has more items than asked for, and is only short if nothing more waits
   (test_machine).
3. Between two turns of a tenant that waits every other waiting tenant has one (test_turns).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several tenants, first in first out within each. Owned by one task."""

    def __init__(self) -> None:
        # The tenants that wait, whose turn is next first.
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def push(self, tenant: str, item: T) -> None:
        """Appends to the tenant's line; a tenant that had none comes last."""
        self._waiting.setdefault(tenant, deque()).append(item)
        self._num_waiting += 1

    def take(self, max_items: int) -> list[T]:
        """Takes up to `max_items`, one of each tenant in turn."""
        taken: list[T] = []
        while self._waiting and len(taken) < max_items:
            tenant, items = next(iter(self._waiting.items()))
            taken.append(items.popleft())
            if items:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
        self._num_waiting -= len(taken)
        return taken

    def remove(self, tenant: str, item: T) -> bool:
        """Takes one item out if it still waits; says whether it did. O(the tenant's items)."""
        items = self._waiting.get(tenant)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._num_waiting -= 1
        if not items:
            del self._waiting[tenant]
        return True
