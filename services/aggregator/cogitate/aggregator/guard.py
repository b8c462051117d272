"""What keeps one contemplation's trouble from becoming another's: breakers and the retry budget.

State owned here, of one aggregator over all its contemplations, soft: which endpoints it does not
use just now, and how many attempts it made beside the first ones. See ADR 0019.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core.breakers import BreakerLimits, Breakers
from cogitate.aggregator.core.retries import RetryBudget
from cogitate.kit import metrics
from cogitate.kit.metric_registry import Metric


@dataclass(slots=True)
class Detour:
    """Which endpoints a question to the router is to leave out, and which it is to try."""

    avoided: frozenset[str]
    probed: frozenset[str]
    used: set[str] = field(default_factory=set)  # where the answer places agents


class Guard:
    """Shared by all runners, in one event loop."""

    def __init__(self, config: AggregatorConfig) -> None:
        self.breakers = Breakers(
            BreakerLimits(
                factor=config.stall_factor,
                floor_s=config.stall_min_s,
                ceiling_s=max(config.stall_min_s, config.stall_max_s),
                failures=config.breaker_failure_count,
                open_s=config.breaker_open_s,
                most_open_s=max(config.breaker_open_s, config.breaker_max_open_s),
            )
        )
        self.retries = RetryBudget(
            config.retry_share, config.retry_floor_count, config.retry_window_s
        )
        self.refusal = (
            f"no more attempts: beside the first of each agent there are {config.retry_share:.0%} "
            f"more in {config.retry_window_s:g} s already; ask again later, or raise retry_share"
        )
        self.num_stalls = self.num_opened = 0
        self.num_hedges_begun = self.num_hedges_won = 0

    def export(self) -> None:
        """Has its numbers read by whoever collects metrics."""
        read = {
            Metric.RETRIES: lambda: metrics.states(
                made=self.retries.num_made, refused=self.retries.num_refused
            ),
            Metric.HEDGES: lambda: metrics.states(
                begun=self.num_hedges_begun, won=self.num_hedges_won
            ),
            Metric.STALLS: lambda: self.num_stalls,
            Metric.BREAKERS_OPENED: lambda: self.num_opened,
            Metric.BREAKERS: self.breakers.num_open,
        }
        metrics.observe(list(read), lambda: {metric: one() for metric, one in read.items()})

    @contextmanager
    def detour(self, slow_at: Collection[str]) -> Iterator[Detour]:
        """For one question. What was to be tried and is not used may be tried by the next."""
        now = time.monotonic()
        found = Detour(
            self.breakers.avoided(now) | frozenset(slow_at),
            self.breakers.probe(now) - frozenset(slow_at),
        )
        try:
            yield found
        finally:
            self.breakers.unused(found.probed - found.used)

    def failed(self, endpoint_id: str, opened_at: float, *, stalled: bool = False) -> None:
        """A gang there was lost, or stalls."""
        self.num_stalls += stalled
        now = time.monotonic()
        self.num_opened += self.breakers.failed(endpoint_id, opened_at, now, stalled=stalled)
