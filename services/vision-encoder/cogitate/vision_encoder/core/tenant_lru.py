"""Keeps what was used last, within a budget of bytes that tenants share fairly.

When the budget is passed, the tenant that holds most loses what it used least recently. So a tenant
that holds no more than its share (budget / tenants) never loses anything to another, and with one
tenant this is plain LRU.

Invariants (tests/property/test_vision_cache.py):

1. The bytes held never exceed the budget, and are the sum of what is held (test_machine).
2. What is held is what a naive model holds (test_machine), LRU for one tenant (test_one_tenant).
3. A tenant within its share loses nothing to others (test_a_flood_leaves_others_their_share).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Evicted(Generic[K, V]):
    """What had to go."""

    tenant: str
    key: K
    value: V


class TenantLru(Generic[K, V]):
    """A map (tenant, key) to value within `budget_bytes`. Owned by one task."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        # Per tenant, least recently used first.
        self._held: dict[str, OrderedDict[K, tuple[V, int]]] = {}
        self._num_bytes: dict[str, int] = {}
        self._total_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held, of all tenants."""
        return self._total_bytes

    def __len__(self) -> int:
        return sum(len(held) for held in self._held.values())

    def get(self, tenant: str, key: K) -> V | None:
        """Returns the value and marks it as used, or None."""
        held = self._held.get(tenant)
        if held is None or key not in held:
            return None
        held.move_to_end(key)
        return held[key][0]

    def put(self, tenant: str, key: K, value: V, num_bytes: int) -> list[Evicted[K, V]]:
        """Adds or replaces; returns what had to go, oldest first, without the replaced value.

        Ties between tenants go to the lesser name. A value that alone is over the budget is not
        kept and comes back as evicted itself. O(tenants) for each eviction.
        """
        self.remove(tenant, key)
        if num_bytes > self.budget_bytes:
            return [Evicted(tenant, key, value)]
        self._held.setdefault(tenant, OrderedDict())[key] = (value, num_bytes)
        self._num_bytes[tenant] = self._num_bytes.get(tenant, 0) + num_bytes
        self._total_bytes += num_bytes
        evicted = []
        while self._total_bytes > self.budget_bytes:
            loser = min(self._num_bytes, key=lambda name: (-self._num_bytes[name], name))
            oldest = next(iter(self._held[loser]))
            lost = self.remove(loser, oldest)
            assert lost is not None
            evicted.append(lost)
        return evicted

    def remove(self, tenant: str, key: K) -> Evicted[K, V] | None:
        """Takes an entry out and returns it, or None if there is none."""
        held = self._held.get(tenant)
        if held is None or key not in held:
            return None
        value, num_bytes = held.pop(key)
        self._num_bytes[tenant] -= num_bytes
        self._total_bytes -= num_bytes
        if not held:
            del self._held[tenant], self._num_bytes[tenant]
        return Evicted(tenant, key, value)
