"""The numbers of an evaluation. Pure.

Invariants (`tests/property/test_measure.py`):
1. An interval contains its estimate and stays within its range.
2. Rows do not depend on the order of outcomes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

Z95: Final = 1.959963984540054


@dataclass(frozen=True)
class Outcome:
    """What came of one asking; no answer counts as wrong, and `error` says why there is none.

    Tokens are sampled ones, `tokens` = used + killed + lost. Times are as the client sees them:
    `latency_s` to the verdict, `first_answer_s` to the first text of an agent's answer or of the
    verdict, None if none came. `agreement` is the share of ballots for the verdict, None without
    ballots. `left_out` names what was asked for and the mesh does not do.
    """

    right: bool
    latency_s: float
    tokens: int
    used_tokens: int = 0
    killed_tokens: int = 0
    lost_tokens: int = 0
    first_answer_s: float | None = None
    agreement: float | None = None
    proved: bool = False
    abstained: bool = False
    degraded: bool = False
    error: str = ""
    answer: str = ""
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as a line of the results has it."""
        return {**asdict(self), "left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Outcome:
        """Returns the outcome of a line. Raises TypeError for other fields."""
        return cls(**{**told, "left_out": tuple(told.get("left_out", ()))})


@dataclass(frozen=True)
class Row:
    """What was measured in one setting.

    `questions` are different ones, `runs` all askings of them. Latencies are those of runs that
    ended with a verdict; means of tokens are over all runs, failed ones included.
    """

    questions: int
    runs: int
    right: int
    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    first_answer_p50_s: float | None
    tokens_mean: float
    used_mean: float
    killed_mean: float
    lost_mean: float
    tokens_per_right: float | None
    agreement: float | None
    abstained: int = 0
    degraded: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Runs without a verdict."""
        return sum(self.errors.values())

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.runs if self.runs else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy.

        Answers to one question asked again are not independent. As if they were wholly dependent,
        it counts questions and not runs: exact for one run a question, cautious for more.
        """
        return wilson(self.accuracy * self.questions, self.questions)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as the JSON file has it."""
        told = {**asdict(self), "accuracy": self.accuracy, "ci95": list(self.ci95)}
        return {name: _rounded(value) for name, value in told.items()}


def row(outcomes: Sequence[Outcome], questions: int | None = None) -> Row:
    """Sums up outcomes of `questions` different questions, as many as outcomes if not given."""
    answered = [one for one in outcomes if not one.error]
    latencies = sorted(one.latency_s for one in answered)
    firsts = [one.first_answer_s for one in answered if one.first_answer_s is not None]
    agreements = sorted(one.agreement for one in answered if one.agreement is not None)
    right = sum(one.right for one in outcomes)
    tokens = sum(one.tokens for one in outcomes)
    runs = len(outcomes)

    def per_run(count: int) -> float:
        return count / runs if runs else 0.0

    return Row(
        questions=runs if questions is None else questions,
        runs=runs,
        right=right,
        latency_mean_s=math.fsum(latencies) / len(latencies) if latencies else 0.0,
        latency_p50_s=percentile(latencies, 0.5),
        latency_p95_s=percentile(latencies, 0.95),
        first_answer_p50_s=percentile(firsts, 0.5) if firsts else None,
        tokens_mean=per_run(tokens),
        used_mean=per_run(sum(one.used_tokens for one in outcomes)),
        killed_mean=per_run(sum(one.killed_tokens for one in outcomes)),
        lost_mean=per_run(sum(one.lost_tokens for one in outcomes)),
        tokens_per_right=tokens / right if right else None,
        agreement=math.fsum(agreements) / len(agreements) if agreements else None,
        abstained=sum(one.abstained for one in outcomes),
        degraded=sum(one.degraded for one in outcomes),
        errors=dict(sorted(Counter(one.error for one in outcomes if one.error).items())),
        left_out=tuple(sorted({name for one in outcomes for name in one.left_out})),
    )


def wilson(successes: float, trials: int, z: float = Z95) -> tuple[float, float]:
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


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
