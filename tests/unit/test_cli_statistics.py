"""Wilson's interval, percentiles and rows, against known values."""

from __future__ import annotations

import pytest
from cogitate.cli.measure.statistics import Outcome, percentile, row, wilson

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Values of scipy.stats.binomtest(…).proportion_ci(method="wilson").
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (95, 100, 0.8882495, 0.9784563),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert pytest.approx((low, high), abs=1e-6) == wilson(successes, trials)


def test_wilson_holds_the_share_and_narrows() -> None:
    for trials in (1, 7, 100, 1000):
        for successes in range(0, trials + 1, max(1, trials // 7)):
            low, high = wilson(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1
    narrow, wide = wilson(500, 1000), wilson(5, 10)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_percentiles_interpolate() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert (1.0, 2.5, 4.0) == tuple(percentile(values, share) for share in (0, 0.5, 1))
    assert pytest.approx(3.85) == percentile(values, 0.95)
    assert 7.0 == percentile([7.0], 0.95)
    assert 0.0 == percentile([], 0.5)


def test_a_row_sums_up_and_has_the_keys_of_the_contract() -> None:
    outcomes = [
        Outcome(True, 1.0, 10),
        Outcome(False, 3.0, 30),
        Outcome(False, 5.0, 0, error="NO_ENDPOINT"),
    ]
    summed = row("boards", 8, "vote", "unbeatable", outcomes)
    plain = summed.to_json()
    assert {
        "dataset",
        "agents",
        "strategy",
        "quorum",
        "questions",
        "accuracy",
        "ci95",
        "latency_p50_s",
        "latency_p95_s",
        "tokens_mean",
    } <= set(plain)
    assert (3, 0.3333, 3.0, 13.33, 1) == (
        plain["questions"],
        plain["accuracy"],
        plain["latency_p50_s"],
        plain["tokens_mean"],
        plain["errors"],
    )
    assert 0.0 == row("boards", 8, "vote", "all", []).accuracy
