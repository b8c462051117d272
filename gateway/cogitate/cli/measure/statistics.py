"""The numbers of an evaluation. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Outcome:
    """One question asked once; no answer counts as wrong, and `error` says why there is none."""

    right: bool
    latency_s: float
    tokens: int
    proved: bool = False
    error: str = ""


@dataclass(frozen=True)
class Row:
    """What was measured in one setting."""

    dataset: str
    agents: int
    strategy: str
    quorum: str
    questions: int
    right: int
    latency_p50_s: float
    latency_p95_s: float
    tokens_mean: float
    errors: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.questions if self.questions else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(self.right, self.questions)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as the JSON file has it."""
        return {
            "dataset": self.dataset,
            "agents": self.agents,
            "strategy": self.strategy,
            "quorum": self.quorum,
            "questions": self.questions,
            "accuracy": round(self.accuracy, 4),
            "ci95": [round(bound, 4) for bound in self.ci95],
            "latency_p50_s": round(self.latency_p50_s, 4),
            "latency_p95_s": round(self.latency_p95_s, 4),
            "tokens_mean": round(self.tokens_mean, 2),
            "errors": self.errors,
        }


def row(dataset: str, agents: int, strategy: str, quorum: str, outcomes: Sequence[Outcome]) -> Row:
    """Sums up outcomes."""
    latencies = [one.latency_s for one in outcomes]
    count = len(outcomes)
    return Row(
        dataset=dataset,
        agents=agents,
        strategy=strategy,
        quorum=quorum,
        questions=count,
        right=sum(one.right for one in outcomes),
        latency_p50_s=percentile(latencies, 0.5),
        latency_p95_s=percentile(latencies, 0.95),
        tokens_mean=sum(one.tokens for one in outcomes) / count if count else 0.0,
        errors=sum(bool(one.error) for one in outcomes),
    )


def wilson(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Returns Wilson's score interval for a share; (0, 1) when nothing was tried.

    Source: E. B. Wilson, JASA 22 (1927). Unlike the normal interval it stays within 0 to 1 and is
    honest for shares near them.
    """
    if not trials:
        return 0.0, 1.0
    share = successes / trials
    weight = z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    # The bounds at the ends are exact; rounding must not carry them beyond.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def percentile(values: Sequence[float], share: float) -> float:
    """Returns a percentile by linear interpolation between the closest ranks; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
