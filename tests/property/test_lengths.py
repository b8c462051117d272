"""What agents are expected to write, whatever others of their kind wrote."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from cogitate.aggregator.core.lengths import GUESS, MOST_KINDS, Kind, Lengths
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

kinds = st.builds(
    Kind,
    st.sampled_from(["mini", "large"]),
    st.sampled_from(["", "verify"]),
    st.integers(1, 64),
    st.integers(0, 50),
    st.one_of(st.just(0), st.integers(50, 4000)),
)


gangs = st.lists(st.integers(0, 10**6), min_size=1, max_size=12)


@given(st.lists(st.tuples(kinds, gangs), max_size=40), kinds)
def test_what_is_expected_is_within_what_may_be(
    seen: list[tuple[Kind, list[int]]], kind: Kind
) -> None:
    lengths = Lengths()
    for other, written in seen:
        lengths.learn(other, written)
    expected = lengths.expected(kind)
    assert expected >= max(1, kind.least)
    assert not kind.most or expected <= max(kind.least, kind.most)
    assert 1 <= lengths.mean(kind) <= expected


@given(kinds, st.integers(50, 4000), st.lists(st.integers(1, 4000), max_size=20))
def test_a_length_that_stays_is_learned(kind: Kind, length: int, before: list[int]) -> None:
    kind, lengths = replace(kind, least=0, most=0), Lengths()
    for other in before:
        lengths.learn(kind, [other])
    for _ in range(60):
        lengths.learn(kind, [length // 2, length])
    assert lengths.expected(kind) == pytest.approx(length, rel=0.1)


@given(st.lists(st.lists(st.integers(1, 4000), min_size=1, max_size=7), min_size=1, max_size=7))
def test_of_more_agents_no_less_is_expected(seen: list[list[int]]) -> None:
    lengths = Lengths()
    for written in seen:
        lengths.learn(Kind("m", "", len(written)), written)
    expected = [lengths.expected(Kind("m", "", count)) for count in range(1, 40)]
    assert expected == sorted(expected)


def test_the_longest_of_many_is_expected_from_what_single_ones_wrote() -> None:
    """Of agents whose lengths are spread like a lognormal, within a tenth of the true middle."""
    draw, lengths = random.Random(3), Lengths()
    for _ in range(64):
        lengths.learn(Kind("m", "", 1), [round(math.exp(draw.gauss(5, 0.4)))])
    for count in (2, 4, 8, 16):
        longest = [max(math.exp(draw.gauss(5, 0.4)) for _ in range(count)) for _ in range(2000)]
        middle = sorted(longest)[1000]
        assert lengths.expected(Kind("m", "", count)) == pytest.approx(middle, rel=0.15)
    assert lengths.mean(Kind("m", "", 8)) == pytest.approx(math.exp(5 + 0.4**2 / 2), rel=0.15)


def test_half_that_may_write_no_more_are_the_middle() -> None:
    """A mean of logarithms would expect less than what most gangs write: the limit."""
    lengths, kind = Lengths(), Kind("m", "", 4, most=96)
    for number in range(40):
        lengths.learn(kind, [20, 30, 40, 96 if number % 3 else 50])
    assert lengths.expected(kind) == 96


def test_gangs_whose_agents_write_alike_are_believed_once_there_are_enough() -> None:
    lengths, kind = Lengths(), Kind("m", "", 8)
    for number in range(20):
        lengths.learn(kind, [100 if number % 2 else 400] * 8)
    lengths.learn(kind, [100] * 8)
    assert lengths.expected(kind) == 100  # as most gangs, where single ones would say 400
    assert lengths.expected(replace(kind, count=2)) == 400


def test_kinds_are_told_apart_and_the_closest_is_asked_first() -> None:
    lengths, one = Lengths(), Kind("m", "", 1, most=4000)
    assert lengths.expected(one) == GUESS
    lengths.learn(one, [0])
    assert lengths.expected(one) == GUESS
    lengths.learn(one, [100])
    eight = replace(one, count=8)
    assert 100 < lengths.expected(eight) < 300
    for _ in range(8):
        lengths.learn(eight, [10] * 7 + [400])
    assert lengths.expected(eight) == 400
    assert lengths.expected(replace(one, role="verify")) == GUESS
    other = replace(one, prompt=500)
    assert lengths.expected(other) == lengths.expected(one)
    for _ in range(8):
        lengths.learn(other, [900])
    assert lengths.expected(replace(one, prompt=450)) == 900
    assert lengths.expected(one) < 100
    assert lengths.expected(replace(one, most=60)) <= 60


def test_only_so_many_kinds_are_remembered() -> None:
    lengths = Lengths()
    for number in range(MOST_KINDS):
        lengths.learn(Kind(f"m{number}", "", 1), [10])
    assert len(lengths._known) <= MOST_KINDS
    assert lengths.expected(Kind(f"m{MOST_KINDS - 1}", "", 1)) == 10
    assert lengths.expected(Kind("m0", "", 1)) == GUESS
