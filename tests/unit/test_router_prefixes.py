"""Prefixes that endpoints were given, and what else declarations say of places, wire to desk."""

from __future__ import annotations

import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.router import wire
from cogitate.router.core.desk import Desk
from cogitate.router.core.fleet import Fleet
from cogitate.router.core.leases import Leases
from cogitate.router.core.types import Confirm, Description, Granted, Load
from cogitate.v1 import router_service_pb2 as router_pb2

pytestmark = pytest.mark.unit


def desk(*names: str, **fields: object) -> Desk:
    made = Desk(Fleet(30.0), Leases(2.0), **fields)  # type: ignore[arg-type]
    for number, name in enumerate(names):
        join(made, name, number)
    return made


def join(at: Desk, name: str, stream: int) -> None:
    what = Description(
        name, "h:1", f"p-{name}", f"r-{name}", models=("mini",), max_sequences=16
    )  # fmt: skip
    at.fleet.describe(stream, what, 0.0)
    at.fleet.report(stream, name, Load(prefill_tokens_per_s=1000.0), 0.0)


def message(name: str, digest: str = "", survivors: int = 0, agents: int = 1):
    return router_pb2.DeclareGangs(
        contemplation_id=name,
        attempt=1,
        gangs=[
            router_pb2.GangSpec(
                model="mini", agent_ids=range(agents), prefix_digest=digest,
                prefix_token_count=2000, tokens_per_agent=10,
            )
        ],
        constraints=router_pb2.PlacementConstraints(min_surviving_agent_count=survivors),
    )  # fmt: skip


def granted(at: Desk, asked: router_pb2.DeclareGangs, now: float = 0.5) -> Granted:
    answer = at.declare(wire.declare(asked), 1, now)
    assert isinstance(answer, Granted)
    return answer


def where(answer: Granted) -> dict[str, int]:
    return {g.share.endpoint_id: len(g.share.agent_ids) for g in answer.gangs}


def test_a_prefix_goes_where_it_was_given_before() -> None:
    at = desk(*"abcdef")
    (first,) = where(granted(at, message("c0", "digest")))
    for number in range(1, 6):
        answer = granted(at, message(f"c{number}", "digest"), 2.5 + number)
        assert set(where(answer)) == {first}
        assert "most of its prompt is computed there already" in answer.gangs[0].share.reason
    assert len({next(iter(where(granted(at, message(f"d{n}"))))) for n in range(5)}) > 1


def test_a_prompt_waits_for_those_that_were_placed_before_it() -> None:
    at = desk("a")
    reasons = [
        granted(at, message(f"c{number}"), now).gangs[0].share.reason
        for number, now in enumerate((0.5, 0.5, 3.5))
    ]
    assert "behind" not in reasons[0]
    assert "2.00 s of it behind other gangs' prompts" in reasons[1]
    assert "1.00 s of it behind other gangs' prompts" in reasons[2]
    for number in range(3):
        at.confirm(Confirm(f"c{number}", 1, ((f"1.{number + 1}", "a", 1),)), 1, 3.5)
    # It says that nobody waits there, whatever was expected.
    at.fleet.report(0, "a", Load(running=3, prefill_tokens_per_s=1000.0), 6.0)
    assert "behind" not in granted(at, message("c3"), 6.0).gangs[0].share.reason


def test_a_process_that_came_back_has_nothing_computed() -> None:
    at = desk("a")
    granted(at, message("c0", "digest"))
    assert "computed there" in granted(at, message("c1", "digest")).gangs[0].share.reason
    join(at, "a", 7)
    assert "computed there" not in granted(at, message("c2", "digest")).gangs[0].share.reason


def test_a_provider_gets_no_more_than_may_be_lost() -> None:
    at = desk("a", "b", "c")
    assert max(where(granted(at, message("c0", survivors=6, agents=8))).values()) <= 8 - 6 + 1
    assert max(where(granted(at, message("c1", survivors=5, agents=8))).values()) <= 3
    assert sum(where(granted(at, message("c2", survivors=8, agents=8))).values()) == 8
    assert where(granted(desk("a"), message("c3", survivors=8, agents=8))) == {"a": 8}


def test_a_nearer_endpoint_is_preferred_and_the_distance_is_told() -> None:
    answers = [granted(desk("a", "b", region="r-b"), message(f"c{n}")) for n in range(6)]
    assert [where(answer) for answer in answers] == [{"b": 1}] * 6
    anywhere = [granted(desk("a", "b"), message(f"c{n}")) for n in range(12)]
    assert {next(iter(where(answer))) for answer in anywhere} == {"a", "b"}
    alone = granted(desk("a", region="r-b"), message("c"))
    assert "0.10 s of it to another region and back" in alone.gangs[0].share.reason


def test_limits_of_what_is_declared() -> None:
    assert wire.declare(message("c", "d" * 256)).gangs[0].prefix_digest == "d" * 256
    with pytest.raises(InvalidRequest, match="prefix_digest is too long"):
        wire.declare(message("c", "d" * 257))
    with pytest.raises(InvalidRequest, match="min_surviving_agent_count is negative"):
        wire.declare(message("c", survivors=-1))


def test_endpoints_to_avoid_and_to_try_are_named_by_the_question() -> None:
    at = desk("a", "b")
    asked = message("c", agents=4)
    asked.avoided_endpoint_ids.append("a")
    answer = granted(at, asked)
    assert where(answer) == {"b": 4}
    assert [r.reason for r in answer.rejected] == [
        "it failed or was too slow for whoever asks, just now"
    ]
    again = router_pb2.ReplaceAgents(
        contemplation_id="c", attempt=2, gangs=asked.gangs, probed_endpoint_ids=["a"]
    )
    moved = at.replace(wire.replace(again), 1, 0.0)
    assert isinstance(moved, Granted)
    assert where(moved).get("a", 0) <= 1
    again.attempt = 3
    again.avoided_endpoint_ids.extend(["a", "b"])
    last = at.replace(wire.replace(again), 1, 0.0)
    assert isinstance(last, Granted), "never the last ones"


def test_an_endpoint_that_stalled_is_another_chance_for_the_next_question() -> None:
    at = desk("a", "b")
    granted(at, message("c", agents=2))
    for attempt, failures in ((2, [("a", "STALLED")]), (3, [("b", "STALLED")])):
        replace = router_pb2.ReplaceAgents(
            contemplation_id="c", attempt=attempt, gangs=message("c", agents=2).gangs
        )
        for endpoint_id, reason in failures:
            replace.failures.add(endpoint_id=endpoint_id, reason=reason)
        moved = at.replace(wire.replace(replace), 1, 0.0)
        assert isinstance(moved, Granted)
        assert failures[0][0] not in where(moved)


@pytest.mark.parametrize("field", ["avoided_endpoint_ids", "probed_endpoint_ids"])
def test_at_most_256_are_named(field: str) -> None:
    asked = message("c")
    getattr(asked, field).extend(f"e{n}" for n in range(256))
    assert wire.declare(asked)
    getattr(asked, field).append("e")
    with pytest.raises(InvalidRequest, match=f"{field} are too many"):
        wire.declare(asked)
