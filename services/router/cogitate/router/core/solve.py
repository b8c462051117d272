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

* A split over the first r of a column, r as small as may be, bounds the best one. No endpoint is
  used whose effective(1), times the penalty of so many, is over that: most of a fleet of unlike
  endpoints is left aside by three columns.
* Some endpoint has at least ceil(N / r) agents, so T >= the least value of that column; and the r
  best of that column are a solution. Most r fall to these two bounds alone.
* Of those under the bound only the first R of each column are needed, since one that is not among
  them can be exchanged for an unused one that is (with domains: or is the best of one of the first
  R domains).

A limit a provider is ``providers``' matter where many endpoints are in question. With both
constraints at once the split by the limit alone, over no fewer endpoints than domains, is the least
if it has domains enough; else domains are served first, and the result may not be the least.
Property test: test_gang_policy_agrees_with_brute_force, test_gang_agrees_with_the_exhaustive_one.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from dataclasses import replace

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core.board import Ints
from cogitate.router.core.deal import Split, Spread, promising
from cogitate.router.core.providers import CLOSE as _CLOSE
from cogitate.router.core.providers import least_within
from cogitate.router.core.scores import Scores

# So many are looked at one by one, and of so many values all columns are made at once.
_SMALL = 128
_VALUES = 2**12
Rows = list[list[float]]  # of curves: the value of one agent more, and of another


def gang(scores: Scores, count: int, spread: Spread) -> Split:
    """Returns the split with the least objective. O(E) array operations, then a few endpoints."""
    fewest = max(spread.domains, -(-count // spread.provider_limit))
    if spread.provider_limit < count and spread.domains > 1:
        found = _least(scores, count, replace(spread, domains=1), fewest)
        if len(set(scores.domains[found[0]].tolist())) < spread.domains:
            found = _least(scores, count, spread, fewest)
    else:
        found = _least(scores, count, spread, fewest)
    return _level(scores, *found, count, spread.provider_limit)


def _least(scores: Scores, count: int, spread: Spread, fewest: int) -> tuple[Ints, Rows]:
    """The best split over at least `fewest` endpoints: places, if any; their curves, if known."""
    penalty = scores.board.model.spread_penalty
    begun = _Beginning(scores, count, spread, fewest)
    best, places = begun.best, begun.places()
    rows: Rows = []
    tried = begun.tried()
    if not tried:
        return places, []
    limit = best / (1 + penalty * (min(r for _, r in tried) - 1))
    if len(begun.part) > _SMALL:
        begun.leave_aside(fewest)
    part, names = begun.part, begun.names
    pool = _able(part, count, tried, limit)
    tried = [low for low in tried if low[1] <= len(pool)]
    if not tried:
        return places, []
    if len(pool) > _SMALL:
        part, names = part.part(pool), names[pool]
        if spread.provider_limit < count and spread.domains == 1:
            found = least_within(part, count, spread.provider_limit, tried, best)
            return (names[found] if len(found) else places), []
        pool = _needed(part, count, spread, tried, limit)
    exact = _Exact(part, pool, count, spread, tried, best)
    for least, r in tried:
        if least >= best * _CLOSE:
            break
        factor = 1 + penalty * (r - 1)
        found_bound = exact.least_bound(r, least / factor, best / factor)
        if found_bound is not None:
            best = found_bound * factor
            if not penalty:
                r = exact.fewest(r, found_bound)
            widest, rows = exact.widest(r, found_bound)
            places = names[widest]
    return places, rows


class _Beginning:
    """What each number of endpoints cannot be better than, and a solution to begin with."""

    def __init__(self, scores: Scores, count: int, spread: Spread, fewest: int) -> None:
        self._whole, self._count, self._spread = scores, count, spread
        self._penalty = penalty = scores.board.model.spread_penalty
        self._limited = spread.provider_limit < count
        self.part, self.names = scores, np.arange(len(scores))  # those in question
        self.best = np.inf
        self._lows: list[tuple[float, int]] = []
        self._winner: tuple[int, float] | None = None
        known: dict[int, tuple[float, list[float], list[float]]] = {}
        of_one = float(scores.effective(1).min())
        for r in range(fewest, min(count, len(scores)) + 1):
            factor = 1 + penalty * (r - 1)
            if of_one * factor >= self.best * _CLOSE:
                break
            k = -(-count // r)
            if k not in known:
                known[k] = self._column(k)
            least, firsts, heads = known[k]
            if least * factor >= self.best * _CLOSE:
                continue
            self._lows.append((least * factor, r))
            value = self._value(r, firsts, heads)
            if value * factor < self.best:
                self.best, self._winner = value * factor, (r, value)
            if r == fewest + 1:
                self.leave_aside(r + 1)

    def tried(self) -> list[tuple[float, int]]:
        """The bounds and numbers that may be better than the solution, the least bound first."""
        return sorted(low for low in self._lows if low[0] < self.best * _CLOSE)

    def places(self) -> Ints:
        """The places of the solution, none if there is none: the first of a column."""
        if self._winner is None:
            return np.arange(0)
        r, value = self._winner
        column = self._whole.effective(-(-self._count // r))
        near = np.flatnonzero(column <= value)
        near = near[column[near].argsort()]
        # Those of different providers keep to any limit.
        labels = self._whole.providers if self._limited else self._whole.domains
        return near[_unlike(labels[near], r, r if self._limited else self._spread.domains)]

    def _column(self, k: int) -> tuple[float, list[float], list[float]]:
        """The least value, the first ones, and the least of each domain or provider, in order."""
        column, scores = self.part.effective(k), self.part
        firsts: list[float] = []
        heads: list[float] = []
        if not self._limited:
            most = min(len(column), self._count if k == 1 else (self._count - 1) // (k - 1))
            least = [column.min()] if most == 1 else np.partition(column, most - 1)[:most]
            firsts = sorted(map(float, least))
        if self._limited or self._spread.domains > 1:
            what = b.PROVIDER if self._limited else b.DOMAIN
            of_each = np.full(scores.board.count(what), np.inf)
            labels = scores.providers if self._limited else scores.domains
            np.minimum.at(of_each, labels, column)
            heads = sorted(of_each.tolist())
        return (firsts or heads)[0], firsts, heads

    def _value(self, r: int, firsts: list[float], heads: list[float]) -> float:
        """The least bound at which `r` endpoints have the column's number of agents each."""
        if self._limited:
            return heads[r - 1] if r <= len(heads) else np.inf
        value = firsts[r - 1] if r <= len(firsts) else np.inf
        return max(value, heads[self._spread.domains - 1]) if heads else value

    def leave_aside(self, after: int) -> None:
        """Leaves out who cannot be in a better solution of the numbers that are in question."""
        fewest = min((r for _, r in self.tried()), default=after)
        factor = 1 + self._penalty * (fewest - 1)
        fits = np.flatnonzero(self.part.effective(1) * factor < self.best * _CLOSE)
        if 0 < len(fits) < len(self.part) // 2:
            self.part, self.names = self.part.part(fits), self.names[fits]


def _able(scores: Scores, count: int, tried: list[tuple[float, int]], limit: float) -> Ints:
    """The places that can have as many agents under `limit` as the others leave each of them."""
    rs = [r for _, r in tried]
    ks = range(1, count - min(rs) + 2)
    if len(scores) * count <= _VALUES:
        scores.curves(count)
    most = bisect_left(ks, True, key=lambda k: bool(scores.effective(k).min() >= limit))
    least = max(1, count - (max(rs) - 1) * most)
    return np.flatnonzero(scores.effective(least) < limit)


def _unlike(labels: Ints, r: int, wanted: int) -> list[int]:
    """Which `r` to take: the first, as few of labels already used as leave `wanted` of them."""
    if wanted == 1:
        return list(range(r))
    seen: set[int] = set()
    taken: list[int] = []
    repeats = r - wanted
    for i, label in enumerate(labels.tolist()):
        if len(taken) == r:
            break
        if label not in seen or repeats:
            repeats -= label in seen
            seen.add(label)
            taken.append(i)
    return taken


def _needed(
    part: Scores, count: int, spread: Spread, tried: list[tuple[float, int]], limit: float
) -> Ints:
    """The places that a split with a bound under `limit` needs at most."""
    fewest = min(r for _, r in tried)
    most = max(r for _, r in tried)
    if spread.provider_limit < count:
        ks = {1, spread.provider_limit, -(-spread.provider_limit // 2)}
        kept = [promising(part, part.effective(k), most, spread) for k in ks]
        return np.unique(np.concatenate(kept))
    if spread.domains == 1:
        # All columns at once. From where so few can have k agents on, those are all there are.
        curves = part.curves(count - fewest + 1)
        able = np.count_nonzero(curves < limit, axis=0)
        last = int(np.argmax(able <= most)) if able[-1] <= most else len(able) - 1
        few = min(most, len(part))
        return np.unique(np.argpartition(curves[:, : last + 1], few - 1, axis=0)[:few])
    kept = []
    for k in range(1, count - fewest + 2):
        column = part.effective(k)
        fits = np.flatnonzero(column < limit)  # nobody else can have k agents and be better
        if len(fits) <= most:
            kept.append(fits)  # whoever can have more than k is among them
            break
        kept.append(promising(part, column, most, spread))
    return np.unique(np.concatenate(kept))


class _Exact:
    """Bisection over the curves of a few places, as lists: of few numbers they are faster."""

    def __init__(
        self,
        scores: Scores,
        pool: Ints,
        count: int,
        spread: Spread,
        tried: list[tuple[float, int]],
        best: float,
    ) -> None:
        penalty = scores.board.model.spread_penalty
        # The soonest first: whoever can have an agent within a bound is before who cannot.
        self._pool = pool = pool[scores.effective(1)[pool].argsort()]
        at: Ints | slice = pool
        if len(scores) * count > _VALUES:
            scores, at = scores.part(pool), slice(None)
        self._count, self._spread = count, spread
        self._limited = spread.provider_limit < count
        fewest = min(r for _, r in tried)
        curves = scores.curves(min(count, spread.provider_limit))[at]
        low = min(least / (1 + penalty * (r - 1)) for least, r in tried) * _CLOSE
        high = best / (1 + penalty * (fewest - 1))
        values = curves[(curves >= low) & (curves < high)]
        self._values: list[float] = sorted(set(values.tolist()))
        self._rows: Rows = curves.tolist()
        self._firsts = [row[0] for row in self._rows]
        if self._limited or spread.domains > 1:
            self._domains = scores.domains[at].tolist()
            self._providers = scores.providers[at].tolist()

    def least_bound(self, r: int, least: float, under: float) -> float | None:
        """The least bound from `least` to under `under` at which `r` endpoints hold the gang."""
        values = self._values
        low, high = bisect_left(values, least * _CLOSE), bisect_left(values, under)
        if low >= high or not self._holds(r, values[high - 1]):
            return None
        held = bisect_left(values, True, low, high - 1, key=lambda bound: self._holds(r, bound))
        return values[held]

    def fewest(self, r: int, bound: float) -> int:
        """How few of `r` endpoints are enough within the bound: where more cost nothing."""
        least = max(1, self._spread.domains)
        while r > least and self._holds(r - 1, bound):
            r -= 1
        return r

    def widest(self, r: int, bound: float) -> tuple[Ints, Rows]:
        """The `r` places that take most within the bound, those that end soonest of equals."""
        chosen = self._chosen(self._caps(bound), r)
        return self._pool[chosen], [self._rows[i] for i in chosen]

    def _caps(self, bound: float) -> list[int]:
        """How many agents each may have, of those that may have any."""
        able = bisect_right(self._firsts, bound)
        return [bisect_right(row, bound) for row in self._rows[:able]]

    def _holds(self, r: int, bound: float) -> bool:
        caps = self._caps(bound)
        widest = sorted(range(len(caps)), key=caps.__getitem__, reverse=True)[:r]
        if len(widest) < r or sum([caps[i] for i in widest]) < self._count:
            return False  # whatever else is asked for
        if self._spread.domains == 1:
            if not self._limited or len({self._providers[i] for i in widest}) == r:
                return True
            if len(gains := self._gains(caps)) >= r:
                return sum(gains[:r]) >= self._count
        chosen = self._chosen(caps, r)
        if len(chosen) < r:
            return False
        held: dict[int, int] = {}
        for i in chosen:
            held[self._providers[i]] = held.get(self._providers[i], 0) + caps[i]
        limit = self._spread.provider_limit
        return sum(min(limit, agents) for agents in held.values()) >= self._count

    def _gains(self, caps: list[int]) -> list[int]:
        """What each adds to its provider, the widest first, as far as its limit; the most first."""
        limit = self._spread.provider_limit
        held: dict[int, int] = {}
        gains: list[int] = []
        for cap, provider in sorted(zip(caps, self._providers, strict=False), reverse=True):
            had = held.get(provider, 0)
            if had < limit:
                gains.append(min(cap, limit - had))
                held[provider] = had + gains[-1]
        return sorted(gains, reverse=True)

    def _chosen(self, caps: list[int], r: int) -> list[int]:
        """Greedily the widest: fewer than `r` if there are not so many that take any."""
        rows = self._rows
        order = sorted(range(len(caps)), key=lambda i: (-caps[i], rows[i][caps[i] - 1]))
        if self._spread.domains == 1 and not self._limited:
            return order[:r]
        return _greedy(order, caps, r, self._domains, self._providers, self._spread)


def _greedy(
    order: list[int],
    caps: list[int],
    r: int,
    domains: list[int],
    providers: list[int],
    spread: Spread,
) -> list[int]:
    """Takes `r` by what they add to their provider, the first in order of equals.

    Each has an agent in the end, so of a provider there are no more than its limit.
    """
    limit = spread.provider_limit
    held, used = dict.fromkeys(providers, 0), dict.fromkeys(providers, 0)
    seen: set[int] = set()
    chosen: list[int] = []
    repeats = r - spread.domains
    while len(chosen) < r and order:
        taken, gain = -1, -1
        for i in order:
            provider = providers[i]
            if used[provider] >= limit or (not repeats and domains[i] in seen):
                continue
            more = min(caps[i], limit - held[provider])
            if more > gain:
                taken, gain = i, more
            if gain == caps[i]:
                break  # no later one takes more
        if taken < 0:
            break
        repeats -= domains[taken] in seen
        seen.add(domains[taken])
        held[providers[taken]] += gain
        used[providers[taken]] += 1
        chosen.append(taken)
        order.remove(taken)
    return chosen


def _level(scores: Scores, places: Ints, rows: Rows, count: int, limit: int) -> Split:
    """Gives every endpoint one agent, and each further one to where it ends soonest.

    Curves grow, so these are the `count` least values of the places' curves, the first of each in
    any case. The rows of curves are made if there are none.
    """
    order = places.tolist()
    if len(order) <= 1:
        return dict.fromkeys(order, count)
    rows = rows or scores.part(places).curves(count).tolist()
    providers = scores.providers[places].tolist()
    split, left = [1] * len(order), dict.fromkeys(providers, limit)
    for provider in providers:
        left[provider] -= 1
    ends = [(row[1], order[i], i) for i, row in enumerate(rows) if len(row) > 1]
    heapq.heapify(ends)
    for _ in range(count - len(order)):
        while ends and not left[providers[ends[0][2]]]:
            heapq.heappop(ends)
        if not ends or ends[0][0] == np.inf:
            return {}
        _, name, i = ends[0]
        split[i] += 1
        left[providers[i]] -= 1
        row = rows[i]
        heapq.heapreplace(ends, (row[split[i]] if split[i] < len(row) else np.inf, name, i))
    return dict(zip(order, split, strict=True))
