"""``confidence:h``: DeepConf (arXiv 2508.15260), on line.

The first agents to vote are the warm-up. The confidence which a share h of them never fell under
(by their lowest group confidence) is the threshold, one for all endpoints and frozen: whoever's
group confidence falls under it later is stopped there. Ballots weigh by their lowest group
confidence. h = 0.9 is the paper's DeepConf-high, 0.1 its DeepConf-low. Our warm-up is a quarter of
the agents, four at least, where the paper takes 16 of hundreds: gangs are small.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies.base import Strategy

MIN_WARM_UP = 4
# A weight is at most 1. This much confidence or more counts in full: at it the likeliest tokens
# have, in the geometric mean, a probability of e^-32.
FULL_CONFIDENCE = 32.0


class Confidence(Strategy):
    """Weighs by confidence and stops agents that lose it."""

    def __init__(self, kept_share: float) -> None:
        self.kept_share = kept_share

    def weigh(self, ballot: Ballot) -> float:
        return min(1.0, ballot.least_confidence / FULL_CONFIDENCE)

    def threshold(self, ballots: Sequence[Ballot], num_agents: int) -> float | None:
        num_warm_up = max(MIN_WARM_UP, -(-num_agents // 4))
        # Who wrote less than a window is judged by all it wrote; who wrote nothing is left out.
        known = [b.lowest_confidence for b in ballots[:num_warm_up] if b.lowest_confidence > 0.0]
        if len(ballots) < num_warm_up or not known:
            return None
        return percentile(known, 100.0 * (1.0 - self.kept_share))


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation between ranks, as numpy's default."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100.0
    low = min(int(at), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
