"""Quorums, ties and verdicts by example."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.aggregator.core.ballots import Ballot, Decision, count
from cogitate.aggregator.core.outcome import outcome_of
from cogitate.aggregator.core.quorums import (
    all_voted,
    lead_probability,
    least_needed,
    quorum,
    unbeatable,
    verified,
)
from cogitate.aggregator.core.strategies import strategy

pytestmark = pytest.mark.unit


def votes(keys: str, *, proved: str = "", **logprobs: float) -> list[Ballot]:
    """One ballot a character; '-' abstains."""
    return [
        Ballot(
            agent_id=number,
            attempt=1,
            answer="I can't" if key == "-" else f"It is {key}.",
            key="" if key == "-" else key,
            proved=key == proved,
            mean_logprob=logprobs.get(key, -1.0),
        )
        for number, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("rule", "keys", "num_open", "key"),
    [
        ("all", "aab", 1, None),
        ("all", "aab", 0, "a"),
        ("all", "---", 0, ""),
        ("all", "", 0, ""),
        ("unbeatable", "aa", 2, None),  # two for b would tie
        ("unbeatable", "aa", 1, "a"),
        ("unbeatable", "aab", 1, None),
        ("unanimous:2", "a", 5, None),
        ("unanimous:2", "a-a", 5, "a"),
        ("unanimous:2", "ab", 5, None),
        ("unanimous:2", "abaa", 1, "a"),  # as unbeatable once they differ
        ("first:3", "ab", 5, None),
        ("first:3", "aa", 5, "a"),  # the third cannot change it
        ("first:3", "a-bb", 5, "b"),
        ("first:3", "abbaaa", 5, "b"),  # what comes later does not count
        ("first:3", "a-", 0, "a"),  # more will not come
        ("first:3", "---", 0, ""),
        ("posterior:0.95", "aaa", 5, None),  # 0.9375
        ("posterior:0.95", "aaaa", 5, "a"),  # 0.96875
        ("posterior:0.95", "aaaab", 9, None),
        ("posterior:0.95", "aaaaaab", 9, "a"),
        ("posterior:0.95", "aab", 0, "a"),
        ("posterior:0.999", "aaa", 2, "a"),  # certain anyway
        ("unbeatable", "aaab", 1, "a"),
        ("unbeatable", "aaa--", 2, "a"),
        ("unbeatable", "--", 1, None),
        ("unbeatable", "ab", 0, "a"),
        ("verified", "aap", 5, "p"),
        ("verified", "aa", 1, None),
        ("verified", "aab", 0, "a"),
    ],
)
def test_each_quorum(rule: str, keys: str, num_open: int, key: str | None) -> None:
    decision = quorum(rule)(votes(keys, proved="p"), num_open)
    assert (decision.key if decision else None) == key


def test_reasons_are_sentences() -> None:
    assert all_voted(votes("aab"), 0) == Decision("a", "all ballots are in: 2 of 3 agree")
    early = unbeatable(votes("aaa"), 2)
    assert early == Decision("a", "3 agree and the 2 still open cannot change it")
    proof = verified(votes("ap", proved="p"), 3)
    assert proof == Decision("p", "a tool proved agent 1's answer")


@pytest.mark.parametrize(
    ("ballots", "winner"),
    [
        (votes("ba"), "a"),  # the smaller key
        (votes("ab", b=-0.5), "b"),  # the surer one
        (votes("ab", proved="b", a=-0.1), "b"),  # the proved one
        (votes("aab", proved="b"), "a"),  # but not against more ballots
    ],
)
def test_ties(ballots: list[Ballot], winner: str) -> None:
    assert count(ballots)[0].key == winner


def test_the_words_are_those_of_the_surest_agent() -> None:
    ballots = votes("aa")
    ballots.append(Ballot(2, 1, "Surely a.", "a", mean_logprob=-0.1))
    outcome = outcome_of(ballots, Decision("a", "why"), ())
    assert (outcome.answer, outcome.agent_id, outcome.abstained) == ("Surely a.", 2, False)


def test_without_an_answer_the_verdict_is_the_most_frequent_refusal() -> None:
    cast = [
        Ballot(i, 1, text, "") for i, text in enumerate(["I don't know.", "", "", "", "I can't"])
    ]
    outcome = outcome_of([*cast, Ballot(5, 1, "I can't", "")], Decision("", "why"), ["DEADLINE"])
    assert (outcome.answer, outcome.abstained, outcome.agent_id) == ("I can't", True, None)
    assert outcome.degraded_reasons == ("DEADLINE",)
    silent = outcome_of([Ballot(0, 1, " ", "")], Decision("", "why"), ())
    assert (silent.answer, silent.degraded_reasons) == ("", ("NO_BALLOT",))


def test_weights_are_added_exactly() -> None:
    tenths = [Ballot(i, 1, "a", "a", weight=0.1) for i in range(10)]
    assert count(tenths)[0].weight == 1.0


def test_vote_plans_one_greedy_agent_or_several_with_hints() -> None:
    vote = strategy("vote")
    [alone] = vote.plan(1, None).agents
    assert (alone.agent_id, alone.temperature, alone.hint_index) == (0, 0.0, None)
    assert vote.plan(1, 0.7).agents[0].temperature == 0.7
    several = vote.plan(3, None).agents
    assert [(p.agent_id, p.temperature, p.hint_index) for p in several] == [
        (0, None, 0), (1, None, 1), (2, None, 2),
    ]  # fmt: skip
    assert vote.weigh(votes("a")[0]) == 1.0


@pytest.mark.parametrize(
    ("leading", "second", "probability"),
    [(0, 0, 0.5), (1, 0, 0.75), (4, 0, 0.96875), (5, 2, 0.85546875)],
)
def test_the_probability_that_the_leader_leads(
    leading: int, second: int, probability: float
) -> None:
    assert lead_probability(leading, second) == pytest.approx(probability, abs=1e-12)
    assert lead_probability(second, leading) == pytest.approx(1 - probability, abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "keys", "most", "needed"),
    [
        ("all", "", 8, 8),
        ("all", "aab", 5, 5),
        ("unbeatable", "", 8, 5),
        ("unbeatable", "aaa", 5, 2),
        ("unanimous:3", "", 8, 3),
        ("unanimous:3", "ab", 6, 4),
        ("first:3", "-", 7, 2),  # two that agree: the third cannot change it
        ("posterior:0.95", "", 16, 4),
        ("posterior:0.95", "ab", 14, 5),
        ("verified", "", 8, 1),
        ("verified", "-a", 6, 2),  # as many as were cast in vain
        ("verified", "----", 3, 3),
        ("verified", "-p", 6, 2),  # nothing proved it
        ("posterior:0.95", "", 2, 2),
    ],
)
def test_how_many_more_are_needed_at_least(rule: str, keys: str, most: int, needed: int) -> None:
    assert least_needed(quorum(rule), votes(keys), most) == needed


def test_the_answer_of_many_light_ballots_may_need_the_least() -> None:
    rule = quorum("posterior:0.8")
    one, *others = votes("abb")
    cast = [replace(one, weight=0.5), *(replace(ballot, weight=0.0) for ballot in others)]
    assert count(cast)[0].key == "a"
    assert rule([*cast, *votes("b")], 1) is not None
    assert least_needed(rule, cast, 2) == 1


def test_posterior_is_beside_the_answer_with_most_ballots_whatever_they_weigh() -> None:
    rule = quorum("posterior:0.8")
    light = [replace(one, weight=0.01) for one in votes("bbb")]
    heavy = votes("aaac")  # c has more weight than b, and fewer ballots
    assert rule([*heavy, *light], 5) is None
    assert rule(heavy, 5) is not None
