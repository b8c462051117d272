"""Ways to split a gang over the endpoints that may take it. Registered by name in POLICIES.

A policy gets candidates in tie order (lowest load, then a hash of contemplation and endpoint), each
with room for at least one agent and together for all of them. It returns how many agents each gets
and must keep two promises, which `placement.place` checks: all agents are placed within the room,
and at least `domains` failure domains are used (the caller never asks for more than there are).

`gang`, the default, minimises

    max over used endpoints of effective_s(k)  *  (1 + spread_penalty * (endpoints - 1))

exactly. For a bound T on the effective duration each endpoint can take cap(T) agents; r endpoints
in at least d domains can take the whole gang iff the r largest caps, at most r - d of them from a
domain already used, hold it. Such sets form a matroid (a partition matroid joined with a uniform
one, truncated), so taking them greedily is optimal; and more is possible as T grows, so the least
T is found by bisection. Property test: test_gang_policy_agrees_with_brute_force.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cogitate.router.core.estimate import Estimate

Split = dict[str, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that may take agents. `curve[k - 1]` is effective_s(k), up to its room."""

    estimate: Estimate
    curve: tuple[float, ...]
    rotation: int

    @property
    def endpoint_id(self) -> str:
        """The endpoint's id."""
        return self.estimate.snapshot.endpoint_id

    @property
    def domain(self) -> tuple[str, str]:
        """Its failure domain."""
        return self.estimate.snapshot.description.domain

    @property
    def room(self) -> int:
        """Agents it can take."""
        return len(self.curve)


Policy = Callable[[Sequence[Candidate], int, int, float], Split]


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


def pack(candidates: Sequence[Candidate], count: int, domains: int, spread_penalty: float) -> Split:
    """Fills the roomiest endpoints first: fewest prefills, whatever the time."""
    roomiest = sorted(candidates, key=lambda c: -c.room)
    split = {c.endpoint_id: 1 for c in _first_of_domains(roomiest, domains)}
    left = count - len(split)
    for candidate in sorted(roomiest, key=lambda c: c.endpoint_id not in split):
        more = min(left, candidate.room - split.get(candidate.endpoint_id, 0))
        if more > 0:
            split[candidate.endpoint_id] = split.get(candidate.endpoint_id, 0) + more
            left -= more
    return split


def least_load(
    candidates: Sequence[Candidate], count: int, domains: int, spread_penalty: float
) -> Split:
    """Gives each agent to the endpoint with the smallest share of its places taken."""

    def fullness(candidate: Candidate, k: int) -> float:
        snapshot = candidate.estimate.snapshot
        return (snapshot.sequences + k) / snapshot.description.max_sequences

    emptiest = sorted(candidates, key=lambda c: fullness(c, 1))
    split = {c.endpoint_id: 1 for c in _first_of_domains(emptiest, domains)}
    for _ in range(count - len(split)):
        open_ = [c for c in emptiest if split.get(c.endpoint_id, 0) < c.room]
        least = min(open_, key=lambda c: fullness(c, split.get(c.endpoint_id, 0) + 1))
        split[least.endpoint_id] = split.get(least.endpoint_id, 0) + 1
    return split


def round_robin(
    candidates: Sequence[Candidate], count: int, domains: int, spread_penalty: float
) -> Split:
    """Deals the agents one by one, from an endpoint that the contemplation's hash picks."""
    turn = sorted(candidates, key=lambda c: c.endpoint_id)
    start = turn[0].rotation % len(turn)
    turn = turn[start:] + turn[:start]
    first = _first_of_domains(turn, domains)
    turn = [*first, *(c for c in turn if c not in first)]
    split: Split = {}
    left = count
    while left:
        for candidate in turn:
            dealt = split.get(candidate.endpoint_id, 0)
            if left and dealt < candidate.room:
                split[candidate.endpoint_id] = dealt + 1
                left -= 1
    return split


POLICIES: dict[str, Policy] = {
    "gang": gang,
    "pack": pack,
    "least_load": least_load,
    "round_robin": round_robin,
}


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


def _first_of_domains(ordered: Iterable[Candidate], domains: int) -> list[Candidate]:
    first: dict[tuple[str, str], Candidate] = {}
    for candidate in ordered:
        if len(first) < domains:
            first.setdefault(candidate.domain, candidate)
    return list(first.values())
