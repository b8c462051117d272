"""Placement under every small fleet: invariants, and agreement with brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from cogitate.router.core import solve
from cogitate.router.core.board import Board
from cogitate.router.core.estimate import CostModel, Estimate
from cogitate.router.core.learning import Speed
from cogitate.router.core.placement import PlacementPolicy, place
from cogitate.router.core.policies import POLICIES
from cogitate.router.core.scores import Scores
from cogitate.router.core.types import (
    Constraints,
    Description,
    EndpointSnapshot,
    GangNeed,
    Load,
    Placement,
    State,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.exhaustive_placement import exhaustive_gang, least_within, reject

pytestmark = pytest.mark.property

NOW = 10.0
NAMES = "abcdef"


@st.composite
def loads(draw: st.DrawFn, total_blocks: int) -> Load:
    return Load(
        running=draw(st.integers(0, 6)),
        waiting=draw(st.integers(0, 2)),
        free_blocks=draw(st.integers(0, total_blocks)),
        prefill_tokens_per_s=draw(st.sampled_from([0.0, 100.0, 5000.0])),
        step_s=draw(st.sampled_from([0.0, 0.005, 0.02, 0.3])),
        step_batch_size=draw(st.sampled_from([0.0, 1.0, 4.0])),
    )


@st.composite
def endpoints(draw: st.DrawFn, endpoint_id: str, sane: bool = False) -> EndpointSnapshot:
    total_blocks = draw(st.sampled_from([0, 40, 400]))
    what = Description(
        endpoint_id,
        "127.0.0.1:1",
        provider=draw(st.sampled_from(["p", "q"])),
        failure_domain=draw(st.sampled_from(["", "z"])),
        region=draw(st.sampled_from(["r", "s"])),
        models=("mini",) if sane else draw(st.sampled_from([("mini",), ("mini",), ("x",)])),
        capabilities=frozenset({"VISION"} if sane else draw(st.sampled_from([set(), {"VISION"}]))),
        price_per_hour_micro_usd=draw(st.sampled_from([0, 1_000_000, 40_000_000])),
        is_spot=draw(st.booleans()),
        price_per_million_tokens_micro_usd=draw(st.sampled_from([0, 5_000_000])),
        price_per_million_prompt_tokens_micro_usd=draw(st.sampled_from([0, 0, 2_000_000])),
        total_blocks=total_blocks,
        block_size=16 if total_blocks else 0,
        max_sequences=draw(st.integers(1, 12)),
        max_model_len=draw(st.sampled_from([0, 300, 4096])),
    )
    known = sane or draw(st.integers(0, 3)) > 0
    return EndpointSnapshot(
        what,
        state=State.READY if sane else draw(st.sampled_from([State.READY, *State])),
        load=draw(loads(total_blocks)) if known else None,
        expires_at_s=NOW + 1 if sane else draw(st.sampled_from([NOW - 1, NOW + 1, NOW + 1])),
        booked_agents=draw(st.integers(0, 3)),
        booked_blocks=draw(st.integers(0, 30)),
        pending_agents=draw(st.integers(0, 2)),
        prompts_until_s=draw(st.sampled_from([0.0, NOW - 1, NOW + 0.5, NOW + 20])),
    )


def fleets(sane: bool = False, most: int = 6) -> st.SearchStrategy[list[EndpointSnapshot]]:
    return st.integers(0, most).flatmap(
        lambda n: st.tuples(*(endpoints(name, sane) for name in NAMES[:n])).map(list)
    )


@st.composite
def gangs(draw: st.DrawFn, sane: bool = False) -> GangNeed:
    agents = draw(st.integers(1, 8))
    first = draw(st.integers(0, 50))
    return GangNeed(
        draw(st.sampled_from(["c1", "c2", "c3"])),
        "mini",
        tuple(range(first, first + agents)),
        region=draw(st.sampled_from(["", "r"])),
        capabilities=frozenset(set() if sane else draw(st.sampled_from([set(), {"VISION"}]))),
        prefix_tokens=draw(st.sampled_from([0, 40, 400])) if not sane else 40,
        tokens_per_agent=draw(st.sampled_from([0, 20, 200])),
        prefilled_at=draw(st.sampled_from(["", *NAMES[:2]])),
        asked_at_s=draw(st.sampled_from([NOW, float("inf")])),
        constraints=Constraints(
            providers=frozenset()
            if sane
            else draw(st.sampled_from([frozenset(), frozenset({"p"})])),
            min_failure_domains=draw(st.integers(0, 4)),
            min_survivors=0 if sane else draw(st.sampled_from([0, 0, 1, 3, 9])),
        ),
    )


policies = st.sampled_from(sorted(POLICIES)).map(PlacementPolicy)


def spread(placement: Placement) -> dict[str, int]:
    return {share.endpoint_id: len(share.agent_ids) for share in placement.shares}


@given(gangs(), fleets(), policies)
def test_filtered_endpoints_are_never_used(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy
) -> None:
    placement = place(need, fleet, NOW, policy)
    for snapshot in fleet:
        estimate = Estimate(snapshot, need, policy.model)
        taken = spread(placement).get(snapshot.endpoint_id, 0)
        if taken:
            assert reject(need, snapshot, NOW, policy.model) is None
            assert taken <= estimate.room()
        else:
            reasons = {r.endpoint_id: r.reason for r in placement.rejected}
            assert placement.shares == () or reasons[snapshot.endpoint_id]


@given(gangs(), fleets(), policies)
def test_every_agent_is_placed_exactly_once(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy
) -> None:
    placement = place(need, fleet, NOW, policy)
    placed = [agent for share in placement.shares for agent in share.agent_ids]
    assert sorted(placed) == (sorted(need.agent_ids) if placement.shares else [])
    assert bool(placement.shares) != bool(placement.denial)
    used = set(spread(placement))
    assert len(used) == len(placement.shares)
    assert not used & {r.endpoint_id for r in placement.rejected}


@given(gangs(), fleets(), policies, st.randoms())
def test_order_of_the_fleet_does_not_matter(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy, rng: random.Random
) -> None:
    shuffled = list(fleet)
    rng.shuffle(shuffled)
    assert place(need, shuffled, NOW, policy) == place(need, fleet, NOW, policy)


@given(gangs(), fleets(), policies)
def test_unknown_load_never_beats_a_known_one(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy
) -> None:
    split = spread(place(need, fleet, NOW, policy))
    known = [s for s in fleet if s.load is not None]
    if any(s.load is None and s.endpoint_id in split for s in fleet):
        for snapshot in known:
            if reject(need, snapshot, NOW, policy.model) is None:
                room = Estimate(snapshot, need, policy.model).room()
                assert split.get(snapshot.endpoint_id, 0) == min(room, len(need.agent_ids))


@given(gangs(), fleets(), policies)
def test_no_provider_has_more_than_may_be_lost(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy
) -> None:
    known = [s for s in fleet if s.load is not None]
    split = spread(place(need, known, NOW, policy))
    count, wanted = len(need.agent_ids), need.constraints.min_survivors
    if not split or not wanted:
        return
    rooms: dict[str, int] = {}
    held: dict[str, int] = {}
    for one in known:
        provider = one.description.provider
        held[provider] = held.get(provider, 0) + split.get(one.endpoint_id, 0)
        if reject(need, one, NOW, policy.model) is None:
            room = min(count, Estimate(one, need, policy.model).room())
            rooms[provider] = rooms.get(provider, 0) + room
    limit = max(1, count - wanted)
    while sum(min(limit, room) for room in rooms.values()) < count:
        limit += 1  # it cannot be: the least that can
    assert max(held.values()) <= limit


@given(gangs(), fleets(), policies)
def test_failure_domains_are_spread_over(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy
) -> None:
    known = [s for s in fleet if s.load is not None]
    split = spread(place(need, known, NOW, policy))
    if not split:
        return
    domains = {s.endpoint_id: s.description.domain for s in known}
    possible = {
        domains[s.endpoint_id]
        for s in known
        if reject(need, s, NOW, policy.model) is None and Estimate(s, need, policy.model).room()
    }
    wanted = min(need.constraints.min_failure_domains, len(possible), len(need.agent_ids))
    if need.constraints.min_survivors:
        return  # then a provider's domains count only as far as it may have agents
    assert len({domains[e] for e in split}) >= wanted


def brute_force(
    need: GangNeed, fleet: Sequence[EndpointSnapshot], model: CostModel
) -> float | None:
    """Returns the least objective over all ways to split the gang, or None if there is no way."""
    count = len(need.agent_ids)
    estimates = [Estimate(s, need, model) for s in fleet]
    open_ = [e for e in estimates if e.room()]
    domains = len({e.snapshot.description.domain for e in open_})
    wanted = min(need.constraints.min_failure_domains, domains, count)
    best: float | None = None
    per_provider = max(1, count - need.constraints.min_survivors)
    rooms: dict[str, int] = {}
    for e in open_:
        name = e.snapshot.description.provider
        rooms[name] = rooms.get(name, 0) + min(count, e.room())
    while rooms and per_provider < count and count > sum(
        min(per_provider, room) for room in rooms.values()
    ):  # fmt: skip
        per_provider += 1
    for ks in itertools.product(*(range(min(count, e.room()) + 1) for e in open_)):
        used = [(e, k) for e, k in zip(open_, ks, strict=True) if k]
        spread_over = {e.snapshot.description.domain for e, _ in used}
        if sum(ks) != count or len(spread_over) < wanted:
            continue
        held: dict[str, int] = {}
        for e, k in used:
            name = e.snapshot.description.provider
            held[name] = held.get(name, 0) + k
        if need.constraints.min_survivors and max(held.values()) > per_provider:
            continue
        value = objective(used, model)
        best = value if best is None else min(best, value)
    return best


def objective(used: Sequence[tuple[Estimate, int]], model: CostModel) -> float:
    slowest = max(e.effective_s(k) for e, k in used)
    return slowest * (1 + model.spread_penalty * (len(used) - 1))


@settings(max_examples=150)
@given(gangs(sane=True), fleets(sane=True, most=4), st.sampled_from([0.0, 0.1, 0.5]))
def test_gang_policy_agrees_with_brute_force(
    need: GangNeed, fleet: list[EndpointSnapshot], spread_penalty: float
) -> None:
    model = CostModel(spread_penalty=spread_penalty)
    placement = place(need, fleet, NOW, PlacementPolicy("gang", model))
    best = brute_force(need, fleet, model)
    assert bool(placement.shares) == (best is not None)
    if best is not None:
        split = spread(placement)
        used = [(Estimate(s, need, model), split.get(s.endpoint_id, 0)) for s in fleet]
        value = objective([(e, k) for e, k in used if k], model)
        assert value == pytest.approx(best)
        makespan = max(e.duration_s(k) for e, k in used if k)
        assert placement.makespan_s == pytest.approx(makespan)


@settings(max_examples=100, deadline=None)
@given(gangs(sane=True), fleets(sane=True, most=4), st.integers(1, 7))
def test_gang_with_survivors_agrees_with_brute_force(
    need: GangNeed, fleet: list[EndpointSnapshot], survivors: int
) -> None:
    need = replace(need, constraints=Constraints(min_survivors=survivors))
    split = spread(place(need, fleet, NOW, PlacementPolicy()))
    best = brute_force(need, fleet, CostModel())
    assert bool(split) == (best is not None)
    if best is not None:
        used = [(Estimate(s, need, CostModel()), split.get(s.endpoint_id, 0)) for s in fleet]
        assert objective([(e, k) for e, k in used if k], CostModel()) == pytest.approx(best)


# How many endpoints are looked at one by one: with few, a small fleet is treated as a large one.
smalls = st.sampled_from([4, 128])


def many(seed: int, count: int) -> list[EndpointSnapshot]:
    """More unlike endpoints than Hypothesis would draw: few are promising."""
    draw = random.Random(seed)
    fleet = []
    for i in range(count):
        what = Description(
            f"e{i}", "host:1", f"p{draw.randrange(5)}", draw.choice("rs"), draw.choice("xyz"),
            models=("mini",), max_sequences=draw.choice([4, 16, 64]), total_blocks=400,
            price_per_hour_micro_usd=draw.randrange(8) * 500_000, block_size=16,
            is_spot=draw.random() < 0.3,
        )  # fmt: skip
        base, slope = draw.choice([0.01, 0.02, 0.05]), draw.choice([0.0001, 0.001, 0.004])
        speed = Speed(base, slope, draw.choice([0.0, 1e-7]), draw.choice([1e-4, 1e-3]))
        running = draw.randrange(8) if draw.random() < 0.5 else 0
        fleet.append(EndpointSnapshot(what, load=Load(running, free_blocks=390), speed=speed))
    return fleet


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(30, 80), st.integers(1, 16), st.integers(0, 4),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]), smalls,
)  # fmt: skip
def test_gang_agrees_with_the_exhaustive_one(
    seed: int, count: int, agents: int, domains: int, penalty: float, small: int
) -> None:
    fleet, model = many(seed, count), CostModel(spread_penalty=penalty)
    need = GangNeed(
        "c1", "mini", tuple(range(agents)), prefix_tokens=300, tokens_per_agent=200, region="r",
        constraints=Constraints(min_failure_domains=domains),
    )  # fmt: skip
    values = []
    with patch.object(solve, "_SMALL", small):
        found = spread(place(need, fleet, NOW, PlacementPolicy("gang", model)))
    for split in (found, exhaustive_gang(need, fleet, NOW, model)):
        used = [(Estimate(s, need, model), split.get(s.endpoint_id, 0)) for s in fleet]
        values.append(objective([(e, k) for e, k in used if k], model))
    assert values[0] == pytest.approx(values[1])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(20, 60), st.integers(2, 16), st.integers(1, 15),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]), smalls,
)  # fmt: skip
def test_gang_with_survivors_agrees_with_all_values_tried(
    seed: int, count: int, agents: int, survivors: int, penalty: float, small: int
) -> None:
    fleet, model = many(seed, count), CostModel(spread_penalty=penalty)
    limit = max(1, agents - survivors)
    need = GangNeed(
        "c1", "mini", tuple(range(agents)), prefix_tokens=300, tokens_per_agent=200, region="r",
        constraints=Constraints(min_survivors=survivors),
    )  # fmt: skip
    with patch.object(solve, "_SMALL", small):
        split = spread(place(need, fleet, NOW, PlacementPolicy("gang", model)))
    used = [(Estimate(s, need, model), split.get(s.endpoint_id, 0)) for s in fleet]
    value = objective([(e, k) for e, k in used if k], model)
    while (best := least_within(need, fleet, limit, model)) == float("inf"):
        limit += 1  # there are fewer providers than it would take
    assert value == pytest.approx(best)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(4, 60), st.integers(1, 3), st.integers(2, 16),
    st.integers(1, 15), st.integers(2, 6), st.sampled_from([0.0, 0.1, 0.5]), smalls,
)  # fmt: skip
def test_domains_and_survivors_at_once_are_kept(
    seed: int, count: int, providers: int, agents: int, survivors: int, wanted: int,
    penalty: float, small: int,
) -> None:  # fmt: skip
    fleet, model = many(seed, count), CostModel(spread_penalty=penalty)
    named = [f"p{i % providers}" for i in range(count)]
    fleet = [
        replace(s, description=replace(s.description, provider=name))
        for s, name in zip(fleet, named, strict=True)
    ]
    need = GangNeed(
        "c1", "mini", tuple(range(agents)), prefix_tokens=300, tokens_per_agent=200,
        constraints=Constraints(min_survivors=survivors, min_failure_domains=wanted),
    )  # fmt: skip
    rooms = {s.endpoint_id: min(agents, Estimate(s, need, model).room()) for s in fleet}
    if sum(rooms.values()) < agents:
        return
    with patch.object(solve, "_SMALL", small):
        split = spread(place(need, fleet, NOW, PlacementPolicy("gang", model)))
    room: dict[str, int] = {}
    held: dict[str, int] = {}
    zones: dict[str, set[str]] = {}
    for s in fleet:
        name, zone = s.description.provider, s.description.failure_domain
        room[name] = room.get(name, 0) + rooms[s.endpoint_id]
        held[name] = held.get(name, 0) + split.get(s.endpoint_id, 0)
        if rooms[s.endpoint_id]:
            zones.setdefault(name, set()).add(zone)
    limit = max(1, agents - survivors)
    while sum(min(limit, each) for each in room.values()) < agents:
        limit += 1
    assert sum(held.values()) == agents
    assert max(held.values()) <= limit
    reachable = sum(min(limit, len(each)) for each in zones.values())
    used = {s.description.domain for s in fleet if s.endpoint_id in split}
    assert len(used) >= min(wanted, agents, reachable)
    # Not always the least, but never better than what the limit alone allows.
    used_ = [(Estimate(s, need, model), split.get(s.endpoint_id, 0)) for s in fleet]
    value = objective([(e, k) for e, k in used_ if k], model)
    assert value >= least_within(need, fleet, limit, model) * (1 - 1e-6)


def test_two_providers_of_three_zones_hold_four_domains_and_eight_survivors() -> None:
    fleet = [
        replace(
            s,
            description=replace(
                s.description, provider="pq"[i % 2], failure_domain="xyz"[i % 3],
                max_sequences=64, total_blocks=0,
            ),
        )
        for i, s in enumerate(many(1, 200))
    ]  # fmt: skip
    need = GangNeed(
        "c1", "mini", tuple(range(16)), prefix_tokens=300, tokens_per_agent=200,
        constraints=Constraints(min_survivors=8, min_failure_domains=4),
    )  # fmt: skip
    split = spread(place(need, fleet, NOW, PlacementPolicy()))
    used = [s.description for s in fleet if s.endpoint_id in split]
    assert sum(k for e, k in split.items() if int(e[1:]) % 2) == 8 == sum(split.values()) // 2
    assert len({what.domain for what in used}) >= 4


def test_a_provider_may_have_more_agents_than_a_byte_counts() -> None:
    fleet = [
        replace(s, description=replace(s.description, max_sequences=400, total_blocks=0))
        for s in many(3, 40)
    ]
    need = GangNeed(
        "c1", "mini", tuple(range(300)), prefix_tokens=300, tokens_per_agent=200, region="r",
        constraints=Constraints(min_survivors=100),
    )  # fmt: skip
    split = spread(place(need, fleet, NOW, PlacementPolicy()))
    used = [(Estimate(s, need, CostModel()), split.get(s.endpoint_id, 0)) for s in fleet]
    value = objective([(e, k) for e, k in used if k], CostModel())
    assert value == pytest.approx(least_within(need, fleet, 200, CostModel()))


@given(gangs(), fleets(), st.integers(1, 8))
def test_scores_agree_with_estimates(need: GangNeed, fleet: list[EndpointSnapshot], k: int) -> None:
    model = CostModel()
    board = Board.of(fleet, model)
    scores = Scores(board, need, np.arange(len(board)))
    for i, snapshot in enumerate(board.snapshots):
        one = Estimate(snapshot, need, model)
        room = one.room()
        assert scores.room[i] == room
        assert scores.duration_s(k)[i] == pytest.approx(one.duration_s(k))
        expected = one.effective_s(k) if k <= room else np.inf
        assert scores.effective(k)[i] == pytest.approx(expected)
        assert scores.curves(k)[i, k - 1] == pytest.approx(expected)


@settings(deadline=None)
@given(gangs(), st.integers(0, 1000), policies)
def test_every_endpoint_of_a_large_fleet_is_accounted_for(
    need: GangNeed, seed: int, policy: PlacementPolicy
) -> None:
    fleet = many(seed, 60)
    placement = place(need, fleet, NOW, policy)
    told = sum(r.count for r in placement.rejected)
    if placement.shares:
        assert told + len(placement.shares) == len(fleet)
    assert len(placement.rejected) <= 3 * 14


@given(gangs(sane=True), fleets(sane=True))
def test_estimates_grow_with_the_share(need: GangNeed, fleet: list[EndpointSnapshot]) -> None:
    for snapshot in fleet:
        estimate = Estimate(snapshot, need, CostModel())
        curve = [estimate.effective_s(k) for k in range(1, 9)]
        assert curve == sorted(curve)


@given(gangs(sane=True), fleets(sane=True, most=3))
def test_a_booked_share_leaves_that_much_less_room(
    need: GangNeed, fleet: list[EndpointSnapshot]
) -> None:
    placement = place(need, fleet, NOW, PlacementPolicy())
    for share in placement.shares:
        (snapshot,) = [s for s in fleet if s.endpoint_id == share.endpoint_id]
        agents = len(share.agent_ids)
        blocks = share.prefix_blocks + agents * share.blocks_per_agent
        after = replace(
            snapshot,
            booked_agents=snapshot.booked_agents + agents,
            booked_blocks=snapshot.booked_blocks + blocks,
            pending_agents=snapshot.pending_agents + agents,
            pending_blocks=snapshot.pending_blocks + blocks,
        )
        assert after.free_sequences == snapshot.free_sequences - agents
        assert after.free_blocks == max(0, snapshot.free_blocks - blocks)


@given(gangs(), fleets(), policies, st.integers(0, 4))
def test_a_whole_gang_is_on_one_endpoint(
    need: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy, most: int
) -> None:
    need = replace(need, max_fallbacks=most)
    placement = place(need, fleet, NOW, policy)
    count = len(need.agent_ids)
    able = {
        s.endpoint_id: s
        for s in fleet
        if reject(need, s, NOW, policy.model) is None
        and Estimate(s, need, policy.model).room() >= count
    }
    assert bool(placement.shares) == bool(able)
    if not able:
        return
    (share,) = placement.shares
    chosen = (share.endpoint_id, *share.fallbacks)
    assert len(share.agent_ids) == count
    assert len(set(chosen)) == len(chosen) == min(len(able), most + 1)
    assert set(chosen) <= set(able)
    # Unknown loads come after known ones; among known ones the sooner done come first.
    known = [able[name].load is not None for name in chosen]
    assert known == sorted(known, reverse=True)
    listed = chosen if policy.name == "gang" else share.fallbacks
    ends = [Estimate(able[n], need, policy.model).effective_s(count) for n in listed]
    tiers = [able[n].load is None for n in listed]
    for before, after in itertools.pairwise(range(len(listed))):
        if tiers[before] == tiers[after]:
            assert ends[before] <= ends[after] * (1 + 1e-6)


@given(gangs(), fleets(), st.sampled_from([None, 0]))
def test_only_lack_of_room_is_full(
    need: GangNeed, fleet: list[EndpointSnapshot], most: int | None
) -> None:
    need = replace(need, max_fallbacks=most)
    policy = PlacementPolicy("gang")
    placement = place(need, fleet, NOW, policy)
    fit = [s for s in fleet if reject(need, s, NOW, policy.model) is None]
    rooms = [Estimate(s, need, policy.model).room(idle=True) for s in fit]
    count = len(need.agent_ids)
    room = sum(rooms) if most is None else max(rooms, default=0)
    assert placement.is_full == (not placement.shares and room >= count)
    assert placement.retryable or not placement.is_full


@settings(max_examples=200, deadline=None)
@given(gangs(), fleets(), policies, st.frozensets(st.sampled_from(NAMES)))
def test_avoided_endpoints_are_used_only_where_no_other_could_serve(
    gang: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy, avoided: frozenset[str]
) -> None:
    plain = place(gang, fleet, NOW, policy)
    careful = place(replace(gang, avoided=avoided), fleet, NOW, policy)
    used = {share.endpoint_id for share in careful.shares}
    others = [s for s in fleet if s.endpoint_id not in avoided]
    alone = place(gang, others, NOW, policy)
    if used & avoided:
        # None of the others may take agents at all, be there room or not.
        assert not alone.shares
        assert careful.shares == plain.shares
    if alone.shares:
        assert {s.endpoint_id for s in alone.shares} == used
    if not plain.shares:
        assert not careful.shares


@settings(max_examples=200, deadline=None)
@given(gangs(), fleets(), policies, st.frozensets(st.sampled_from(NAMES)))
def test_an_endpoint_on_trial_gets_one_agent_where_others_hold_the_rest(
    gang: GangNeed, fleet: list[EndpointSnapshot], policy: PlacementPolicy, probed: frozenset[str]
) -> None:
    plain = place(gang, fleet, NOW, policy)
    careful = place(replace(gang, probed=probed), fleet, NOW, policy)
    # Who is probed is never a reason to place nothing, or to place where nothing was.
    assert bool(careful.shares) == bool(plain.shares)
    if any(len(s.agent_ids) > 1 for s in careful.shares if s.endpoint_id in probed):
        others = [s for s in fleet if s.endpoint_id not in probed]
        count, one = len(gang.agent_ids), replace(gang, agent_ids=gang.agent_ids[:1])
        # Of those that are probed, some could not take an agent at all.
        able = [s for s in fleet if s not in others and place(one, [s], NOW, policy).shares]
        few = replace(gang, agent_ids=gang.agent_ids[: max(1, count - len(able))])
        assert count == 1 or not place(few, others, NOW, policy).shares
