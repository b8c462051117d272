"""Where no provider may have more than so many agents of a gang: the policy `gang`, exact again.

For a bound T on the effective duration an endpoint can take cap(T) agents. Those of one provider,
the widest first, are worth min(limit, sum of their caps), a concave sum: what each adds only
shrinks. So r endpoints hold the gang iff the r largest of all these gains do, and the least T at
which they do is looked for, for each r that can still win:

* To begin with (``solve``): the best endpoint of each of r providers, for ceil(N / r) agents, is a
  solution.
* One look at the whole fleet, a hair under the best that is known, tells whether r endpoints can be
  better. It counts caps by provider, so it needs no sorting. Mostly they cannot.
* If they can, those found are levelled among themselves, which lowers the bound, and so on. Every
  other look halves what is left above the least that r endpoints can take (as in ``solve``).

Property tests: test_gang_with_survivors_agrees_with_brute_force and
test_gang_with_survivors_agrees_with_all_values_tried.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core.board import Ints
from cogitate.router.core.scores import Scores

# What is better by less is no better: equal endpoints are told apart by less.
CLOSE = 1 - 1e-7
_MOST = float(np.finfo(np.float64).max)


def least_within(
    scores: Scores, count: int, limit: int, tried: list[tuple[float, int]], best: float
) -> Ints:
    """The places of the split with the least objective; none if none is better than `best`.

    `tried` are numbers of endpoints, each with what it cannot be better than.
    """
    penalty = scores.board.model.spread_penalty
    places = np.arange(0)
    looks: _Looks | None = None
    for least, r in tried:
        factor, is_near = 1 + penalty * (r - 1), True
        low = least / factor
        while low * factor < best * CLOSE:
            bound = min(_MOST, best / factor * CLOSE)
            if looks is None:
                fewest = min(r for _, r in tried)
                highest = min(_MOST, best / (1 + penalty * (fewest - 1)) * CLOSE)
                looks = _Looks(scores, count, limit, highest)
            if not is_near and bound < _MOST:
                bound = (low + bound) / 2
            caps, needed = looks.fewest(bound)
            if needed is not None and needed <= r:
                places, value = looks.levelled(caps, needed)
                best = value * (1 + penalty * (needed - 1))
            elif is_near:
                break
            else:
                low = float(np.nextafter(bound, np.inf))
            is_near = not is_near
    return places


class _Looks:
    """The fleet's curves as far as they are under the highest bound in question."""

    def __init__(self, scores: Scores, count: int, limit: int, highest: float) -> None:
        self._count, self._limit = count, limit
        self._places = np.flatnonzero(scores.effective(1) <= highest)
        part = scores.part(self._places)
        # One row a number of agents, so that what is added up lies side by side.
        self._curves = np.ascontiguousarray(part.curves(limit).T)
        self._providers = part.providers
        self._width = limit + 1
        self._base = self._providers * self._width
        self._cells = scores.board.count(b.PROVIDER) * self._width
        # Of a provider no more of each width than fill its limit, the widest first.
        widths = np.arange(limit, 0, -1)
        self._enough = -(-limit // widths)
        self._widths = np.tile(widths, scores.board.count(b.PROVIDER))

    def fewest(self, bound: float) -> tuple[Ints, int | None]:
        """How many agents each can take, and how few endpoints hold the gang: None, if none do."""
        fits = (self._curves <= bound).view(np.int8)
        caps = np.add.reduce(fits, axis=0, dtype=np.int8 if self._limit < 128 else np.int64)
        counts = np.bincount(self._base + caps, minlength=self._cells)
        table = np.minimum(counts.reshape(-1, self._width)[:, :0:-1], self._enough)
        ends = np.cumsum(table.sum(axis=1))
        gains = _gains(np.repeat(self._widths, table.ravel()), ends, self._limit)
        held = np.cumsum(np.sort(gains)[::-1])
        if not len(held) or held[-1] < self._count:
            return caps, None
        return caps, int(np.searchsorted(held, self._count, "left")) + 1

    def levelled(self, caps: Ints, r: int) -> tuple[Ints, float]:
        """The `r` places that gain most, of equals those that end soonest; their least bound."""
        open_ = np.flatnonzero(caps)
        widths = caps[open_].astype(np.int64)
        ends = self._curves[widths - 1, open_]
        order = np.lexsort((ends, -widths, self._providers[open_]))
        providers = self._providers[open_[order]]
        last = np.append(np.flatnonzero(np.diff(providers)), len(providers) - 1) + 1
        gains = _gains(widths[order], last, self._limit)
        taken = open_[order[np.lexsort((ends[order], -gains))[:r]]]
        rows, names = self._curves[:, taken].T.tolist(), self._providers[taken].tolist()
        values = sorted({value for row in rows for value in row})
        found = bisect_left(values, True, key=lambda value: self._holds(rows, names, value))
        return self._places[taken], values[found]

    def _holds(self, rows: list[list[float]], names: list[int], bound: float) -> bool:
        held: dict[int, int] = {}
        for row, name in zip(rows, names, strict=True):
            cap = bisect_right(row, bound)
            if not cap:
                return False  # each of them is to have an agent
            held[name] = min(self._limit, held.get(name, 0) + cap)
        return sum(held.values()) >= self._count


def _gains(widths: Ints, ends: Ints, limit: int) -> Ints:
    """What each adds to its provider, whose endpoints follow one another up to its end."""
    held = np.cumsum(widths)
    lengths = np.diff(ends, prepend=0)
    before = np.concatenate(([0], held))[ends - lengths]
    held = np.minimum(held - np.repeat(before, lengths), limit)
    gains: Ints = np.diff(held, prepend=0)
    starts = (ends - lengths)[lengths > 0]
    gains[starts] = held[starts]
    return gains
