"""Who runs where: filter, score, split. A pure function of a gang and a fleet.

Invariants, each a property test in tests/property/test_router_placement.py:
1. A filtered endpoint is never used (test_filtered_endpoints_are_never_used).
2. Every agent is placed exactly once, or none is (test_every_agent_is_placed_exactly_once).
3. The order of the fleet does not matter (test_order_of_the_fleet_does_not_matter).
4. An endpoint whose load is unknown gets only what those with a known load have no room for
   (test_unknown_load_never_beats_a_known_one).
5. At least min_failure_domains are used where the candidates have so many
   (test_failure_domains_are_spread_over).
6. The loss of any one provider leaves min_survivors where that can be
   (test_no_provider_has_more_than_may_be_lost).
7. A gang with `max_fallbacks` is on one endpoint; its fallbacks have room for all of it, too, and
   the constraints that spread a gang do not bind it (test_a_whole_gang_is_on_one_endpoint).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core import filters
from cogitate.router.core.board import Board, Ints
from cogitate.router.core.deal import Split, Spread
from cogitate.router.core.estimate import CostModel, Estimate
from cogitate.router.core.filters import Codes
from cogitate.router.core.policies import POLICIES
from cogitate.router.core.scores import Scores, idle_room
from cogitate.router.core.types import EndpointSnapshot, GangNeed, Placement, Share


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """A policy's name and the numbers it works with."""

    name: str = "gang"
    model: CostModel = field(default_factory=CostModel)


def place(
    need: GangNeed, fleet: Sequence[EndpointSnapshot], now: float, policy: PlacementPolicy
) -> Placement:
    """Places all agents of a gang, or none and says why. Does not raise.

    Agents are handed out in the order of `need.agent_ids`, endpoints by id. Equal endpoints go by
    fewest sequences, then by a hash of contemplation and endpoint.
    """
    return place_on(need, Board.of(fleet, policy.model), now, policy.name)


def place_on(need: GangNeed, board: Board, now: float, policy: str) -> Placement:
    """The same on a board, which stays as it is."""
    count = len(need.agent_ids)
    why = filters.codes(need, board, now)
    fits = np.flatnonzero(why == 0)
    scores = Scores(board, need, fits)
    least = 1 if need.max_fallbacks is None else count
    if scores.least_room < least:
        why[fits[scores.room < least]] = filters.FULL
        scores = scores.part(scores.room >= least)
    if need.max_fallbacks is None:
        scores = _with_probes(scores, count)
    free = int(np.minimum(scores.room, count).sum())
    if free < count:
        return _denied(need, board, fits, why, free, policy)
    if need.max_fallbacks is not None:
        first, *others = _whole(scores, policy)
        names = [board.snapshots[int(scores.rows[place])].endpoint_id for place in others]
        return _placement(scores, {first: count}, why, policy, tuple(names))
    return _placement(scores, _split(scores, policy), why, policy)


def _whole(scores: Scores, policy: str) -> list[int]:
    """The place that the policy gives the whole gang, then those where it would be done next.

    A policy that deals single agents says where the first would go.
    """
    count, most = len(scores.need.agent_ids), (scores.need.max_fallbacks or 0) + 1
    unknown = ~scores.known
    order = np.lexsort((scores.effective(count), unknown))
    first = int(order[0])
    if policy != "gang":
        tier = np.flatnonzero(unknown == unknown[first])
        (chosen,) = POLICIES[policy](scores.part(tier), 1, Spread())
        first = int(tier[chosen])
    others = [place for place in order[: most + 1].tolist() if place != first]
    return [first, *others[: most - 1]]


def _with_probes(scores: Scores, count: int) -> Scores:
    """One agent at most where it is to be seen if an endpoint works, if others hold the rest."""
    if not scores.need.probed:
        return scores
    probed = filters.named(scores.board, scores.need.probed)[scores.rows]
    rooms = np.where(probed, np.minimum(scores.room, 1.0), scores.room)
    return scores.with_room(rooms) if np.minimum(rooms, count).sum() >= count else scores


def _split(scores: Scores, policy: str) -> Split:
    """Splits over endpoints of known load; what they cannot hold goes to the others."""
    count = len(scores.need.agent_ids)
    known = scores.known
    if known.all():
        return _split_tier(scores, count, policy, None)
    inside = min(count, int(np.minimum(scores.room[known], count).sum()))
    split: Split = {}
    for places, agents in ((np.flatnonzero(known), inside), (np.flatnonzero(~known), count)):
        left = min(agents, count - sum(split.values()))
        if left:
            used = scores.rows[list(split)] if split else None
            for place, k in _split_tier(scores.part(places), left, policy, used).items():
                split[int(places[place])] = k
    return split


def _split_tier(scores: Scores, count: int, policy: str, used: Ints | None) -> Split:
    spread = _spread(scores, count, used)
    split = POLICIES[policy](scores, count, spread)
    if sum(split.values()) != count or any(k > scores.room[p] for p, k in split.items()):
        raise AssertionError(f"policy {policy} broke its promise")
    return split


def _spread(scores: Scores, count: int, used: Ints | None) -> Spread:
    """The constraints, as far as these endpoints allow them."""
    limits = scores.need.constraints
    domains, limit = 1, 2**31
    if limits.min_failure_domains > 1:
        before = 0 if used is None else len(np.unique(scores.board.index(b.DOMAIN)[used]))
        there = int(np.count_nonzero(np.bincount(scores.domains)))
        domains = max(1, min(limits.min_failure_domains - before, count, there))
    if limits.min_survivors > 0:
        rooms = np.bincount(scores.providers, np.minimum(scores.room, count))
        limit = max(1, len(scores.need.agent_ids) - limits.min_survivors)
        while np.minimum(rooms, limit).sum() < count:
            limit += 1
        if domains > np.count_nonzero(rooms):  # not one of each provider
            domains = min(domains, _domains_within(scores, limit))
    return Spread(domains, limit)


def _domains_within(scores: Scores, limit: int) -> int:
    """How many failure domains can be used when a provider may have only so many agents."""
    provider_of = np.full(scores.board.count(b.DOMAIN), -1)
    provider_of[scores.domains] = scores.providers
    counts = np.bincount(provider_of[provider_of >= 0])
    return int(np.minimum(counts, limit).sum())


def _placement(
    scores: Scores, split: Split, why: Codes, policy: str, fallbacks: tuple[str, ...] = ()
) -> Placement:
    need, board = scores.need, scores.board
    agents = iter(need.agent_ids)
    alone = _alone(scores, len(need.agent_ids)) if len(split) > 1 else None
    by_id = sorted((board.snapshots[int(scores.rows[p])].endpoint_id, k) for p, k in split.items())
    shares: list[Share] = []
    for endpoint_id, k in by_id:
        estimate = Estimate(board.snapshots[board.rows[endpoint_id]], need, board.model)
        duration_s = estimate.expected_s(k)
        shares.append(
            Share(
                endpoint_id=endpoint_id,
                agent_ids=tuple(next(agents) for _ in range(k)),
                blocks_per_agent=estimate.blocks_per_agent,
                prefix_blocks=estimate.prefix_blocks,
                predicted_s=duration_s,
                predicted_cost_micro_usd=round(estimate.cost_micro_usd(k)),
                prefill_s=estimate.prefill_s,
                reason=_why(estimate, k, duration_s, len(split), alone),
                fallbacks=fallbacks,
            )
        )
    why[scores.rows] = filters.UNNEEDED
    if not (known := scores.known).all():
        why[scores.rows[~known]] = filters.UNKNOWN
    why[scores.rows[list(split)]] = 0
    return Placement(
        policy=policy,
        shares=tuple(shares),
        rejected=filters.summary(need, board, why, scores),
        makespan_s=max(share.predicted_s for share in shares),
    )


def _alone(scores: Scores, count: int) -> float | None:
    """Returns how long the whole gang would take on the one endpoint best for it."""
    durations = scores.duration_s(count)
    if scores.least_room < count:
        durations = durations[scores.room >= count]
    return float(durations.min()) if len(durations) else None


def _why(estimate: Estimate, k: int, duration_s: float, used: int, alone: float | None) -> str:
    snapshot, need = estimate.snapshot, estimate.need
    limits = need.constraints
    other_s = estimate.prefill_s + estimate.wait_s + estimate.distance_s
    step_ms = (duration_s - other_s) / estimate.steps * 1000
    parts = [
        f"{k} of {len(need.agent_ids)} agents: {duration_s:.2f} s predicted, of it "
        f"{estimate.prefill_s:.2f} s prefill, {estimate.steps} steps of "
        f"{step_ms:.1f} ms beside {snapshot.sequences} other sequences"
    ]
    if estimate.wait_s:
        parts.append(f"{estimate.wait_s:.2f} s of it behind other gangs' prompts")
    if estimate.is_prefilled:
        parts.append("most of its prompt is computed there already")
    if estimate.distance_s:
        parts.append(f"{estimate.distance_s:.2f} s of it to another region and back")
    if snapshot.load is None:
        parts.append(f"its load is unknown ({snapshot.unknown_because}), but no other has room")
    if snapshot.description.is_spot:
        parts.append("it is spot capacity")
    if used > 1 and limits.min_failure_domains > 1:
        parts.append(f"{limits.min_failure_domains} failure domains were asked for")
    if used > 1 and limits.min_survivors > 0:
        parts.append(f"{limits.min_survivors} agents are to survive the loss of any provider")
    if used > 1 and alone is not None:
        parts.append(f"one endpoint alone would take {alone:.2f} s")
    return "; ".join(parts)


def _denied(
    need: GangNeed, board: Board, fits: Ints, why: Codes, free: int, policy: str
) -> Placement:
    """Says why nothing was placed, and whether waiting may help."""
    models = sorted({model for s in board.snapshots for model in s.description.models})
    count = len(need.agent_ids)
    reason, retryable, is_full = "NO_ENDPOINT", True, False
    if not len(board):
        denial = "no endpoint reports to this router"
    elif need.model not in models:
        reason, retryable = "UNKNOWN_MODEL", False
        denial = f"no endpoint serves the model {need.model}; there is: {', '.join(models)}"
    elif lacking := _lacking(need, board.snapshots):
        retryable = False
        denial = f"no endpoint with the model {need.model} has {', '.join(lacking)}"
    else:
        rooms = idle_room(board, need, fits)
        if need.max_fallbacks is not None:
            rooms = np.where(rooms >= count, count, 0)
        idle = int(rooms.sum())
        is_full = idle >= count
        retryable = is_full or filters.may_return(why)
        denial = (
            f"there is room for {free} of {count} agents on {len(fits)} of {len(board)} endpoints"
        )
        if not retryable:
            denial += f", and for {idle} if all of them were idle"
    return Placement(
        policy=policy,
        rejected=filters.summary(need, board, why),
        denial=denial,
        denial_reason=reason,
        retryable=retryable,
        is_full=is_full,
    )


def _lacking(need: GangNeed, fleet: Sequence[EndpointSnapshot]) -> list[str]:
    """The capabilities that are needed and that no endpoint with the model has, in order."""
    there = [s.description.capabilities for s in fleet if need.model in s.description.models]
    return sorted(need.capabilities.difference(*there))
