"""Who leaves an endpoint and who comes, and what that does to the finish that is told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from cogitate.router.core.estimate import CostModel, Estimate
from cogitate.router.core.learning import Speed
from cogitate.router.core.traffic import MEMORY_S, Arrivals, Stay, Traffic
from cogitate.router.core.types import Description, EndpointSnapshot, GangNeed, Load
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

times = st.floats(0.0, 1000.0)
stays = st.builds(
    lambda begin, length, agents: Stay(begin, begin + length, agents),
    times, st.floats(0.0, 100.0), st.integers(1, 20),
)  # fmt: skip
arrivals = st.builds(Arrivals, st.floats(0.0, 50.0), st.floats(0.0, 100.0), times)


@given(st.lists(stays, max_size=6), st.integers(0, 50), times, st.floats(0.0, 100.0))
def test_without_arrivals_no_more_are_expected(
    there: list[Stay], sequences: int, now: float, duration_s: float
) -> None:
    traffic = Traffic(tuple(there))
    assert 0.0 <= traffic.others(sequences, now, duration_s) <= sequences + 1e-9
    assert Traffic().others(sequences, now, duration_s) == sequences


@given(st.lists(stays, max_size=6), arrivals, st.integers(0, 50), times, st.floats(0.0, 100.0))
def test_no_more_are_expected_than_come(
    there: list[Stay], come: Arrivals, sequences: int, now: float, duration_s: float
) -> None:
    most = sequences + come.at(now) * duration_s
    assert 0.0 <= Traffic(tuple(there), come).others(sequences, now, duration_s) <= most + 1e-9


def test_arrivals_are_learned_and_forgotten() -> None:
    come = Arrivals()
    for number in range(1000):
        come = come.after(Stay(2.0 * number, 2.0 * number + 5, 4))
    assert come.at(come.at_s) == pytest.approx(2.0, rel=0.05)  # 4 agents every 2 s
    assert come.stay_s == pytest.approx(5.0)
    assert come.at(come.at_s + MEMORY_S) == pytest.approx(come.per_s / math.e)


def snapshot(traffic: Traffic) -> EndpointSnapshot:
    what = Description("e", "host:1", models=("mini",), max_sequences=64)
    speed = Speed(0.01, 0.001)
    return EndpointSnapshot(what, load=Load(running=10), speed=speed, traffic=traffic)


def test_the_finish_is_that_with_who_is_there_meanwhile() -> None:
    """Ten sequences end after a second: a gang of 100 steps waits for them that long only."""
    need = GangNeed("c", "mini", (0,), tokens_per_agent=100, asked_at_s=5.0)
    leave = Traffic((Stay(0.0, 6.0, 10),))
    staying = Estimate(snapshot(Traffic()), need, CostModel())
    leaving = Estimate(snapshot(leave), need, CostModel())
    assert staying.expected_s(1) == staying.duration_s(1) == pytest.approx(2.1)
    assert leaving.duration_s(1) == pytest.approx(2.1)  # what endpoints are compared by
    # An agent alone takes 1.1 s; the ten cost it 0.01 s a step for about half of them, and as they
    # are overdue by then, a while longer.
    assert 1.1 < leaving.expected_s(1) < 1.9
    comes = Estimate(snapshot(Traffic((), Arrivals(2.0, 60.0, 5.0))), need, CostModel())
    assert comes.expected_s(1) > 2.1
    unasked = replace(need, asked_at_s=float("inf"))
    assert Estimate(snapshot(leave), unasked, CostModel()).expected_s(1) == pytest.approx(2.1)


def test_agents_that_write_less_leave_the_longest_a_smaller_batch() -> None:
    need = GangNeed("c", "mini", tuple(range(8)), tokens_per_agent=100, mean_tokens=50)
    one = Estimate(snapshot(Traffic()), need, CostModel())
    # A step of 10 others and 8 agents takes 28 ms; with the seven there half of the time, 24.5.
    assert one.duration_s(8) == pytest.approx(2.8)
    assert one.expected_s(8) == pytest.approx(2.45)
    assert one.expected_s(1) == pytest.approx(one.duration_s(1))
    alike = Estimate(snapshot(Traffic()), replace(need, mean_tokens=0), CostModel())
    assert alike.expected_s(8) == pytest.approx(alike.duration_s(8))
