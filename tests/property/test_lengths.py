"""What agents are expected to write, whatever others of their kind wrote."""

from __future__ import annotations

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


@given(st.lists(st.tuples(kinds, st.integers(0, 10**6)), max_size=40), kinds)
def test_what_is_expected_is_within_what_may_be(seen: list[tuple[Kind, int]], kind: Kind) -> None:
    lengths = Lengths()
    for other, longest in seen:
        lengths.learn(other, longest)
    expected = lengths.expected(kind)
    assert expected >= max(1, kind.least)
    assert not kind.most or expected <= max(kind.least, kind.most)


@given(kinds, st.integers(50, 4000), st.lists(st.integers(1, 4000), max_size=20))
def test_a_length_that_stays_is_learned(kind: Kind, length: int, before: list[int]) -> None:
    kind, lengths = replace(kind, least=0, most=0), Lengths()
    for other in before:
        lengths.learn(kind, other)
    for _ in range(60):
        lengths.learn(kind, length)
    assert lengths.expected(kind) == pytest.approx(length, rel=0.1)


def test_kinds_are_told_apart_and_the_closest_is_asked_first() -> None:
    lengths, one = Lengths(), Kind("m", "", 1, most=4000)
    assert lengths.expected(one) == GUESS
    lengths.learn(one, 100)
    eight = replace(one, count=8)
    assert lengths.expected(eight) == 100  # nothing closer is known
    for _ in range(3):
        lengths.learn(eight, 400)
    assert (lengths.expected(one), lengths.expected(eight)) == (100, 400)
    assert lengths.expected(replace(one, role="verify")) == GUESS
    assert lengths.expected(replace(one, prompt=500)) == 100
    lengths.learn(replace(one, prompt=500), 900)
    assert lengths.expected(replace(one, prompt=450)) == 900
    assert lengths.expected(one) == 100
    assert lengths.expected(replace(one, most=60)) == 60


def test_only_so_many_kinds_are_remembered() -> None:
    lengths = Lengths()
    for number in range(MOST_KINDS):
        lengths.learn(Kind(f"m{number}", "", 1), 10)
    assert len(lengths._known) <= MOST_KINDS
    assert lengths.expected(Kind(f"m{MOST_KINDS - 1}", "", 1)) == 10
    assert lengths.expected(Kind("m0", "", 1)) == GUESS
