"""Intervals, percentiles, rows and paired differences, against known values."""

from __future__ import annotations

import math

import pytest
from cogitate.cli.measure.paired import difference, mcnemar, mean_difference, ratio
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


def test_percentiles_interpolate() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert (1.0, 2.5, 4.0) == tuple(percentile(values, share) for share in (0, 0.5, 1))
    assert pytest.approx(3.85) == percentile(values, 0.95)
    assert 7.0 == percentile([7.0], 0.95)
    assert 0.0 == percentile([], 0.5)


def test_a_row_counts_everything_and_hides_no_failure() -> None:
    outcomes = [
        Outcome(True, 1.0, 10, used_tokens=10, first_answer_s=0.5, agreement=1.0),
        Outcome(False, 3.0, 30, 10, 15, 5, first_answer_s=1.5, agreement=0.5, abstained=True),
        Outcome(False, 0.001, 5, 0, 0, 5, error="NO_ENDPOINT", left_out=("INITIAL_AGENT_COUNT",)),
    ]
    summed = row(outcomes)
    assert (3, 3, 1, 1, 1) == (
        summed.questions,
        summed.runs,
        summed.right,
        summed.failed,
        summed.abstained,
    )
    # A failure answers fast; it must not make the others look so.
    assert (2.0, 2.0, 1.0) == (
        summed.latency_mean_s,
        summed.latency_p50_s,
        summed.first_answer_p50_s,
    )
    assert (15.0, 45.0, 0.75) == (summed.tokens_mean, summed.tokens_per_right, summed.agreement)
    assert pytest.approx(summed.tokens_mean) == (
        summed.used_mean + summed.killed_mean + summed.lost_mean
    )
    plain = summed.to_json()
    assert ({"NO_ENDPOINT": 1}, 0.3333) == (plain["errors"], plain["accuracy"])
    assert plain["left_out"] == ["INITIAL_AGENT_COUNT"]
    nothing = row([])
    assert (0.0, None, None) == (nothing.accuracy, nothing.tokens_per_right, nothing.agreement)


def test_repeats_do_not_narrow_the_interval_as_if_they_were_new_questions() -> None:
    once = row([Outcome(i < 5, 1.0, 1) for i in range(10)])
    thrice = row([Outcome(i % 10 < 5, 1.0, 1) for i in range(30)], questions=10)
    assert once.ci95 == thrice.ci95
    assert 30 == thrice.runs


def test_bonett_and_price() -> None:
    # 50 questions: only the first right 9 times, only the second 3 times.
    gains = [-1.0] * 9 + [1.0] * 3 + [0.0] * 38
    found = mean_difference(gains)
    p12, p21 = 10 / 52, 4 / 52
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 52)
    assert found.value == pytest.approx(-6 / 50)
    assert (found.low, found.high) == pytest.approx((p21 - p12 - half, p21 - p12 + half), abs=1e-6)
    never = mean_difference([0.0] * 200)
    assert never.low < 0.0 < never.high, "never having differed is no proof that it can't"


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    # Values of scipy.stats.binomtest(k, n).pvalue.
    [(3, 9, 0.14599609375), (9, 3, 0.14599609375), (0, 5, 0.0625), (4, 4, 1.0), (0, 0, 1.0)],
)
def test_mcnemar(only_first: int, only_second: int, p: float) -> None:
    assert pytest.approx(p) == mcnemar(only_first, only_second)


def test_a_ratio_is_of_sums_and_its_interval_shows_the_spread() -> None:
    assert ratio([]) is None
    assert ratio([(0.0, 3.0)]) is None
    half = ratio([(100.0, 50.0)] * 20)
    assert half is not None
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    spread = ratio([(100.0, 20.0), (100.0, 80.0)] * 20)
    assert spread is not None
    assert 0.35 < spread.low < 0.5 < spread.high < 0.65


def test_a_difference_pairs_runs_and_leaves_failures_out_of_latency() -> None:
    first = [Outcome(True, 2.0, 100), Outcome(True, 2.0, 100), Outcome(False, 2.0, 100)]
    second = [Outcome(True, 1.0, 40), Outcome(False, 9.0, 0, error="X"), Outcome(True, 1.0, 60)]
    found = difference([[pair] for pair in zip(first, second, strict=True)])
    assert (3, 3, 1, 1) == (found.questions, found.runs, found.only_first, found.only_second)
    assert found.accuracy.value == 0.0
    assert found.tokens is not None
    assert found.latency is not None
    assert (found.tokens.value, found.latency.value) == pytest.approx((1 / 3, 0.5))
    assert found.mcnemar_p == 1.0
    twice = difference([[(first[0], second[0]), (first[1], second[1])]])
    assert (twice.runs, twice.mcnemar_p) == (2, None), "repeats are not independent"
    assert twice.accuracy.value == pytest.approx(-0.5)
