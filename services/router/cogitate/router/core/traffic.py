"""Who leaves an endpoint and who comes to it while a gang is there.

A step takes as long as the sequences in it, and those that are there when a gang is placed are not
those that will be there: gangs before it end, others come. The finish that is told with a placement
takes both into account. Where a gang is placed does not: all endpoints are compared by what is
there now, and who comes later is placed by what is there then.

* Shares that this router placed end when it predicted; who is overdue stays a little longer. Of
  sequences it did not place nobody knows an end: they stay.
* Agents come as often as lately, and stay as long as was predicted for those that came. Half of
  them count: most write less than the longest, which is what was predicted, and whoever places
  them looks for endpoints that were not just given a gang. On real engines predictions are too
  high with all of them, too low with none (README).

Invariants (tests/property/test_router_traffic.py):
1. Without arrivals no more are expected than are there; without ends no fewer.
2. What is expected lies between none, and those there with all that come meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# For how long arrivals are remembered: older ones count less, by e a period.
MEMORY_S = 60.0
# What of its time a share is taken to need still when it should have ended.
_OVERDUE = 0.25
_COUNTED = 0.5


@dataclass(frozen=True, slots=True)
class Stay:
    """A share that runs: when it was placed, when it is expected to end, and of how many agents."""

    from_s: float
    until_s: float
    agents: int

    def left_s(self, now: float) -> float:
        """For how long it is expected to stay."""
        return max(self.until_s - now, _OVERDUE * (self.until_s - self.from_s))


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Agents that come: how many a second, as of a moment, and how long they stay, in seconds."""

    per_s: float = 0.0
    stay_s: float = 0.0
    at_s: float = 0.0

    def at(self, now: float) -> float:
        """Agents a second at `now`."""
        return self.per_s * math.exp(-max(0.0, now - self.at_s) / MEMORY_S)

    def after(self, stay: Stay) -> Arrivals:
        """What is known once a share was placed."""
        before = self.at(stay.from_s)
        came = stay.agents / MEMORY_S
        share = came / (before + came)
        length_s = self.stay_s + share * (stay.until_s - stay.from_s - self.stay_s)
        return Arrivals(before + came, length_s, stay.from_s)


NOBODY: Final = Arrivals()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one endpoint."""

    stays: tuple[Stay, ...] = ()
    arrivals: Arrivals = NOBODY

    def others(self, sequences: int, now: float, duration_s: float) -> float:
        """How many of the sequences there, and of those to come, are there in the mean of a time.

        The time begins now; no more leave than are there.
        """
        if duration_s <= 0.0:
            return float(sequences)
        agents = sum(stay.agents for stay in self.stays)
        gone = sum(s.agents * max(0.0, 1 - s.left_s(now) / duration_s) for s in self.stays)
        staying = sequences - gone * min(1.0, sequences / agents if agents else 1.0)
        stay_s = min(self.arrivals.stay_s, duration_s)
        coming = self.arrivals.at(now) * stay_s * (1 - stay_s / (2 * duration_s))
        return staying + _COUNTED * coming


QUIET: Final = Traffic()
