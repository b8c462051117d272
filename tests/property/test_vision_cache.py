"""The cache is LRU within its budget, and fair to tenants."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.vision_encoder.core.tenant_lru import TenantLru
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

pytestmark = pytest.mark.property

BUDGET = 100
TENANTS = ["a", "b", "c"]
KEYS = list(range(6))


class CacheMachine(RuleBasedStateMachine):
    """Plays the cache against a list, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: TenantLru[int, str] = TenantLru(BUDGET)
        self.held: list[tuple[str, int, str, int]] = []
        self.num_puts = 0

    @rule(
        tenant=st.sampled_from(TENANTS),
        key=st.sampled_from(KEYS),
        size=st.integers(0, BUDGET + 10),
    )
    def put(self, tenant: str, key: int, size: int) -> None:
        self.num_puts += 1
        value = f"value {self.num_puts}"
        evicted = self.cache.put(tenant, key, value, size)
        self.drop(tenant, key)
        gone = []
        if size > BUDGET:
            gone.append((tenant, key, value))
        else:
            self.held.append((tenant, key, value, size))
        while self.total() > BUDGET:
            most = max(self.of(name) for name in TENANTS)
            loser = next(name for name in TENANTS if self.of(name) == most)
            lost = next(each for each in self.held if each[0] == loser)
            self.held.remove(lost)
            gone.append(lost[:3])
        assert [(each.tenant, each.key, each.value) for each in evicted] == gone

    @rule(tenant=st.sampled_from(TENANTS), key=st.sampled_from(KEYS))
    def get(self, tenant: str, key: int) -> None:
        known = next((each for each in self.held if each[:2] == (tenant, key)), None)
        assert self.cache.get(tenant, key) == (known[2] if known else None)
        if known:
            self.held.remove(known)
            self.held.append(known)

    @rule(tenant=st.sampled_from(TENANTS), key=st.sampled_from(KEYS))
    def remove(self, tenant: str, key: int) -> None:
        removed = self.cache.remove(tenant, key)
        assert (removed is not None) == self.drop(tenant, key)

    def drop(self, tenant: str, key: int) -> bool:
        before = len(self.held)
        self.held = [each for each in self.held if each[:2] != (tenant, key)]
        return len(self.held) < before

    def of(self, tenant: str) -> int:
        return sum(each[3] for each in self.held if each[0] == tenant)

    def total(self) -> int:
        return sum(each[3] for each in self.held)

    @invariant()
    def same(self) -> None:
        assert self.cache.num_bytes == self.total() <= BUDGET
        assert len(self.cache) == len(self.held)


test_machine: Any = CacheMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60))
def test_one_tenant(puts: list[tuple[int, int]]) -> None:
    cache: TenantLru[int, int] = TenantLru(BUDGET)
    used: dict[int, int] = {}
    for key, size in puts:
        cache.put("a", key, key, size)
        used.pop(key, None)
        used[key] = size
        while sum(used.values()) > BUDGET:
            del used[next(iter(used))]
    assert {key for key in range(10) if cache.get("a", key) is not None} == set(used)


@given(st.lists(st.integers(1, 25), max_size=20), st.lists(st.integers(1, BUDGET), max_size=60))
def test_a_flood_leaves_others_their_share(own: list[int], flood: list[int]) -> None:
    cache: TenantLru[int, int] = TenantLru(BUDGET)
    kept: dict[int, int] = {}
    for key, size in enumerate(own):
        if sum(kept.values()) + size <= BUDGET // 2:
            cache.put("a", key, key, size)
            kept[key] = size
    for key, size in enumerate(flood):
        cache.put("b", key, key, size)
    assert all(cache.get("a", key) is not None for key in kept)
