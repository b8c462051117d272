"""Admits calls up to a number in all and a share of it for each tenant.

Invariants (tests/property/test_tool_ledger.py, test_capacity):

1. Never more admitted calls than the total, nor of one tenant than its share.
2. After as many releases as admissions nothing is held.
"""

from __future__ import annotations

from collections import Counter

from cogitate.kit.errors import Rejected


class Capacity:
    """Counts the calls that run or wait for a thread. Owned by one task."""

    def __init__(self, *, max_calls: int, max_calls_per_tenant: int) -> None:
        self._max_calls = max_calls
        self._max_calls_per_tenant = max_calls_per_tenant
        self._held: Counter[str] = Counter()
        self._num_held = 0

    @property
    def num_held(self) -> int:
        """Calls admitted and not released."""
        return self._num_held

    def admit(self, tenant: str) -> None:
        """Takes a place. Raises Rejected, and takes none, if there is none."""
        if self._num_held >= self._max_calls:
            raise Rejected("the tool-executor is busy", retry_after_s=0.5)
        if self._held[tenant] >= self._max_calls_per_tenant:
            raise Rejected("the tenant has too many tool calls at once", retry_after_s=0.5)
        self._held[tenant] += 1
        self._num_held += 1

    def release(self, tenant: str) -> None:
        """Gives a place back."""
        self._held[tenant] -= 1
        self._num_held -= 1
        if not self._held[tenant]:
            del self._held[tenant]
