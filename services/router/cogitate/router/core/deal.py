"""How policies hand agents out under the constraints: from a greedy rule, or by filling up.

Constraints are a number of failure domains, and the most agents that any one provider may have, so
that its loss leaves enough of the others. The caller never asks for more than there is room for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from cogitate.router.core.board import Floats, Ints
from cogitate.router.core.scores import Scores

Split = dict[int, int]  # place -> number of agents


@dataclass(frozen=True, slots=True)
class Spread:
    """What a split has to keep to. `provider_limit` is at least the count where nothing limits."""

    domains: int = 1
    provider_limit: int = 2**31


def promising(scores: Scores, key: Floats, most: int, spread: Spread) -> Ints:
    """Places that suffice to take `most` endpoints in the order of `key`: no other can be needed.

    They are the first `most` of all, and under constraints the best of the first domains and the
    first of each provider. O(E), with providers O(E log E).
    """
    if len(key) <= most:
        return np.arange(len(key))
    if spread.provider_limit < len(scores.need.agent_ids):
        order = np.lexsort((key, scores.providers))
        provider = scores.providers[order]
        starts = np.flatnonzero(np.r_[True, provider[1:] != provider[:-1]])
        rank = np.arange(len(key)) - np.repeat(starts, np.diff(np.r_[starts, len(key)]))
        first = order[rank < most]
    else:
        first = np.argpartition(key, most - 1)[:most]
    if spread.domains > 1:
        domains = scores.domains
        best = np.full(int(domains.max()) + 1, np.inf)
        np.minimum.at(best, domains, key)
        heads = np.flatnonzero((key == best[domains]) & np.isfinite(key))
        if len(heads) > most:
            heads = heads[np.argpartition(key[heads], most - 1)[:most]]
        first = np.union1d(first, heads)
    return first


class Tally:
    """What a split uses so far, and what it may still use."""

    def __init__(self, scores: Scores, count: int, spread: Spread) -> None:
        self.split: Split = {}
        self.left = count
        self._room = scores.room
        self._domains, self._providers = scores.domains, scores.providers
        self._spread = spread
        self._seen: set[int] = set()
        self._by_provider: dict[int, int] = {}

    def may(self, place: int) -> bool:
        """Whether one more agent may go there."""
        held = self._by_provider.get(int(self._providers[place]), 0)
        return (
            self.left > 0
            and self.split.get(place, 0) < self._room[place]
            and held < self._spread.provider_limit
        )

    def give(self, place: int, agents: int = 1) -> None:
        """Gives it so many agents, or as many as it may have."""
        provider = int(self._providers[place])
        held = self._by_provider.get(provider, 0)
        has = self.split.get(place, 0)
        limit = self._spread.provider_limit - held
        more = min(agents, self.left, limit, int(self._room[place]) - has)
        if more > 0:
            self.split[place] = has + more
            self.left -= more
            self._by_provider[provider] = held + more
            self._seen.add(int(self._domains[place]))

    def first_of_domains(self, order: Iterable[int]) -> None:
        """One agent to the first of each domain, until there are as many domains as asked for."""
        for place in order:
            if len(self._seen) >= self._spread.domains or not self.left:
                return
            if int(self._domains[place]) not in self._seen and self.may(place):
                self.give(place)


def fill(scores: Scores, count: int, spread: Spread, key: Floats) -> Split:
    """Fills endpoints up in the order of `key`, after the first of as many domains as needed."""
    order = np.argsort(key, kind="stable").tolist()
    tally = Tally(scores, count, spread)
    tally.first_of_domains(order)
    used = list(tally.split)
    for place in (*used, *order):
        if not tally.left:
            break
        tally.give(place, tally.left)
    return tally.split


def greedy(
    scores: Scores, count: int, spread: Spread, cost: Callable[[Ints, int], Floats]
) -> Split:
    """Gives each agent to where `cost(places, k)` of the k-th agent there is least.

    The cost of a first agent decides which endpoints can come into question at all.
    """
    first = cost(np.arange(len(scores)), 1) + 1e-12 * scores.mixed
    places = promising(scores, first, count, spread)
    places = places[np.argsort(first[places], kind="stable")]
    tally = Tally(scores, count, spread)
    tally.first_of_domains(places.tolist())
    queue = [
        (
            float(first[p]) if not (k := tally.split.get(p, 0)) else _one(cost, p, k + 1),
            i,
            p,
        )
        for i, p in enumerate(places.tolist())
    ]
    heapq.heapify(queue)
    while tally.left and queue:
        _, i, place = heapq.heappop(queue)
        if tally.may(place):
            tally.give(place)
            if tally.may(place):
                heapq.heappush(queue, (_one(cost, place, tally.split[place] + 1), i, place))
    if tally.left:  # what came into question is full: the rest in the same order
        for place in np.argsort(first, kind="stable").tolist():
            tally.give(place, tally.left)
    return tally.split


def _one(cost: Callable[[Ints, int], Floats], place: int, k: int) -> float:
    return float(cost(np.array([place]), k)[0])
