"""Who is refused at the aggregator's door, by example."""

from __future__ import annotations

import pytest
from cogitate.aggregator.core import door
from cogitate.aggregator.core.door import Door, Kind

pytestmark = pytest.mark.unit

KIND = Kind("tenant", "mini", 0)
SAYS = "the wait for mini is about 4.0 s"


def told(memory_s: float = 0.2, wait_s: float = 4.0) -> Door:
    """A door after the router refused 8 agents with 6 s, at 10."""
    made = Door(memory_s)
    made.refused(KIND, 8, 6.0, SAYS, wait_s, 10.0)
    return made


def test_a_refusal_speaks_for_those_like_it_and_says_when_to_come_again() -> None:
    at = told()
    assert at.refusal(KIND, 8, 6.0, 10.1) == (SAYS, pytest.approx(3.9))
    assert at.refusal(KIND, 16, 2.0, 10.1) is not None


@pytest.mark.parametrize(
    ("kind", "agents", "time_s"),
    [
        (Kind("another", "mini", 0), 8, 6.0),
        (Kind("tenant", "other", 0), 8, 6.0),
        (Kind("tenant", "mini", 1), 8, 6.0),
        (Kind("tenant", "mini", 0, b"region"), 8, 6.0),
        (KIND, 7, 6.0),
        (KIND, 8, 6.0 * door.SAME_TIME + 0.01),
    ],
)
def test_whom_it_does_not_speak_for(kind: Kind, agents: int, time_s: float) -> None:
    assert told().refusal(kind, agents, time_s, 10.1) is None


@pytest.mark.parametrize(
    ("memory_s", "wait_s", "counts_s"),
    [(0.2, 4.0, 0.2), (0.2, 1.0, 1.0 * door.WAIT_SHARE), (60.0, 4.0, 4.0 * door.WAIT_SHARE)],
)
def test_it_counts_for_its_time_and_a_share_of_the_wait(
    memory_s: float, wait_s: float, counts_s: float
) -> None:
    at = told(memory_s, wait_s)
    assert at.refusal(KIND, 8, 6.0, 10.0 + counts_s - 0.001) is not None
    assert at.refusal(KIND, 8, 6.0, 10.0 + counts_s) is None


def test_the_next_one_asks_for_all() -> None:
    at = told()
    assert at.refusal(KIND, 8, 6.0, 10.25) is None
    assert at.refusal(KIND, 8, 6.0, 10.26) == (SAYS, pytest.approx(3.74))
    assert at.refusal(KIND, 8, 6.0, 10.46) is None
    at.admitted(KIND)
    assert at.refusal(KIND, 8, 6.0, 10.47) is None


def test_what_was_refused_long_ago_says_nothing() -> None:
    at = told()
    assert at.refusal(KIND, 8, 6.0, 10.4) is None
    assert at.refusal(KIND, 8, 6.0, 10.41) is None


@pytest.mark.parametrize(("memory_s", "wait_s"), [(0.0, 4.0), (0.2, 0.0)])
def test_without_memory_or_a_known_wait_each_is_asked_for(memory_s: float, wait_s: float) -> None:
    assert told(memory_s, wait_s).refusal(KIND, 8, 6.0, 10.0) is None


def test_kinds_are_bounded_and_old_ones_make_room() -> None:
    at = Door(0.2)
    for number in range(door.MAX_KINDS + 1):
        at.refused(Kind(f"t{number}", "mini", 0), 1, 6.0, SAYS, 4.0, 0.0)
    assert at.refusal(Kind("t0", "mini", 0), 1, 6.0, 0.1) is not None
    last = Kind(f"t{door.MAX_KINDS}", "mini", 0)
    assert at.refusal(last, 1, 6.0, 0.1) is None
    at.refused(last, 1, 6.0, SAYS, 4.0, 0.3)
    assert at.refusal(last, 1, 6.0, 0.4) is not None
