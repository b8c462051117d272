"""Soft state by example: streams, silence, drains and absurd numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.router.core.fleet import EndpointChanged, Fleet, absurdity
from cogitate.router.core.learning import Work
from cogitate.router.core.types import Change, Description, Load, State

pytestmark = pytest.mark.unit

WHAT = Description("a", "127.0.0.1:1", models=("mini",), total_blocks=10, max_sequences=4)
GONE = EndpointChanged("a", Change.GONE)
BACK = EndpointChanged("a", Change.BACK)
EXPIRED = EndpointChanged("a", Change.EXPIRED)
DRAINING = EndpointChanged("a", Change.DRAINING)


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet(expiry_s=3.0)
    fleet.describe(1, WHAT, 0.0)
    return fleet


def state(fleet: Fleet, now: float) -> State:
    return fleet.state(fleet.entries["a"], now)


def test_silence_is_news_once_and_any_message_ends_it(fleet: Fleet) -> None:
    assert fleet.expire(2.9) == ()
    assert state(fleet, 3.0) is State.STALE
    assert fleet.expire(3.0) == (EXPIRED,)
    assert fleet.expire(4.0) == ()
    assert fleet.report(1, "a", Load(), 5.0) == (BACK,)
    assert state(fleet, 5.0) is State.READY
    assert fleet.expire(8.0) == (EXPIRED,)
    assert fleet.describe(1, WHAT, 9.0) == (BACK,)


def test_a_closed_stream_is_gone_at_once(fleet: Fleet) -> None:
    assert fleet.close(1, "a") == (GONE,)
    assert fleet.close(1, "a") == ()
    assert fleet.entries == {}
    assert fleet.describe(2, WHAT, 1.0) == (BACK,)


def test_the_latest_stream_owns_the_endpoint(fleet: Fleet) -> None:
    first = fleet.entries["a"].incarnation
    assert fleet.describe(2, WHAT, 1.0) == (GONE, BACK)
    assert fleet.entries["a"].incarnation > first
    assert fleet.report(1, "a", Load(running=3), 1.5) == ()
    assert fleet.drain(1, "a", None, 1.5) == ()
    assert fleet.close(1, "a") == ()
    assert fleet.entries["a"].load is None
    assert state(fleet, 1.5) is State.READY


def test_a_second_stream_of_one_process_is_no_restart(fleet: Fleet) -> None:
    said = replace(WHAT, process_id="p1")
    assert fleet.describe(2, said, 1.0) == (GONE, BACK), "who said nothing may be another process"
    before = fleet.entries["a"].incarnation
    assert fleet.describe(3, said, 2.0) == ()
    assert fleet.entries["a"].incarnation == before
    assert fleet.close(2, "a") == (), "the later stream has it"
    assert fleet.close(3, "a") == (GONE,)
    fleet.describe(4, said, 3.0)
    assert fleet.describe(5, replace(said, process_id="p2"), 4.0) == (GONE, BACK)


def test_a_notice_holds_for_good_and_a_flag_while_it_is_set(fleet: Fleet) -> None:
    assert fleet.report(1, "a", Load(draining=True), 1.0) == (DRAINING,)
    assert fleet.report(1, "a", Load(draining=True), 1.1) == ()
    assert state(fleet, 1.1) is State.DRAINING
    assert fleet.report(1, "a", Load(), 1.2) == (BACK,)
    assert fleet.drain(1, "a", 9.0, 1.3) == (replace(DRAINING, remaining_s=9.0),)
    assert fleet.drain(1, "a", 9.0, 1.4) == ()
    assert fleet.drain(1, "a", None, 1.4) == ()
    assert fleet.drain(1, "a", 2.0, 1.5) == (replace(DRAINING, remaining_s=2.0),)
    assert fleet.report(1, "a", Load(), 1.6) == ()
    assert state(fleet, 1.6) is State.DRAINING


def test_an_absurd_load_is_unknown_but_proves_life(fleet: Fleet) -> None:
    fleet.report(1, "a", Load(running=1), 1.0)
    fleet.report(1, "a", Load(running=-1), 3.5)
    entry = fleet.entries["a"]
    assert (entry.load, entry.load_at_s) == (None, None)
    assert entry.unknown_because == "it reported a negative count"
    assert state(fleet, 4.5) is State.READY


@pytest.mark.parametrize(
    "load",
    [
        Load(running=-1),
        Load(waiting=-1),
        Load(paused=-1),
        Load(free_blocks=-1),
        Load(sampled_tokens=-1),
        Load(prefill_tokens_per_s=float("nan")),
        Load(prefill_tokens_per_s=float("inf")),
        Load(prefill_tokens_per_s=2e9),
        Load(step_s=-0.1),
        Load(step_s=4000.0),
        Load(step_batch_size=float("-inf")),
        Load(step_batch_size=5.0),
        Load(free_blocks=11),
    ],
)
def test_absurd_loads_are_recognised(load: Load) -> None:
    assert absurdity(load, WHAT)


def test_the_limits_of_sense_are_inclusive() -> None:
    edge = Load(free_blocks=10, prefill_tokens_per_s=1e9, step_s=3600.0, step_batch_size=4.0)
    assert absurdity(edge, WHAT) == ""


def test_room_for_endpoints_is_bounded(fleet: Fleet) -> None:
    fleet.max_endpoints = 1
    assert fleet.can_describe("a")
    assert not fleet.can_describe("b")


def test_speed_is_learned_from_what_reports_add_and_outlives_a_reconnection(fleet: Fleet) -> None:
    assert fleet.entries["a"].learner is None
    for n in range(1, 30):
        work = Work(10 * n, 0.5 * n, 40 * n, 4000 * n, 1000 * n, 0.25 * n)
        fleet.report(1, "a", Load(work=work), float(n))
    learner = fleet.entries["a"].learner
    assert learner is not None
    assert learner.speed.step_s(4, 400) == pytest.approx(0.05, rel=0.02)
    assert learner.speed.per_prompt_position_s == pytest.approx(0.00025)
    fleet.describe(2, WHAT, 30.0)
    assert fleet.entries["a"].learner is learner
    fleet.report(2, "a", Load(work=Work(1, 0.05, 4, 400)), 31.0)  # another process: from zero
    assert learner.observations == 30
    fleet.describe(3, replace(WHAT, hardware="other"), 32.0)
    assert fleet.entries["a"].learner is None


def test_nothing_is_learned_from_an_absurd_load(fleet: Fleet) -> None:
    fleet.report(1, "a", Load(work=Work(steps=-1)), 1.0)
    fleet.report(1, "a", Load(work=Work(10, 0.5, 40, 4000), running=-1), 2.0)
    assert fleet.entries["a"].learner is None
