"""What differs between two settings that answered the same questions. Pure.

Invariants (`tests/property/test_measure.py`):
1. Every interval contains its estimate.
2. Swapped settings swap the sign of the difference and turn the ratio over.
3. The same pairs give the same numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cogitate.cli.measure.statistics import Z95, Outcome, percentile

_RESAMPLES: Final = 2000
_SEED: Final = 20_251

# The outcomes of one question in the first and in the second setting; several if it was repeated.
Pair = Sequence[tuple[Outcome, Outcome]]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The second setting beside the first.

    `accuracy` is second minus first, from -1 to 1. Ratios are second over first, of tokens and of
    mean latency where both answered, None where the first spent nothing. `only_first` and
    `only_second` count runs that only one of them had right.
    """

    questions: int
    runs: int
    accuracy: Estimate
    only_first: int
    only_second: int
    mcnemar_p: float | None
    tokens: Estimate | None
    latency: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Returns the difference as the JSON file has it."""
        told = asdict(self)
        for name in ("accuracy", "tokens", "latency"):
            if told[name] is not None:
                told[name] = {key: round(value, 5) for key, value in told[name].items()}
        return told


def difference(pairs: Sequence[Pair]) -> Difference:
    """Compares two settings; `pairs` has one entry a question."""
    flat = [pair for question in pairs for pair in question]
    only_first = sum(first.right and not second.right for first, second in flat)
    only_second = sum(second.right and not first.right for first, second in flat)
    gains = [sum(b.right - a.right for a, b in question) / len(question) for question in pairs]
    single = len(flat) == len(pairs)
    return Difference(
        questions=len(pairs),
        runs=len(flat),
        accuracy=mean_difference(gains),
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=mcnemar(only_first, only_second) if single else None,
        tokens=ratio(
            [(sum(a.tokens for a, _ in one), sum(b.tokens for _, b in one)) for one in pairs]
        ),
        latency=ratio(
            [
                (sum(a.latency_s for a, _ in both), sum(b.latency_s for _, b in both))
                for one in pairs
                if (both := [(a, b) for a, b in one if not (a.error or b.error)])
            ]
        ),
    )


def mean_difference(gains: Sequence[float]) -> Estimate:
    """Returns the mean of paired gains, each from -1 to 1, with Bonett and Price's interval.

    The interval adds one question that only the first has right and one that only the second has,
    so that settings which never differed do not look as if they never could. Source: Bonett and
    Price, J. Educ. Behav. Stat. 37 (2012); for repeated questions with the mean gain of each.
    """
    if not gains:
        return Estimate(0.0, -1.0, 1.0)
    value = math.fsum(gains) / len(gains)
    count = len(gains) + 2
    centre = math.fsum(gains) / count
    variance = (math.fsum(gain * gain for gain in gains) + 2) / count - centre * centre
    half = Z95 * math.sqrt(variance / count)
    return Estimate(value, max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the exact two-sided p of "both are right equally often"; 1 if they never differ."""
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << count))


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Returns the sum of second values over that of first ones, with a paired bootstrap's interval.

    Resamples questions 2,000 times with a fixed seed and takes percentiles. None if the first
    values sum to nothing.
    """
    firsts, seconds = ([pair[i] for pair in pairs] for i in (0, 1))
    below = math.fsum(firsts)
    if below <= 0:
        return None
    value = math.fsum(seconds) / below
    dice = random.Random(_SEED)
    drawn = []
    for _ in range(_RESAMPLES):
        chosen = dice.choices(range(len(pairs)), k=len(pairs))
        if (spent := sum(map(firsts.__getitem__, chosen))) > 0:
            drawn.append(sum(map(seconds.__getitem__, chosen)) / spent)
    low, high = (percentile(drawn, share) for share in (0.025, 0.975))
    return Estimate(value, min(low, value), max(high, value))
