"""The count and the quorum rules, for all ballots."""

from __future__ import annotations

from itertools import product

import pytest
from cogitate.aggregator.core.ballots import Ballot, count
from cogitate.aggregator.core.outcome import outcome_of
from cogitate.aggregator.core.quorums import (
    all_voted,
    first,
    least_needed,
    quorum,
    unbeatable,
    verified,
)
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

KEYS = ["", "1", "2", "3"]


@st.composite
def ballots(draw: st.DrawFn, most: int = 7, weighted: bool = True) -> list[Ballot]:
    weights = st.floats(0, 1) if weighted else st.just(1.0)
    made = []
    for agent_id in range(draw(st.integers(0, most))):
        key = draw(st.sampled_from(KEYS))
        made.append(
            Ballot(
                agent_id=agent_id,
                attempt=1,
                answer=f"It is {key} ({draw(st.integers(0, 1))})" if key else "I can't",
                key=key,
                proved=bool(key) and draw(st.integers(0, 9)) == 0,
                weight=draw(weights),
                mean_logprob=draw(st.sampled_from([-2.0, -1.0, -0.5])),
            )
        )
    return made


@given(ballots(), st.randoms(use_true_random=False))
def test_the_order_of_ballots_changes_nothing(cast: list[Ballot], random: object) -> None:
    shuffled = list(cast)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = all_voted(cast, 0), all_voted(shuffled, 0)
    assert one == other
    assert one is not None
    first, second = outcome_of(cast, one, ()), outcome_of(shuffled, one, ())
    assert (first.answer, first.key, first.proved) == (second.answer, second.key, second.proved)
    keys = [tally.key for tally in count(cast)]
    assert keys == [tally.key for tally in count(shuffled)]


@given(ballots(most=6, weighted=False), st.integers(0, 4))
def test_unbeatable_decides_as_all_would_for_every_completion(
    cast: list[Ballot], num_open: int
) -> None:
    decision = unbeatable(cast, num_open)
    if decision is None:
        return
    for completion in product([*KEYS, "4"], repeat=num_open):
        rest = [
            Ballot(len(cast) + i, 1, key, key, proved=bool(key), mean_logprob=0.0)
            for i, key in enumerate(completion)
        ]
        final = all_voted([*cast, *rest], 0)
        assert final is not None
        assert final.key == decision.key


@given(ballots(weighted=False))
def test_a_decision_is_not_undone_by_further_ballots(cast: list[Ballot]) -> None:
    for rule in (unbeatable, verified, all_voted, first(1), first(2), first(3)):
        decided = ""
        for number in range(len(cast) + 1):
            decision = rule(cast[:number], len(cast) - number)
            if decided:
                assert decision is not None
                assert decision.key == decided
            elif decision is not None and number < len(cast):
                decided = decision.key


@given(ballots(), st.integers(1, 5))
def test_nobody_decides_early_without_a_reason(cast: list[Ballot], num_open: int) -> None:
    assert all_voted(cast, num_open) is None
    if not any(ballot.proved for ballot in cast):
        assert verified(cast, num_open) is None
    if not any(ballot.key for ballot in cast):
        assert unbeatable(cast, num_open) is None


NAMES = ["all", "unbeatable", "verified", "unanimous:2", "first:2", "posterior:0.8"]


@given(st.sampled_from(NAMES), ballots())
def test_every_rule_decides_when_nobody_is_left(name: str, cast: list[Ballot]) -> None:
    decision = quorum(name)(cast, 0)
    assert decision is not None
    assert bool(decision.key) == any(ballot.key for ballot in cast)


@given(st.sampled_from(NAMES), ballots(most=5), st.integers(0, 6))
def test_nobody_beyond_the_least_that_is_needed_is_missed(
    name: str, cast: list[Ballot], most: int
) -> None:
    """With fewer ballots than that the rule cannot decide, whatever they say."""
    rule = quorum(name)
    needed = least_needed(rule, cast, most)
    assert 0 <= needed <= most
    assert (needed == 0) == (rule(cast, most) is not None or most == 0)
    if 0 < needed <= 3:
        for said in product(["", "1", "2", "9"], repeat=needed - 1):
            more = [Ballot(10 + i, 1, key, key, proved=False) for i, key in enumerate(said)]
            unproved = [ballot for ballot in cast if not ballot.proved]
            if len(unproved) == len(cast):
                assert rule([*cast, *more], most - len(more)) is None or name == "verified"
