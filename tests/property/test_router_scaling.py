"""What waits and what a pool needs, against plain counting."""

from __future__ import annotations

import dataclasses

import pytest
from cogitate.router.core.estimate import CostModel
from cogitate.router.core.types import (
    Constraints,
    Declare,
    Denied,
    Description,
    EndpointSnapshot,
    GangNeed,
    Granted,
    Load,
    State,
    Terms,
)
from cogitate.router.scaling.demand import Demand, Need, Pool, Scale, need_of
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

IDS = st.sampled_from(["c1", "c2", "c3", "c4"])
MODELS = st.sampled_from(["mini", "other"])
REASONS = st.sampled_from(["NO_ENDPOINT", "UNKNOWN_MODEL", "INVALID_REQUEST", "NOT_OWNER", ""])
WINDOW_S = 5.0


def declared(contemplation_id: str, model: str, agents: int, providers: frozenset[str]) -> Declare:
    gang = GangNeed(contemplation_id, model, tuple(range(agents)))
    return Declare(contemplation_id, 1, (gang,), terms=Terms(Constraints(providers=providers)))


@given(
    steps=st.lists(
        st.tuples(
            IDS, MODELS, st.integers(1, 9), REASONS, st.sampled_from(["", "p", "q"]),
            st.floats(0, 3),
        ),
        max_size=20,
    ),
    released=st.sets(IDS),
    later_s=st.floats(0, 6),
)  # fmt: skip
def test_waiting_gangs_are_those_denied_last_and_lately(steps, released, later_s: float) -> None:
    demand, now = Demand(WINDOW_S, 10), 0.0
    last: dict[str, tuple[float, str, int, str, str]] = {}
    for contemplation_id, model, agents, reason, provider, pause_s in steps:
        now += pause_s
        providers = frozenset({provider} - {""})
        command = declared(contemplation_id, model, agents, providers)
        answer = (
            Denied(contemplation_id, 1, reason, "no")
            if reason
            else Granted(contemplation_id, 1, (), (), "gang")
        )
        demand.note(command, answer, now)
        last[contemplation_id] = (now, model, agents, reason, provider)
    for contemplation_id in released:
        demand.forget(contemplation_id)
        last.pop(contemplation_id, None)
    now += later_s
    for pool_provider in ("", "p"):
        expected = sum(
            agents
            for at_s, model, agents, reason, provider in last.values()
            if model == "mini"
            and reason in ("NO_ENDPOINT", "UNKNOWN_MODEL")
            and now - at_s < WINDOW_S
            and (not pool_provider or provider in ("", pool_provider))
        )
        assert demand.agents("mini", pool_provider, now) == expected


def test_only_so_many_gangs_are_remembered_the_latest() -> None:
    demand = Demand(WINDOW_S, 2)
    for number, contemplation_id in enumerate(("c1", "c2", "c3")):
        command = declared(contemplation_id, "mini", 10**number, frozenset())
        demand.note(command, Denied(contemplation_id, 1, "NO_ENDPOINT", "no"), 0.0)
    assert demand.agents("mini", "", 1.0) == 110


def endpoint(name: str, running: int, waiting: int = 0, **fields: object) -> EndpointSnapshot:
    what = Description(
        name, "a:1", "p", models=("mini",), total_blocks=100, block_size=16, max_sequences=10
    )
    load = Load(running=running, waiting=waiting, free_blocks=75)
    return dataclasses.replace(EndpointSnapshot(what, load=load), **fields)  # type: ignore[arg-type]


def needed(*fleet: EndpointSnapshot, denied: int = 0, **pool: object) -> Need:
    return need_of(
        Pool("mini", **pool),  # type: ignore[arg-type]
        fleet,
        denied,
        10.0,
        CostModel(),
        Scale(),
    )


def test_sums_leave_out_who_is_silent_draining_or_of_another_pool() -> None:
    counted = endpoint("a", 4, waiting=2)
    others = (
        endpoint("b", 5, state=State.DRAINING),
        endpoint("c", 5, state=State.STALE),
        endpoint("d", 5, expires_at_s=10.0),
        endpoint("e", 5, description=Description("e", "a:1", models=("other",))),
    )
    need = needed(counted, *others, denied=3)
    assert (need.endpoints, need.agents, need.waiting_agents) == (1, 9, 5)
    assert need.kv == pytest.approx(0.25)
    assert need.agents_per_endpoint == pytest.approx(8)
    assert needed(counted, *others, provider="q").endpoints == 0


@given(n=st.integers(1, 6), waiting=st.integers(0, 50), denied=st.integers(0, 50))
def test_a_pool_twice_as_large_with_twice_the_work_needs_twice_as_many(
    n: int, waiting: int, denied: int
) -> None:
    """Sums over the pool: only then is ceil(sum / target) the number of endpoints."""
    one = needed(*(endpoint(f"a{i}", 3, waiting) for i in range(n)), denied=denied)
    two = needed(*(endpoint(f"a{i}", 3, waiting) for i in range(2 * n)), denied=2 * denied)
    assert two.agents == 2 * one.agents
    assert two.kv == pytest.approx(2 * one.kv)
    assert two.wait_s == pytest.approx(2 * one.wait_s)
    assert two.agents_per_endpoint == one.agents_per_endpoint


def test_an_empty_pool_is_asleep_until_somebody_waits() -> None:
    assert not needed().is_active
    asleep, awake = needed(agents_per_endpoint=4.0), needed(denied=1)
    assert (asleep.agents_per_endpoint, awake.agents_per_endpoint) == (4, 16)
    assert awake.is_active and awake.wait_s > 0
