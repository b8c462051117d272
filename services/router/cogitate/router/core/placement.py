"""Who runs where: filter, score, split. A pure function of a gang and a snapshot of the fleet.

Invariants, each a property test in tests/property/test_router_placement.py:
1. A filtered endpoint is never used (test_filtered_endpoints_are_never_used).
2. Every agent is placed exactly once, or none is (test_every_agent_is_placed_exactly_once).
3. The order of the fleet does not matter (test_order_of_the_fleet_does_not_matter).
4. An endpoint whose load is unknown gets only what those with a known load have no room for
   (test_unknown_load_never_beats_a_known_one).
5. At least min_failure_domains are used where the candidates have so many
   (test_failure_domains_are_spread_over).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cogitate.router.core.estimate import CostModel, Estimate
from cogitate.router.core.policies import POLICIES, Candidate, Split
from cogitate.router.core.types import (
    EndpointSnapshot,
    GangNeed,
    Placement,
    Rejection,
    Share,
    State,
)


@dataclass(frozen=True, slots=True)
class PlacementPolicy:
    """A policy's name and the numbers it works with."""

    name: str = "gang"
    model: CostModel = field(default_factory=CostModel)


def place(
    need: GangNeed, fleet: Sequence[EndpointSnapshot], now: float, policy: PlacementPolicy
) -> Placement:
    """Places all agents of a gang, or none and says why.

    Agents are handed out in the order of `need.agent_ids`, endpoints by id. Endpoints are compared
    in tie order: fewest sequences, then a hash of contemplation and endpoint. Does not raise.
    """
    rejected: list[Rejection] = []
    fits: list[EndpointSnapshot] = []
    for snapshot in sorted(fleet, key=lambda s: s.endpoint_id):
        rejection = reject(need, snapshot, now, policy.model)
        if rejection is None:
            fits.append(snapshot)
        else:
            rejected.append(rejection)
    candidates = sorted((_candidate(s, need, policy.model) for s in fits), key=_tie_key)
    full = [c for c in candidates if not c.room]
    rejected += [_full(c) for c in full]
    candidates = [c for c in candidates if c.room]
    room = sum(c.room for c in candidates)
    if room < len(need.agent_ids):
        return _denied(need, fleet, fits, rejected, room, policy)
    split = _split(candidates, need, policy)
    return _placement(need, candidates, split, rejected, policy)


def reject(
    need: GangNeed, snapshot: EndpointSnapshot, now: float, model: CostModel
) -> Rejection | None:
    """Returns why an endpoint may not take any agent of the gang, or None if it may."""
    what, limits = snapshot.description, need.constraints
    missing = need.capabilities - what.capabilities
    window, per_hour = what.max_model_len, what.price_per_hour_micro_usd
    highest, budget = limits.max_price_per_hour_micro_usd, need.max_cost_micro_usd
    one = Estimate(snapshot, need, model).cost_micro_usd(1)
    checks: tuple[tuple[bool, str, bool], ...] = (
        (need.model not in what.models, f"it does not serve the model {need.model}", False),
        (bool(missing), f"it lacks {', '.join(sorted(missing))}", False),
        (
            bool(limits.providers) and what.provider not in limits.providers,
            f"its provider {what.provider or 'without a name'} is not allowed",
            False,
        ),
        (
            bool(limits.regions) and what.region not in limits.regions,
            f"its region {what.region or 'without a name'} is not allowed",
            False,
        ),
        (
            0 < highest < per_hour,
            f"it costs {per_hour / 1e6:.4g} USD an hour, more than {highest / 1e6:.4g}",
            False,
        ),
        (
            0 < budget < one,
            f"one agent would cost {one / 1e6:.4g} USD, more than the budget {budget / 1e6:.4g}",
            False,
        ),
        (snapshot.endpoint_id in limits.excluded, "the request excludes it", False),
        (
            0 < window <= need.prefix_tokens,
            f"the prompt of {need.prefix_tokens} tokens exceeds its window of {window}",
            False,
        ),
        (snapshot.endpoint_id in need.failed, "it failed this contemplation", True),
        (snapshot.state is State.DRAINING, "it is draining", True),
        (
            snapshot.state is State.STALE or snapshot.expires_at_s <= now,
            "its reports stopped",
            True,
        ),
    )
    for failed, reason, temporary in checks:
        if failed:
            return Rejection(snapshot.endpoint_id, reason, temporary)
    return None


def _candidate(snapshot: EndpointSnapshot, need: GangNeed, model: CostModel) -> Candidate:
    estimate = Estimate(snapshot, need, model)
    room = min(estimate.room(), len(need.agent_ids))
    curve = tuple(estimate.effective_s(k) for k in range(1, room + 1))
    return Candidate(estimate, curve, _hash(need.contemplation_id))


def _tie_key(candidate: Candidate) -> tuple[int, int, str]:
    snapshot, need = candidate.estimate.snapshot, candidate.estimate.need
    mixed = _hash(f"{need.contemplation_id}\0{snapshot.endpoint_id}")
    return (snapshot.sequences, mixed, snapshot.endpoint_id)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _split(candidates: Sequence[Candidate], need: GangNeed, policy: PlacementPolicy) -> Split:
    """Splits over endpoints of known load; what they cannot hold goes to the others."""
    known = [c for c in candidates if c.estimate.snapshot.load is not None]
    unknown = [c for c in candidates if c.estimate.snapshot.load is None]
    count = len(need.agent_ids)
    inside = min(count, sum(c.room for c in known))
    split: Split = {}
    for tier, agents in ((known, inside), (unknown, count - inside)):
        if agents:
            used = {c.domain for c in known if c.endpoint_id in split}
            split |= _split_tier(tier, agents, need, policy, used)
    return split


def _split_tier(
    tier: Sequence[Candidate],
    count: int,
    need: GangNeed,
    policy: PlacementPolicy,
    used: Collection[tuple[str, str]],
) -> Split:
    wanted = max(1, need.constraints.min_failure_domains - len(used))
    tier = [Candidate(c.estimate, c.curve[:count], c.rotation) for c in tier]
    domains = min(wanted, count, len({c.domain for c in tier}))
    split = POLICIES[policy.name](tier, count, domains, policy.model.spread_penalty)
    rooms = {c.endpoint_id: c.room for c in tier}
    if sum(split.values()) != count or any(k > rooms[e] for e, k in split.items()):
        raise AssertionError(f"policy {policy.name} broke its promise")
    return split


def _placement(
    need: GangNeed,
    candidates: Sequence[Candidate],
    split: Split,
    rejected: Sequence[Rejection],
    policy: PlacementPolicy,
) -> Placement:
    shares: list[Share] = []
    unused: list[Rejection] = []
    agents = iter(need.agent_ids)
    alone = _alone(candidates, len(need.agent_ids))
    for candidate in sorted(candidates, key=lambda c: c.endpoint_id):
        k = split.get(candidate.endpoint_id, 0)
        if not k:
            unused.append(Rejection(candidate.endpoint_id, _why_not(candidate)))
            continue
        estimate = candidate.estimate
        shares.append(
            Share(
                endpoint_id=candidate.endpoint_id,
                agent_ids=tuple(next(agents) for _ in range(k)),
                blocks_per_agent=estimate.blocks_per_agent,
                prefix_blocks=estimate.prefix_blocks,
                predicted_s=estimate.duration_s(k),
                predicted_cost_micro_usd=round(estimate.cost_micro_usd(k)),
                reason=_why(estimate, k, need, len(split), alone),
            )
        )
    return Placement(
        policy=policy.name,
        shares=tuple(shares),
        rejected=tuple(sorted([*rejected, *unused], key=lambda r: r.endpoint_id)),
        makespan_s=max(share.predicted_s for share in shares),
    )


def _alone(candidates: Sequence[Candidate], count: int) -> float | None:
    """Returns how long the whole gang would take on the one endpoint best for it."""
    times = [c.estimate.duration_s(count) for c in candidates if c.room >= count]
    return min(times, default=None)


def _why(estimate: Estimate, k: int, need: GangNeed, used: int, alone: float | None) -> str:
    snapshot = estimate.snapshot
    parts = [
        f"{k} of {len(need.agent_ids)} agents: {estimate.duration_s(k):.2f} s predicted, of it "
        f"{estimate.prefill_s:.2f} s prefill, {estimate.steps} steps of "
        f"{estimate.step_s(k) * 1000:.1f} ms beside {snapshot.sequences} other sequences"
    ]
    if estimate.is_prefilled:
        parts.append("most of its prompt is computed there already")
    if snapshot.load is None:
        parts.append(f"its load is unknown ({snapshot.unknown_because}), but no other has room")
    if used > 1 and need.constraints.min_failure_domains > 1:
        parts.append(f"{need.constraints.min_failure_domains} failure domains were asked for")
    if used > 1 and alone is not None:
        parts.append(f"one endpoint alone would take {alone:.2f} s")
    return "; ".join(parts)


def _why_not(candidate: Candidate) -> str:
    if candidate.estimate.snapshot.load is None:
        because = candidate.estimate.snapshot.unknown_because
        return f"its load is unknown ({because}) and others have room"
    return f"others suit the gang better; one agent here: {candidate.curve[0]:.2f} s with its price"


def _full(candidate: Candidate) -> Rejection:
    estimate = candidate.estimate
    snapshot = estimate.snapshot
    if not estimate.room(idle=True):
        reason = (
            f"its {snapshot.description.total_blocks} KV blocks cannot hold one agent, which needs "
            f"{estimate.prefix_blocks + estimate.blocks_per_agent}"
        )
        return Rejection(snapshot.endpoint_id, reason)
    reason = (
        f"it is full: room for {snapshot.free_sequences} sequences and {snapshot.free_blocks} KV "
        f"blocks, one agent needs {estimate.prefix_blocks + estimate.blocks_per_agent} blocks"
    )
    return Rejection(snapshot.endpoint_id, reason, temporary=True)


def _denied(
    need: GangNeed,
    fleet: Sequence[EndpointSnapshot],
    fits: Sequence[EndpointSnapshot],
    rejected: Sequence[Rejection],
    room: int,
    policy: PlacementPolicy,
) -> Placement:
    """Says why nothing was placed, and whether waiting may help."""
    models = sorted({model for s in fleet for model in s.description.models})
    count = len(need.agent_ids)
    reason, retryable = "NO_ENDPOINT", True
    if not fleet:
        denial = "no endpoint reports to this router"
    elif need.model not in models:
        reason, retryable = "UNKNOWN_MODEL", False
        denial = f"no endpoint serves the model {need.model}; there is: {', '.join(models)}"
    elif lacking := _lacking(need, fleet):
        retryable = False
        denial = f"no endpoint with the model {need.model} has {', '.join(lacking)}"
    else:
        idle = sum(Estimate(s, need, policy.model).room(idle=True) for s in fits)
        filtered = {s.endpoint_id for s in fleet} - {s.endpoint_id for s in fits}
        may_return = any(r.temporary for r in rejected if r.endpoint_id in filtered)
        retryable = idle >= count or may_return
        denial = (
            f"there is room for {room} of {count} agents on {len(fits)} of {len(fleet)} endpoints"
        )
        if not retryable:
            denial += f", and for {idle} if all of them were idle"
    return Placement(
        policy=policy.name,
        rejected=tuple(sorted(rejected, key=lambda r: r.endpoint_id)),
        denial=denial,
        denial_reason=reason,
        retryable=retryable,
    )


def _lacking(need: GangNeed, fleet: Sequence[EndpointSnapshot]) -> list[str]:
    """The capabilities that are needed and that no endpoint with the model has, in order."""
    there = [s.description.capabilities for s in fleet if need.model in s.description.models]
    return sorted(need.capabilities.difference(*there))
