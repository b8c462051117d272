"""Breakers and the retry budget under any history."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.aggregator.core.breakers import ENOUGH, MAX_NAMED, BreakerLimits, Breakers
from cogitate.aggregator.core.retries import RetryBudget
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

LIMITS = BreakerLimits(failures=3, open_s=2.0, most_open_s=30.0)
ENDPOINTS = st.sampled_from(["a", "b", "c"])
HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["wrote", "succeeded", "failed", "stalled", "probe", "unused"]),
        ENDPOINTS,
        st.floats(0, 5),  # time since the one before
        st.floats(0, 5),  # how long the gang was open
        st.one_of(st.none(), st.floats(0, 100)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(HISTORY)
def test_nothing_is_avoided_and_probed_at_once_nor_for_longer_than_it_may(history: list) -> None:
    breakers, now = Breakers(LIMITS), 0.0
    for what, endpoint_id, later_s, open_s, gap_s in history:
        now += later_s
        if what == "wrote":
            breakers.wrote(endpoint_id, gap_s, now - open_s)
        elif what == "succeeded":
            breakers.succeeded(endpoint_id, now - open_s)
        elif what == "unused":
            breakers.unused(frozenset({endpoint_id}))
        elif what == "probe":
            avoided = breakers.avoided(now)
            probed = breakers.probe(now)
            assert not probed & avoided
            assert breakers.avoided(now) >= probed, "it is one question's to try"
            assert not breakers.probe(now)
        else:
            breakers.failed(endpoint_id, now - open_s, now, stalled=what == "stalled")
        assert LIMITS.floor_s <= breakers.limit_s(endpoint_id) <= LIMITS.ceiling_s
        assert breakers.num_open() <= 3
    later = now + LIMITS.most_open_s
    assert not breakers.avoided(later), "everybody gets another chance"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 60), min_size=ENOUGH, max_size=50))
def test_a_limit_is_several_times_what_was_usual(gaps: list[float]) -> None:
    breakers = Breakers(LIMITS)
    for number, gap_s in enumerate(gaps):
        if number < ENOUGH:
            assert breakers.limit_s("a") == LIMITS.ceiling_s, "not heard often enough"
        breakers.wrote("a", gap_s, 0.0)
    assert breakers.limit_s("a") >= min(LIMITS.ceiling_s, LIMITS.factor * min(gaps))


def test_failures_in_a_row_open_and_the_same_incident_counts_once() -> None:
    breakers = Breakers(LIMITS)
    assert not breakers.failed("a", 0.0, 1.0, stalled=False)
    assert not breakers.failed("a", 0.5, 1.1, stalled=False), "opened before the failure"
    assert not breakers.failed("a", 1.2, 2.0, stalled=False)
    assert breakers.failed("a", 2.1, 3.0, stalled=False)
    assert breakers.avoided(3.1) == {"a"}


@pytest.mark.parametrize("ends_well", [True, False])
def test_an_agent_that_ends_well_starts_the_count_anew_and_a_token_does_not(
    ends_well: bool,
) -> None:
    breakers = Breakers(LIMITS)
    for now in (1.0, 2.0):
        breakers.failed("a", now - 0.1, now, stalled=False)
    breakers.wrote("a", None, 2.5)
    if ends_well:
        breakers.succeeded("a", 2.5)
    assert breakers.failed("a", 2.6, 3.0, stalled=False) is not ends_well


def test_half_open_it_is_probed_by_one_and_closed_or_opened_twice_as_long() -> None:
    breakers = Breakers(LIMITS)
    assert breakers.failed("a", 0.0, 1.0, stalled=True)
    assert breakers.probe(2.9) == frozenset()
    assert breakers.probe(3.0) == {"a"}
    assert breakers.avoided(3.1) == {"a"}, "others leave it alone"
    assert breakers.failed("a", 3.1, 3.5, stalled=False), "the probe failed"
    assert breakers.avoided(3.5 + 3.9) == {"a"}
    assert breakers.probe(3.5 + 4.0) == {"a"}
    assert not breakers.wrote("a", None, 2.0), "a gang from before the failure tells nothing"
    assert breakers.wrote("a", None, 7.6)
    assert breakers.num_open() == 0
    assert breakers.avoided(7.7) == frozenset()


def test_an_endpoint_is_silent_from_a_stall_until_anything_comes_from_it() -> None:
    breakers = Breakers(LIMITS)
    breakers.heard_of("a", 1.0)
    assert not breakers.is_silent("a")
    assert not breakers.is_silent("b")
    breakers.failed("a", 0.0, 1.5, stalled=False)
    assert not breakers.is_silent("a"), "it failed, and may be heard of again at once"
    breakers.failed("a", 0.0, 2.0, stalled=True)
    assert breakers.is_silent("a"), "though it is the same incident"
    breakers.heard_of("a", 2.1)
    assert not breakers.is_silent("a")


def test_a_probe_that_was_not_used_is_the_next_ones() -> None:
    breakers = Breakers(LIMITS)
    breakers.failed("a", 0.0, 0.0, stalled=True)
    assert breakers.probe(2.0) == {"a"}
    breakers.unused(frozenset({"a"}))
    assert breakers.probe(2.1) == {"a"}


def test_no_more_are_named_than_a_router_takes_and_no_more_are_known_than_may() -> None:
    breakers = Breakers(replace(LIMITS), max_endpoints=MAX_NAMED + 10)
    for number in range(MAX_NAMED + 20):
        breakers.failed(f"e{number}", 0.0, 1.0, stalled=True)
    assert len(breakers.avoided(1.0)) == MAX_NAMED
    assert len(breakers.probe(4.0)) == MAX_NAMED
    assert breakers.num_open() == MAX_NAMED + 10


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["began", "ended", "take"]), st.integers(1, 40), st.floats(0, 6)),
        max_size=80,
    ),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 10),
)
def test_no_retry_is_made_beyond_the_share_of_the_window_before_it(
    history: list[tuple[str, int, float]], share: float, floor: int
) -> None:
    window_s, now = 10.0, 0.0
    budget = RetryBudget(share, floor, window_s)
    spans: list[list[float]] = []  # of agents: begin and end
    taken: list[tuple[float, int]] = []
    for what, count, later_s in history:
        now += later_s
        running = [span for span in spans if len(span) == 1]
        if what == "began":
            budget.began(count)
            spans += [[now] for _ in range(count)]
        elif what == "ended" and running:
            for span in running[:count]:
                span.append(now)
            budget.ended(len(running[:count]), now)
        elif what == "take":
            got = budget.take(count, now)
            assert 0 <= got <= count
            taken.append((now, got))
            ran = sum(len(span) == 1 or span[1] > now - window_s for span in spans)
            made = sum(number for at, number in taken if at > now - window_s)
            assert not got or made <= max(floor, share * ran)
            if got < count:
                assert made >= int(max(floor, share * ran)), "none is refused that might be made"
    assert budget.num_made == sum(number for _, number in taken)
