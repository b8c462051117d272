"""The exhaustive way to place a gang, endpoint by endpoint: the reference of the fast one.

Filters one by one, and the policy `gang` by bisection over the values of all curves of the fleet.
It knows failure domains; of a limit a provider it knows what the best split is worth.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogitate.router.core.estimate import CostModel, Estimate
from cogitate.router.core.types import EndpointSnapshot, GangNeed, Rejection, State

Split = dict[str, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that may take agents. `curve[k - 1]` is effective_s(k), up to its room."""

    estimate: Estimate
    curve: tuple[float, ...]

    @property
    def endpoint_id(self) -> str:
        return self.estimate.snapshot.endpoint_id

    @property
    def domain(self) -> tuple[str, str]:
        return self.estimate.snapshot.description.domain


def exhaustive_gang(
    need: GangNeed, fleet: Sequence[EndpointSnapshot], now: float, model: CostModel
) -> Split:
    """Endpoint id -> agents; empty if there is no room. Loads are taken to be known."""
    count = len(need.agent_ids)
    candidates = []
    for snapshot in sorted(fleet, key=lambda s: (s.sequences, s.endpoint_id)):
        estimate = Estimate(snapshot, need, model)
        room = min(count, estimate.room())
        if room and reject(need, snapshot, now, model) is None:
            curve = tuple(estimate.effective_s(k) for k in range(1, room + 1))
            candidates.append(Candidate(estimate, curve))
    if sum(len(c.curve) for c in candidates) < count:
        return {}
    wanted = max(1, need.constraints.min_failure_domains)
    domains = min(wanted, count, len({c.domain for c in candidates}))
    return gang(candidates, count, domains, model.spread_penalty)


def gang(candidates: Sequence[Candidate], count: int, domains: int, spread_penalty: float) -> Split:
    """Minimises the objective above; ties go to fewer endpoints, then to the tie order.

    O(r log(EN) (E log E)) for E endpoints, N agents and r endpoints tried; r is small because the
    penalty soon outweighs whatever spreading further can gain.
    """
    bounds = sorted({value for candidate in candidates for value in candidate.curve})
    best: tuple[float, Sequence[Candidate], float] | None = None
    for r in range(max(1, domains), min(len(candidates), count) + 1):
        factor = 1 + spread_penalty * (r - 1)
        if best is not None and bounds[0] * factor >= best[0]:
            break  # not even an endpoint with one agent would win from here on
        bound = _least_bound(candidates, bounds, r, count, domains)
        if bound is not None and (best is None or bound * factor < best[0]):
            best = (bound * factor, _widest(candidates, bound, r, domains), bound)
    if best is None:
        return {}
    chosen = {c.endpoint_id for c in best[1]}
    return _level([c for c in candidates if c.endpoint_id in chosen], count, best[2])


def _least_bound(
    candidates: Sequence[Candidate], bounds: Sequence[float], r: int, count: int, domains: int
) -> float | None:
    low, high = 0, len(bounds)
    while low < high:
        middle = (low + high) // 2
        chosen = _widest(candidates, bounds[middle], r, domains)
        if len(chosen) == r and sum(_cap(c, bounds[middle]) for c in chosen) >= count:
            high = middle
        else:
            low = middle + 1
    return bounds[low] if low < len(bounds) else None


def _widest(candidates: Iterable[Candidate], bound: float, r: int, domains: int) -> list[Candidate]:
    """Returns the `r` endpoints in `domains` domains that take most agents within the bound."""
    chosen: list[Candidate] = []
    seen: set[tuple[str, str]] = set()
    repeats = r - domains
    for candidate in sorted(candidates, key=lambda c: -_cap(c, bound)):
        if len(chosen) == r or not _cap(candidate, bound):
            break
        if candidate.domain in seen:
            if not repeats:
                continue
            repeats -= 1
        seen.add(candidate.domain)
        chosen.append(candidate)
    return chosen


def _cap(candidate: Candidate, bound: float) -> int:
    return bisect_right(candidate.curve, bound)


def _level(chosen: Sequence[Candidate], count: int, bound: float) -> Split:
    """Gives every endpoint one agent, and each further one to where it ends soonest."""
    split = {c.endpoint_id: 1 for c in chosen}
    for _ in range(count - len(split)):
        open_ = [c for c in chosen if split[c.endpoint_id] < _cap(c, bound)]
        soonest = min(open_, key=lambda c: c.curve[split[c.endpoint_id]])
        split[soonest.endpoint_id] += 1
    return split


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


def least_within(
    need: GangNeed, fleet: Sequence[EndpointSnapshot], limit: int, model: CostModel
) -> float:
    """The least objective where no provider has more than `limit` agents; every value is tried.

    All of the fleet may be used and its loads are known. Infinite if it cannot hold the gang so.
    """
    count = len(need.agent_ids)
    curves: dict[str, list[list[float]]] = {}
    for snapshot in fleet:
        one = Estimate(snapshot, need, model)
        curve = [one.effective_s(k) for k in range(1, min(count, one.room()) + 1)]
        curves.setdefault(snapshot.description.provider, []).append(curve)
    best = float("inf")
    values = {value for rows in curves.values() for row in rows for value in row}
    for bound in sorted(values):
        gains = []
        for rows in curves.values():
            held = 0
            for cap in sorted((bisect_right(row, bound) for row in rows), reverse=True):
                gains.append(min(limit, held + cap) - held)
                held += gains[-1]
        held, used = 0, 0
        for gain in sorted(gains, reverse=True):
            if gain and held < count:
                held, used = held + gain, used + 1
        if held >= count:
            best = min(best, bound * (1 + model.spread_penalty * (used - 1)))
    return best
