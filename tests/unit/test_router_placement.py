"""Placement by example: what is filtered, how gangs are split, and the reasons given."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.router.core.estimate import CostModel, Estimate
from cogitate.router.core.learning import Speed
from cogitate.router.core.placement import PlacementPolicy, place
from cogitate.router.core.policies import POLICIES
from cogitate.router.core.types import (
    Constraints,
    Description,
    EndpointSnapshot,
    GangNeed,
    Load,
    Placement,
    State,
)

pytestmark = pytest.mark.unit

NOW = 100.0


def endpoint(endpoint_id: str, **fields: object) -> EndpointSnapshot:
    """Returns an idle endpoint; `fields` go to its description, load or snapshot."""
    what = Description(
        endpoint_id,
        "127.0.0.1:1",
        provider=f"p-{endpoint_id}",
        models=("mini",),
        total_blocks=1000,
        block_size=16,
        max_sequences=64,
        max_model_len=2048,
    )
    load = Load(free_blocks=1000)
    snapshot = EndpointSnapshot(what, load=load)
    for name, value in fields.items():
        if name == "load" or (hasattr(snapshot, name) and name not in ("free_blocks", "sequences")):
            snapshot = replace(snapshot, **{name: value})
        elif hasattr(what, name):
            snapshot = replace(snapshot, description=replace(snapshot.description, **{name: value}))
        else:
            assert snapshot.load is not None
            snapshot = replace(snapshot, load=replace(snapshot.load, **{name: value}))
    return snapshot


def gang(agents: int = 8, **fields: object) -> GangNeed:
    """Returns a gang that needs nothing special."""
    need = GangNeed("c1", "mini", tuple(range(agents)), prefix_tokens=64, tokens_per_agent=128)
    return replace(need, **fields)  # type: ignore[arg-type]


def placed(
    need: GangNeed, *fleet: EndpointSnapshot, policy: str = "gang", **model: float
) -> Placement:
    return place(need, fleet, NOW, PlacementPolicy(policy, CostModel(**model)))  # type: ignore[arg-type]


def counts(placement: Placement) -> dict[str, int]:
    return {share.endpoint_id: len(share.agent_ids) for share in placement.shares}


def why_not(placement: Placement, endpoint_id: str) -> str:
    (reason,) = [r.reason for r in placement.rejected if r.endpoint_id == endpoint_id]
    return reason


@pytest.mark.parametrize(
    ("fields", "need", "reason", "temporary"),
    [
        ({"models": ("x",)}, {}, "it does not serve the model mini", False),
        ({}, {"capabilities": frozenset({"VISION", "SEED"})}, "it lacks SEED, VISION", False),
        (
            {},
            {"constraints": Constraints(providers=frozenset({"else"}))},
            "its provider p-a is not allowed",
            False,
        ),
        (
            {},
            {"constraints": Constraints(regions=frozenset({"eu"}))},
            "its region without a name is not allowed",
            False,
        ),
        (
            {"price_per_hour_micro_usd": 3_000_000},
            {"constraints": Constraints(max_price_per_hour_micro_usd=2_000_000)},
            "it costs 3 USD an hour, more than 2",
            False,
        ),
        (
            {"price_per_million_tokens_micro_usd": 10_000_000},
            {"max_cost_micro_usd": 1000},
            "one agent would cost 0.00128 USD, more than the budget 0.001",
            False,
        ),
        (
            {"price_per_million_prompt_tokens_micro_usd": 10_000_000},
            {"max_cost_micro_usd": 1000, "prefix_tokens": 1000},
            "one agent would cost 0.01 USD, more than the budget 0.001",
            False,
        ),
        (
            {},
            {"constraints": Constraints(excluded=frozenset({"a"}))},
            "the request excludes it",
            False,
        ),
        (
            {},
            {"prefix_tokens": 2048},
            "the prompt of 2048 tokens exceeds its window of 2048",
            False,
        ),
        ({}, {"failed": frozenset({"a"})}, "it failed this contemplation", True),
        ({"state": State.DRAINING}, {}, "it is draining", True),
        ({"state": State.STALE}, {}, "its reports stopped", True),
        ({"expires_at_s": NOW}, {}, "its reports stopped", True),
        (
            {"running": 64},
            {},
            "it is full: room for 0 sequences and 1000 KV blocks, one agent needs 8 blocks",
            True,
        ),
        (
            {"total_blocks": 7, "free_blocks": 7},
            {},
            "its 7 KV blocks cannot hold one agent, which needs 8",
            False,
        ),
    ],
)
def test_each_filter_gives_its_reason(
    fields: dict[str, object], need: dict[str, object], reason: str, temporary: bool
) -> None:
    for policy in POLICIES:
        alone = placed(gang(1, **need), endpoint("a", **fields), policy=policy)
        assert alone.shares == ()
        assert (alone.rejected[0].reason, alone.rejected[0].temporary) == (reason, temporary)
        assert alone.retryable is temporary


def test_a_gang_on_two_idle_endpoints_is_spread_when_that_is_faster() -> None:
    both = placed(gang(8), endpoint("a"), endpoint("b"))
    assert counts(both) == {"a": 4, "b": 4}
    assert "one endpoint alone would take" in both.shares[0].reason


def test_a_gang_is_packed_when_the_batch_costs_little() -> None:
    assert len(counts(placed(gang(8), endpoint("a"), endpoint("b"), batch_slope=0.01))) == 1


def test_a_long_prompt_alone_does_not_keep_a_gang_together() -> None:
    # Prefills of two endpoints run at the same time: only the penalty speaks for packing.
    need = gang(2, prefix_tokens=1500)
    assert len(counts(placed(need, endpoint("a"), endpoint("b"), spread_penalty=0.0))) == 2
    assert len(counts(placed(need, endpoint("a"), endpoint("b")))) == 1


def test_failure_domains_force_a_spread() -> None:
    need = gang(2, constraints=Constraints(min_failure_domains=2))
    assert counts(placed(need, endpoint("a"), endpoint("b"), batch_slope=0.0)) == {"a": 1, "b": 1}


def test_zones_of_the_same_name_at_two_providers_are_two_domains() -> None:
    need = gang(2, constraints=Constraints(min_failure_domains=2))
    fleet = (endpoint("a", failure_domain="z1"), endpoint("b", failure_domain="z1"))
    assert len(counts(placed(need, *fleet, batch_slope=0.0))) == 2
    same = tuple(replace(s, description=replace(s.description, provider="p")) for s in fleet)
    assert len(counts(placed(need, *same, batch_slope=0.0))) == 1


def test_a_loaded_endpoint_gets_fewer_agents_than_an_idle_one() -> None:
    split = counts(placed(gang(8), endpoint("a", running=8), endpoint("b")))
    assert split == {"b": 8} or split["a"] < split["b"]


def test_a_faster_endpoint_gets_more_agents() -> None:
    fast = endpoint("a", step_s=0.01, step_batch_size=1.0)
    slow = endpoint("b", step_s=0.02, step_batch_size=1.0)
    split = counts(placed(gang(16), fast, slow))
    assert split["a"] > split.get("b", 0)


def test_of_equals_the_cheaper_one_is_used() -> None:
    dear = endpoint("a", price_per_hour_micro_usd=20_000_000)
    cheap = endpoint("b", price_per_hour_micro_usd=1_000_000)
    assert counts(placed(gang(1), dear, cheap)) == {"b": 1}
    assert placed(gang(1), dear, cheap).shares[0].predicted_cost_micro_usd > 0


def test_of_equals_the_hash_decides_differently_for_each_contemplation() -> None:
    fleet = [endpoint(name) for name in "abcd"]
    used = {
        next(iter(counts(placed(gang(1, contemplation_id=f"c{n}"), *fleet)))) for n in range(30)
    }
    assert used == set("abcd")


def test_an_unknown_load_is_used_when_nothing_else_has_room() -> None:
    unknown = endpoint("a", load=None, unknown_because="it reported a negative count")
    placement = placed(gang(4), unknown)
    assert counts(placement) == {"a": 4}
    assert "its load is unknown (it reported a negative count)" in placement.shares[0].reason
    assert counts(placed(gang(4), unknown, endpoint("b", running=62))) == {"a": 2, "b": 2}
    assert why_not(placed(gang(4), unknown, endpoint("b")), "a").startswith("its load is unknown")


def test_an_unneeded_endpoint_says_so() -> None:
    placement = placed(gang(1), endpoint("a"), endpoint("b", running=30))
    assert why_not(placement, "b").startswith("others suit the gang better")


def test_denials_say_what_would_help() -> None:
    nobody = placed(gang())
    assert (nobody.denial_reason, nobody.retryable) == ("NO_ENDPOINT", True)
    model = placed(gang(model="x"), endpoint("a"), endpoint("b", models=("y", "mini")))
    assert (model.denial_reason, model.retryable) == ("UNKNOWN_MODEL", False)
    assert model.denial == "no endpoint serves the model x; there is: mini, y"
    needs = frozenset({"KILL", "CONSTRAINT"})
    able = {"capabilities": frozenset({"KILL"})}
    lacking = placed(gang(capabilities=needs), endpoint("a", **able), endpoint("b", models=("y",)))
    assert (lacking.denial_reason, lacking.retryable) == ("NO_ENDPOINT", False)
    assert lacking.denial == "no endpoint with the model mini has CONSTRAINT"
    now_full = placed(gang(8), endpoint("a", running=60))
    assert now_full.denial == "there is room for 4 of 8 agents on 1 of 1 endpoints"
    assert now_full.retryable
    never = placed(gang(80), endpoint("a", running=60))
    assert never.denial.endswith(", and for 64 if all of them were idle")
    assert not never.retryable
    assert placed(gang(80), endpoint("a"), endpoint("b", state=State.DRAINING)).retryable


def test_an_adapter_without_kv_memory_is_bounded_by_its_sequences() -> None:
    adapter = endpoint("a", total_blocks=0, block_size=0, free_blocks=0, max_sequences=8)
    assert counts(placed(gang(8), adapter)) == {"a": 8}
    assert placed(gang(9), adapter).shares == ()


def test_booked_blocks_are_kept_free_for_growth() -> None:
    # 8 agents need 4 + 8 * 4 blocks.
    assert placed(gang(8), endpoint("a", booked_blocks=964)).shares
    assert not placed(gang(8), endpoint("a", booked_blocks=965)).shares
    assert not placed(gang(8), endpoint("a", pending_blocks=965)).shares
    assert not placed(gang(8), endpoint("a", load=None, booked_blocks=965)).shares


def test_round_robin_deals_evenly() -> None:
    fleet = [endpoint(name) for name in "abc"]
    assert sorted(counts(placed(gang(7), *fleet, policy="round_robin")).values()) == [2, 2, 3]
    tight = [endpoint("a", max_sequences=1), endpoint("b")]
    assert counts(placed(gang(7), *tight, policy="round_robin")) == {"a": 1, "b": 6}


def test_least_load_levels_the_shares_of_places_taken() -> None:
    fleet = [endpoint("a", max_sequences=32), endpoint("b", max_sequences=96)]
    assert counts(placed(gang(8), *fleet, policy="least_load")) == {"a": 2, "b": 6}


def test_pack_uses_the_fewest_endpoints() -> None:
    fleet = [endpoint("a", max_sequences=6), endpoint("b", max_sequences=7), endpoint("c")]
    assert counts(placed(gang(8), *fleet, policy="pack")) == {"c": 8}
    assert counts(placed(gang(8), *fleet[:2], policy="pack")) == {"a": 1, "b": 7}
    need = gang(8, constraints=Constraints(min_failure_domains=2))
    split = counts(placed(need, *fleet, policy="pack"))
    assert sorted(split.values()) == [1, 7]


def test_the_step_model_is_fitted_to_the_report() -> None:
    need, model = gang(1), CostModel(batch_slope=0.1)
    reported = Estimate(endpoint("a", step_s=0.03, step_batch_size=5.0), need, model)
    assert reported.step_s(5) == pytest.approx(0.03)
    assert Estimate(endpoint("a"), need, model).step_s(1) == pytest.approx(model.prior_step_s)
    assert Estimate(endpoint("a", prefill_tokens_per_s=32.0), need, model).prefill_s == 2.0
    assert Estimate(endpoint("a"), gang(1, tokens_per_agent=0), model).steps == 256
    assert Estimate(endpoint("a"), gang(1, tokens_per_agent=10**6), model).steps == 2048 - 64
    assert Estimate(endpoint("a", max_model_len=0), gang(1), model).steps == 128


def test_a_policy_that_loses_agents_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "gang", lambda *_: {"a": 1})
    with pytest.raises(AssertionError, match="broke its promise"):
        placed(gang(2), endpoint("a"))


def test_an_endpoint_that_has_the_prompt_is_preferred_where_that_saves_time() -> None:
    need = gang(1, prefix_tokens=1000)
    others = [endpoint(name, prefill_tokens_per_s=2000.0) for name in ("a", "b", "c")]
    for there in others:
        [share] = placed(replace(need, prefilled_at=there.endpoint_id), *others).shares
        assert share.endpoint_id == there.endpoint_id
        assert "most of its prompt is computed there already" in share.reason
        assert share.predicted_s == pytest.approx(placed(need, there).makespan_s - 0.5)
    busy = endpoint("b", running=30, prefill_tokens_per_s=2000.0)
    [elsewhere] = placed(replace(need, prefilled_at="b"), busy, endpoint("a")).shares
    assert elsewhere.endpoint_id == "a"
    assert placed(replace(need, prefilled_at="gone"), *others) == placed(need, *others)


def test_agents_that_write_less_leave_the_longest_a_smaller_batch() -> None:
    what = Description("e", "host:1", models=("mini",), max_sequences=64)
    there = EndpointSnapshot(what, load=Load(running=10), speed=Speed(0.01, 0.001))
    need = gang(8, prefix_tokens=0, tokens_per_agent=100, mean_tokens=50)
    one = Estimate(there, need, CostModel())
    # A step of 10 others and 8 agents takes 28 ms; with the seven there half of the time, 24.5.
    assert one.duration_s(8) == pytest.approx(2.8)
    assert one.expected_s(8) == pytest.approx(2.45)
    assert one.expected_s(1) == pytest.approx(one.duration_s(1))
    assert placed(need, there).makespan_s == pytest.approx(2.45)
    alike = Estimate(there, replace(need, mean_tokens=0), CostModel())
    assert alike.expected_s(8) == pytest.approx(alike.duration_s(8))
