"""Where a client stands in the numbered events: once each, in order, no gaps, bounded retries."""

from __future__ import annotations

import pytest
from cogitate.client._cursor import Cursor
from cogitate.client._errors import CogitateError, Unavailable
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

pytestmark = pytest.mark.unit


def event(last: int, first: int | None = None) -> pb2.ContemplationEvent:
    """An event that covers a range."""
    return pb2.ContemplationEvent(event_number=last, first_event_number=first or last)


def lost(retryable: bool = True) -> CogitateError:
    """A broken connection."""
    return Unavailable("gone", code="UNAVAILABLE", retryable=retryable)


def test_events_are_taken_once_and_ranges_count_as_one() -> None:
    cursor = Cursor(resumes=True)
    assert cursor.take(event(1))
    assert cursor.take(event(4, 2))
    assert not cursor.take(event(4, 2))
    assert not cursor.take(event(1))
    assert cursor.take(event(5))
    assert (5, 3) == (cursor.last, cursor.event_count)


@pytest.mark.parametrize("wrong", [event(3), event(4, 3), event(2, 1)])
def test_gaps_and_overlaps_are_errors(wrong: pb2.ContemplationEvent) -> None:
    cursor = Cursor(resumes=True)
    cursor.take(event(1))
    with pytest.raises(CogitateError, match="do not follow"):
        cursor.take(wrong)
    assert 1 == cursor.last


def test_a_filter_makes_gaps() -> None:
    cursor = Cursor(resumes=True, filtered=True)
    assert cursor.take(event(3))
    assert cursor.take(event(9, 8))


def test_what_the_first_and_the_last_event_tell() -> None:
    cursor = Cursor(resumes=False)
    first = event(1)
    first.accepted.contemplation_id = "c"
    first.accepted.trace.trace_id = "t"
    cursor.take(first)
    last = event(2)
    last.verdict.CopyFrom(common_pb2.Verdict())
    cursor.take(last)
    assert ("c", "t", last) == (cursor.contemplation_id, cursor.trace_id, cursor.ending)


def test_retries_are_bounded_and_start_anew_after_an_event() -> None:
    cursor = Cursor(resumes=True, max_retries=3)
    assert [0.1, 0.2, 0.4] == [cursor.after_break(lost()) for _ in range(3)]
    with pytest.raises(Unavailable):
        cursor.after_break(lost())
    cursor.take(event(1))
    assert 0.1 == cursor.after_break(lost())


def test_the_server_may_ask_for_more_patience_but_not_for_ever() -> None:
    cursor = Cursor(resumes=True)
    error = lost()
    error.retry_after_s = 1.5
    assert 1.5 == cursor.after_break(error)
    error.retry_after_s = 3600.0
    assert 2.0 == cursor.after_break(error)


@pytest.mark.parametrize(("resumes", "retryable"), [(False, True), (True, False)])
def test_what_is_not_taken_up_again(resumes: bool, retryable: bool) -> None:
    with pytest.raises(Unavailable):
        Cursor(resumes=resumes).after_break(lost(retryable))
