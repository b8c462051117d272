"""Bookings and admission by example."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.router.core.desk import Desk
from cogitate.router.core.fleet import EndpointChanged, Fleet
from cogitate.router.core.leases import Leases
from cogitate.router.core.policies import POLICIES
from cogitate.router.core.types import (
    Change,
    Confirm,
    Constraints,
    Declare,
    Denied,
    Description,
    GangNeed,
    Granted,
    Load,
    Replace,
    Terms,
)

pytestmark = pytest.mark.unit


def desk(*endpoints: str, **limits: int) -> Desk:
    """Returns a desk to which endpoints reported at 0."""
    made = Desk(Fleet(3.0), Leases(2.0), **limits)  # type: ignore[arg-type]
    for stream, name in enumerate(endpoints, 1):
        made.fleet.describe(stream, what(name), 0.0)
        made.fleet.report(stream, name, Load(free_blocks=100), 0.0)
    return made


def what(name: str) -> Description:
    return Description(
        name, "127.0.0.1:1", name, models=("mini",), total_blocks=100, block_size=16,
        max_sequences=16,
    )  # fmt: skip


def declare(contemplation_id: str = "c", agents: int = 4, attempt: int = 1, **fields: object):
    need = GangNeed(contemplation_id, "mini", tuple(range(agents)), tokens_per_agent=32)
    return replace(Declare(contemplation_id, attempt, (need,)), **fields)


def granted(answer: Granted | Denied) -> Granted:
    assert isinstance(answer, Granted), answer
    return answer


def denied(answer: Granted | Denied) -> Denied:
    assert isinstance(answer, Denied), answer
    return answer


def confirmed(answer: Granted, *failures: str) -> Confirm:
    gangs = tuple((g.gang_id, g.share.endpoint_id, len(g.share.agent_ids)) for g in answer.gangs)
    return Confirm(
        answer.contemplation_id, answer.attempt, gangs, tuple((f, "UNAVAILABLE") for f in failures)
    )


def booked(at: Desk, name: str = "a", now: float = 0.0) -> tuple[int, int]:
    """Returns all and pending agents of an endpoint."""
    (snapshot,) = [s for s in at.snapshot(now) if s.endpoint_id == name]
    return snapshot.booked_agents, snapshot.pending_agents


def test_a_booking_is_pending_until_a_report_after_the_confirmation() -> None:
    at = desk("a")
    grant = granted(at.declare(declare(), 1, 0.1))
    assert booked(at, now=0.1) == (4, 4)
    at.confirm(confirmed(grant), 1, 0.2)
    assert booked(at, now=0.3) == (4, 4)
    at.fleet.report(1, "a", Load(running=4, free_blocks=90), 0.4)
    assert booked(at, now=0.5) == (4, 0)


def test_an_unconfirmed_booking_settles_by_itself() -> None:
    at = desk("a")
    at.declare(declare(), 1, 0.0)
    assert booked(at, now=1.9) == (4, 4)
    assert booked(at, now=2.0) == (4, 0)


def test_bookings_fill_an_endpoint_before_it_reports_them() -> None:
    at = desk("a")
    granted(at.declare(declare("c1", 16), 1, 0.0))
    full = denied(at.declare(declare("c2", 1), 1, 0.0))
    assert (full.reason, full.retryable) == ("NO_ENDPOINT", True)
    assert at.release("c1", 1)
    granted(at.declare(declare("c2", 1), 1, 0.0))


def sequences(at: Desk, now: float, name: str = "a") -> int:
    """Returns how many sequences are taken to be there."""
    (snapshot,) = [s for s in at.snapshot(now) if s.endpoint_id == name]
    return snapshot.sequences


def running(at: Desk, *gangs: int) -> None:
    """Has gangs of so many agents placed and confirmed, as c1, c2, … of holder 1, before 0.2."""
    for number, agents in enumerate(gangs, 1):
        grant = granted(at.declare(declare(f"c{number}", agents), 1, 0.1))
        at.confirm(confirmed(grant), 1, 0.1)


def test_what_is_released_is_room_at_once() -> None:
    at = desk("a")
    running(at, 8, 8)
    at.fleet.report(1, "a", Load(running=16, free_blocks=80), 0.2)
    denied(at.declare(declare("c3", 8), 1, 0.3))
    assert at.release("c1", 1, 0.4)
    assert sequences(at, 0.4) == 8
    granted(at.declare(declare("c3", 8), 1, 0.4))
    denied(at.declare(declare("c4", 1), 1, 0.5))
    # The next report speaks for itself, whatever it says.
    at.fleet.report(1, "a", Load(running=16, free_blocks=80), 0.6)
    assert sequences(at, 0.6) == 24


@pytest.mark.parametrize(
    ("told", "left"),
    [
        (16, 8),  # all of both gangs run
        (10, 8),  # six had ended before it, of either gang
        (5, 5),  # the other gang may have all of these
        (20, 12),  # four are another router's
    ],
)
def test_a_release_takes_off_no_more_than_the_report_contains(told: int, left: int) -> None:
    at = desk("a")
    running(at, 8, 8)
    at.fleet.report(1, "a", Load(running=told, free_blocks=80), 0.2)
    at.release("c1", 1, 0.3)
    assert sequences(at, 0.3) == left


def test_what_no_report_contains_yet_is_not_taken_off() -> None:
    at = desk("a")
    at.fleet.report(1, "a", Load(running=8, free_blocks=90), 0.1)
    granted(at.declare(declare("c", 8), 1, 0.2))
    assert sequences(at, 0.2) == 16
    at.release("c", 1, 0.3)
    assert sequences(at, 0.3) == 8


def test_what_may_still_run_is_not_taken_off() -> None:
    at = desk("a")
    running(at, 8, 4)
    at.fleet.report(1, "a", Load(running=12, free_blocks=80), 0.2)
    at.release("c1", 1)
    assert sequences(at, 0.3) == 12
    at.end(1)  # an aggregator that died: its endpoints notice it later
    assert sequences(at, 0.4) == 12


def test_gangs_of_one_declaration_see_each_other() -> None:
    at = desk("a")
    need = declare(agents=10).gangs[0]
    other = replace(need, agent_ids=tuple(range(10, 20)))
    assert denied(at.declare(declare(gangs=(need, other)), 1, 0.0)).reason == "NO_ENDPOINT"
    assert at.leases.leases["c"].bookings == {}
    at.fleet.describe(9, what("b"), 0.0)
    at.fleet.report(9, "b", Load(free_blocks=100), 0.0)
    answer = granted(at.declare(declare(gangs=(need, other)), 1, 0.0))
    agents = [agent for g in answer.gangs for agent in g.share.agent_ids]
    assert sorted(agents) == list(range(20))
    assert len({g.gang_id for g in answer.gangs}) == len(answer.gangs)


def test_a_rollback_takes_only_its_own_attempt_back() -> None:
    at = desk("a")
    first = granted(at.declare(declare(), 1, 0.0))
    at.confirm(confirmed(first), 1, 0.0)
    second = granted(at.declare(declare(agents=2, attempt=2), 1, 0.0))
    at.rollback(replace(first, attempt=2))
    assert booked(at)[0] == 6
    at.rollback(second)
    assert booked(at)[0] == 4
    at.rollback(first)
    assert at.leases.leases == {}
    at.rollback(first)


def test_a_newer_attempt_voids_what_nobody_confirmed() -> None:
    at = desk("a")
    granted(at.declare(declare(), 1, 0.0))
    granted(at.declare(declare(agents=3, attempt=2), 1, 0.0))
    assert booked(at)[0] == 3
    stale = denied(at.declare(declare(attempt=1), 1, 0.0))
    assert stale.message == "attempt 1 is older than attempt 2"
    assert booked(at)[0] == 3


def test_a_confirmation_says_what_runs_where() -> None:
    at = desk("a", "b")
    terms = Terms(Constraints(min_failure_domains=2))
    grant = granted(at.declare(declare(terms=terms), 1, 0.0))
    (on_a,) = [g for g in grant.gangs if g.share.endpoint_id == "a"]
    at.confirm(Confirm("c", 1, ((on_a.gang_id, "a", 1),), (("b", "UNAVAILABLE"),)), 1, 0.1)
    assert (booked(at, "a")[0], booked(at, "b")[0]) == (1, 0)
    (snapshot, _) = at.snapshot(0.1)
    assert snapshot.booked_blocks == 1
    moved = Confirm("c", 1, ((on_a.gang_id, "b", 1), ("other", "nowhere", 2)))
    at.confirm(moved, 1, 0.2)
    assert (booked(at, "a")[0], booked(at, "b")[0]) == (0, 1)
    at.leases.check()


def test_replacements_keep_the_terms_and_avoid_what_failed() -> None:
    at = desk("a", "b")
    terms = Terms(Constraints(excluded=frozenset({"b"})))
    granted(at.declare(declare(terms=terms), 1, 0.0))
    again = Replace("c", 2, declare(agents=2).gangs, (("a", "UNAVAILABLE"),))
    refused = denied(at.replace(again, 1, 0.1))
    assert [r.reason for r in refused.rejected] == [
        "it failed this contemplation",
        "the request excludes it",
    ]
    assert refused.retryable
    assert booked(at, "a")[0] == 0
    at.fleet.describe(7, what("a"), 0.2)
    at.fleet.report(7, "a", Load(free_blocks=100), 0.2)
    answer = granted(at.replace(replace(again, attempt=3, failures=()), 1, 0.3))
    assert [g.share.endpoint_id for g in answer.gangs] == ["a"]


def test_a_confirmation_speaks_of_its_own_attempt_only() -> None:
    at = desk("a")
    first = granted(at.declare(declare(), 1, 0.0))
    at.confirm(confirmed(first), 1, 0.0)
    second = granted(at.replace(Replace("c", 2, declare(agents=1).gangs), 1, 0.0))
    at.confirm(confirmed(second), 1, 0.1)
    assert booked(at)[0] == 5
    at.confirm(Confirm("c", 1), 1, 0.2)
    assert booked(at)[0] == 1


def test_a_denied_declaration_is_remembered_for_its_terms() -> None:
    at = desk("b")
    denied(at.declare(declare(terms=Terms(Constraints(excluded=frozenset("b")))), 1, 0.0))
    answer = denied(at.replace(Replace("c", 2, declare().gangs), 1, 0.0))
    assert answer.rejected[0].reason == "the request excludes it"


def test_a_lease_known_by_confirmation_keeps_to_where_it_runs() -> None:
    at = desk("a", "b")
    where = {"providers": frozenset("a"), "regions": frozenset({""})}
    at.confirm(Confirm("c", 1, (("1", "a", 1),), **where), 1, 0.0)
    answer = granted(at.replace(Replace("c", 2, declare(agents=1).gangs), 1, 0.0))
    assert [g.share.endpoint_id for g in answer.gangs] == ["a"]
    assert [r.reason for r in answer.rejected] == ["its provider b is not allowed"]


def test_a_replacement_without_a_lease_is_refused() -> None:
    at = desk("a")
    assert denied(at.replace(Replace("c", 1, declare().gangs), 1, 0.0)).reason == "NOT_FOUND"


def test_a_newer_owner_takes_the_lease_and_the_old_one_cannot_end_it() -> None:
    at = desk("a")
    granted(at.declare(declare(owner_epoch=1), 1, 0.0))
    granted(at.declare(declare(owner_epoch=2, attempt=2), 2, 0.0))
    assert not at.release("c", 1)
    assert at.end(1) == ()
    late = denied(at.declare(declare(owner_epoch=1, attempt=3), 1, 0.0))
    assert late.reason == "NOT_OWNER"
    assert at.end(2) == ("c",)
    assert not at.release("c", 2)


def test_limits_are_refused_one_past_the_edge() -> None:
    at = desk("a", max_leases=1, max_agents=4)
    assert "limit of 4" in denied(at.declare(declare(agents=5), 1, 0.0)).message
    granted(at.declare(declare(agents=4), 1, 0.0))
    assert denied(at.declare(declare("d"), 1, 0.0)).reason == "REJECTED"
    at.confirm(Confirm("d", 1, (("1", "a", 1),)), 1, 0.0)
    assert set(at.leases.leases) == {"c"}


def test_a_lease_without_bookings_gives_way_at_the_limit() -> None:
    at = desk("a", max_leases=1)
    denied(at.declare(declare("empty", agents=17), 1, 0.0))
    granted(at.declare(declare("c"), 1, 0.0))
    assert set(at.leases.leases) == {"c"}


def test_an_endpoint_that_was_full_is_avoided_once() -> None:
    at = desk("a")
    granted(at.declare(declare(), 1, 0.0))
    again = Replace("c", 2, declare(agents=1).gangs, (("a", "REJECTED"),))
    assert denied(at.replace(again, 1, 0.0)).retryable
    granted(at.replace(replace(again, attempt=3, failures=()), 1, 0.0))


def test_an_unknown_policy_is_refused_and_a_known_one_is_used() -> None:
    at = desk("a")
    unknown = denied(at.declare(declare(terms=Terms(policy="x")), 1, 0.0))
    assert unknown.message == f"unknown policy; there is: {', '.join(sorted(POLICIES))}"
    assert granted(at.declare(declare(terms=Terms(policy="pack")), 1, 0.0)).policy == "pack"


def test_a_model_seen_before_may_come_back() -> None:
    at = desk("a")
    at.fleet.close(1, "a")
    at.fleet.describe(2, replace(what("b"), models=("other",)), 0.0)
    answer = denied(at.declare(declare(), 1, 0.0))
    assert (answer.reason, answer.retryable) == ("NO_ENDPOINT", True)
    assert answer.message == "no endpoint serves the model mini just now"


def test_news_concern_the_leases_on_the_endpoint() -> None:
    at = desk("a", "b")
    pin = Terms(Constraints(excluded=frozenset({"b"})))
    for name, holder in (("c1", 1), ("c2", 1), ("c3", 2)):
        granted(at.declare(declare(name, terms=pin), holder, 0.0))
    gone, back = EndpointChanged("a", Change.GONE), EndpointChanged("a", Change.BACK)
    assert [(n.holder, n.contemplation_ids) for n in at.news([gone])] == [
        (1, ("c1", "c2")),
        (2, ("c3",)),
    ]
    assert booked(at, "a") == (0, 0)
    assert at.release("c2", 1)
    assert [(n.holder, n.contemplation_ids) for n in at.news([back])] == [
        (1, ("c1",)),
        (2, ("c3",)),
    ]
    assert at.news([back, EndpointChanged("b", Change.GONE)]) == ()


def test_the_index_is_checked() -> None:
    at = desk("a")
    granted(at.declare(declare(), 1, 0.0))
    at.leases.leases["c"].bookings.clear()
    with pytest.raises(AssertionError, match="disagree"):
        at.leases.check()
