"""Splits a gang over endpoints so that it is done soonest and cheapest: the policy `gang`.

It minimises, over all splits that keep to the constraints,

    max over used endpoints of effective(k)  *  (1 + spread_penalty * (endpoints - 1))

For a bound T on the effective duration each endpoint can take cap(T) agents, and r endpoints hold
the gang iff the r largest caps do; with d failure domains at most r - d of them may come from a
domain already used. Such sets form a matroid (a partition matroid joined with a uniform one,
truncated), so taking them greedily is optimal; with a limit a provider the caps of a provider are a
concave sum, so that greedy gains are optimal. More is possible as T grows, so the least T is found
by bisection over the values that the curves take.

What makes it fast is that few endpoints and few r come into question:

* Some endpoint has at least ceil(N / r) agents, so T >= the least value of that column; and the r
  best of that column are a solution. Most r fall to these two bounds alone.
* A better solution with r endpoints uses only endpoints whose effective(1) is under its bound; and
  of those only the first R of each column, since one that is not among them can be exchanged for an
  unused one that is (with domains: or is the best of one of the first R domains).

A limit a provider is ``providers``' matter. With both constraints at once its split is the least if
it has domains enough; else domains are served first, the places in question are found by a few
columns, exact while they are all, and the result may not be the least.
Property test: test_gang_policy_agrees_with_brute_force, test_gang_agrees_with_the_exhaustive_one.
"""

from __future__ import annotations

import numpy as np
from cogitate.router.core.board import Ints
from cogitate.router.core.deal import Split, Spread, Tally, promising
from cogitate.router.core.providers import CLOSE as _CLOSE
from cogitate.router.core.providers import beginning, least_within
from cogitate.router.core.scores import Scores

# A fleet so small is looked at as a whole.
_SMALL = 24


def gang(scores: Scores, count: int, spread: Spread) -> Split:
    """Returns the split with the least objective. O(E) array operations, then a few endpoints."""
    penalty = scores.board.model.spread_penalty
    if spread.provider_limit < count:
        places = least_within(scores, count, spread.provider_limit, penalty)
        if len(np.unique(scores.domains[places])) >= spread.domains:
            return _level(scores, places, count, spread)
        fewest = max(spread.domains, -(-count // spread.provider_limit))
        lows, best, places = beginning(scores, count, fewest, penalty)
        tried = [(low * (1 + penalty * (r - 1)), r) for r, low in lows.items()]
    else:
        tried, best, places = _beginning(scores, count, spread, penalty)
    tried = [(least, r) for least, r in tried if least < best * _CLOSE]
    if tried:
        pool = _pool(scores, count, spread, tried, best, penalty)
        exact = _Exact(scores, pool, count, spread)
        for least, r in sorted(tried):
            if least >= best * _CLOSE:
                break
            factor = 1 + penalty * (r - 1)
            found_bound = exact.least_bound(r, best / factor)
            if found_bound is not None:
                best = found_bound * factor
                places = exact.widest(r, found_bound)
    return _level(scores, places, count, spread) if len(places) else {}


def _beginning(
    scores: Scores, count: int, spread: Spread, penalty: float
) -> tuple[list[tuple[float, int]], float, Ints]:
    """What each r that may win cannot be better than; a solution to begin with, if there is one."""
    best, places = np.inf, np.arange(0)
    tried: list[tuple[float, int]] = []
    firsts: dict[int, tuple[Ints, list[float]]] = {}
    most = min(count, len(scores))
    least_of_one = float(scores.effective(1).min())
    for r in range(spread.domains, most + 1):
        factor = 1 + penalty * (r - 1)
        if least_of_one * factor >= best * _CLOSE:
            break
        k = -(-count // r)
        if k not in firsts:
            firsts[k] = _first(scores, k, most, spread)
        found, values = firsts[k]
        if not len(found) or values[0] * factor >= best * _CLOSE:
            continue
        tried.append((values[0] * factor, r))
        taken = _in_domains(found, scores, r, spread.domains)
        if taken is not None and (value := values[taken[-1]]) * factor < best:
            best, places = value * factor, found[taken]
    return tried, best, places


def _first(scores: Scores, k: int, most: int, spread: Spread) -> tuple[Ints, list[float]]:
    """The first places of a column, in order, that any solution of it needs, and their values."""
    column = scores.effective(k)
    places = promising(scores, column, most, spread)
    places = places[np.argsort(column[places])]
    values = column[places]
    finite = int(np.searchsorted(values, np.inf, "left"))
    return places[:finite], values[:finite].tolist()


def _in_domains(places: Ints, scores: Scores, r: int, wanted: int) -> list[int] | None:
    """Which of the places to take: the first, as few of domains already used as leave `wanted`."""
    if len(places) < r:
        return None
    if wanted == 1:
        return list(range(r))
    seen: set[int] = set()
    taken: list[int] = []
    repeats = r - wanted
    for i, domain in enumerate(scores.domains[places].tolist()):
        if len(taken) == r:
            break
        if domain in seen:
            if not repeats:
                continue
            repeats -= 1
        seen.add(domain)
        taken.append(i)
    return taken if len(taken) == r else None


def _pool(
    scores: Scores,
    count: int,
    spread: Spread,
    tried: list[tuple[float, int]],
    best: float,
    penalty: float,
) -> Ints:
    """The places that a better solution can use."""
    if len(scores) <= _SMALL:
        return np.arange(len(scores))
    fewest = min(r for _, r in tried)
    most = max(r for _, r in tried)
    places = np.flatnonzero(scores.effective(1) * (1 + penalty * (fewest - 1)) < best * _CLOSE)
    if len(places) <= _SMALL:
        return places
    part = scores if len(places) == len(scores) else scores.part(places)
    if spread.provider_limit < count:
        ks = {1, spread.provider_limit, -(-spread.provider_limit // 2)}
        kept = [promising(part, part.effective(k), most, spread) for k in ks]
        return places[np.unique(np.concatenate(kept))]
    limit = best / (1 + penalty * (fewest - 1))
    if spread.domains == 1:
        # All columns at once. From where so few can have k agents on, those are all there are.
        curves = part.curves(count - fewest + 1)
        able = np.count_nonzero(curves < limit, axis=0)
        last = int(np.argmax(able <= most)) if able[-1] <= most else len(able) - 1
        few = min(most, len(part))
        first = np.argpartition(curves[:, : last + 1], few - 1, axis=0)[:few]
        return places[np.unique(first)]
    kept = []
    for k in range(1, count - fewest + 2):
        column = part.effective(k)
        fits = np.flatnonzero(column < limit)  # nobody else can have k agents and be better
        if len(fits) <= most:
            kept.append(fits)  # whoever can have more than k is among them
            break
        kept.append(promising(part, column, most, spread))
    return places[np.unique(np.concatenate(kept))]


class _Exact:
    """Bisection over the curves of a few places."""

    def __init__(self, scores: Scores, pool: Ints, count: int, spread: Spread) -> None:
        part = scores.part(pool)
        self._pool, self._count, self._spread = pool, count, spread
        self._curves = part.curves(count)
        self._domains, self._providers = part.domains.tolist(), part.providers.tolist()
        self._values = np.unique(self._curves)
        self._limited = spread.provider_limit < count

    def least_bound(self, r: int, under: float) -> float | None:
        """The least bound under `under` at which `r` endpoints hold the gang, or None."""
        low, high = 0, int(np.searchsorted(self._values, under, "left"))
        if np.isinf(under):
            high = int(np.searchsorted(self._values, np.inf, "left"))
        if not high or not self._holds(r, float(self._values[high - 1])):
            return None
        high -= 1
        while low < high:
            middle = (low + high) // 2
            if self._holds(r, float(self._values[middle])):
                high = middle
            else:
                low = middle + 1
        return float(self._values[high])

    def widest(self, r: int, bound: float) -> Ints:
        """The `r` places that take most within the bound, those that end soonest of equals."""
        return self._pool[self._chosen(self._caps(bound), r)]

    def _caps(self, bound: float) -> list[int]:
        return np.count_nonzero(self._curves <= bound, axis=1).tolist()  # type: ignore[no-any-return]

    def _holds(self, r: int, bound: float) -> bool:
        caps = self._caps(bound)
        if self._spread.domains == 1 and not self._limited:
            top = sorted(caps, reverse=True)[:r]
            return len(top) == r and top[-1] > 0 and sum(top) >= self._count
        chosen = self._chosen(caps, r)
        if len(chosen) < r:
            return False
        by_provider: dict[int, int] = {}
        for i in chosen:
            by_provider[self._providers[i]] = by_provider.get(self._providers[i], 0) + caps[i]
        limit = self._spread.provider_limit
        return sum(min(limit, held) for held in by_provider.values()) >= self._count

    def _chosen(self, caps: list[int], r: int) -> list[int]:
        """Greedily the widest: fewer than `r` if there are not so many that take any."""
        ends = self._curves[np.arange(len(caps)), np.maximum(np.array(caps), 1) - 1].tolist()
        order = sorted((i for i, cap in enumerate(caps) if cap), key=lambda i: (-caps[i], ends[i]))
        limit, held = self._spread.provider_limit, dict.fromkeys(self._providers, 0)
        seen: set[int] = set()
        chosen: list[int] = []
        repeats = r - self._spread.domains
        while len(chosen) < r and order:
            taken = None
            gain = 0
            for i in order:
                if self._domains[i] in seen and not repeats:
                    continue
                more = min(caps[i], limit - held[self._providers[i]])
                if taken is None or more > gain:
                    taken, gain = i, more
                if not self._limited or gain == caps[i]:
                    break  # no later one takes more
            if taken is None or (self._limited and gain <= 0):
                break
            repeats -= self._domains[taken] in seen
            seen.add(self._domains[taken])
            held[self._providers[taken]] += max(0, gain)
            chosen.append(taken)
            order.remove(taken)
        return chosen


def _level(scores: Scores, places: Ints, count: int, spread: Spread) -> Split:
    """Gives every endpoint one agent, and each further one to where it ends soonest.

    Curves grow, so these are the `count` least values of the places' curves, the first of each in
    any case.
    """
    order = places.tolist()
    if len(order) == 1:
        return {order[0]: count}
    curves = scores.part(places).curves(count)
    if spread.provider_limit >= count:
        curves[:, 0] = -1.0
        least = np.argsort(curves, axis=None, kind="stable")[:count]
        agents = np.bincount(least // count, minlength=len(order))
        return dict(zip(order, agents.tolist(), strict=True))
    tally = Tally(scores, count, spread)
    for place in order:
        tally.give(place)
    rows = dict(zip(order, curves.tolist(), strict=True))
    while tally.left:
        ends = [(rows[p][tally.split[p]], p) for p in order if tally.may(p)]
        if not ends:
            return {}
        tally.give(min(ends)[1])
    return tally.split
