"""The next round's prompt ahead of the round: when it is computed, where, and what ends it."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies.base import Draft
from cogitate.aggregator.core.strategies.workspace import MAX_ANSWERS, MAX_CHARS, growing
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_aggregator_contemplation import Script

pytestmark = pytest.mark.unit


def script(**fields: Any) -> Script:
    """Four agents, three of them on endpoint `a`."""
    given = {"strategy": "synthesis", "num_agents": 4, "prepares": True, **fields}
    return Script(**given).running(a=(0, 1, 2), b=(3,))


def prepared(s: Script) -> m.Prepare | None:
    found = s.all(m.Prepare)
    assert len(found) <= 1
    return found[0] if found else None


def drafts(*answers: str) -> list[Draft]:
    return [
        Draft(Ballot(i, 1, answer, answer), f"because {answer}") for i, answer in enumerate(answers)
    ]


@given(st.lists(st.sampled_from(["", "a cat", "a dog", *map(str, range(12))]), max_size=14))
def test_what_is_shown_only_grows_at_its_end(answers: list[str]) -> None:
    whole = growing(drafts(*answers), len(answers))
    for count in range(len(answers) + 1):
        assert whole.startswith(growing(drafts(*answers[:count]), len(answers)))
    different = set(answers) - {""}
    assert whole.count("Reasoning: ") == min(MAX_ANSWERS, len(different))


def test_what_is_shown_has_each_answer_once_and_is_bounded() -> None:
    shown = growing(drafts("a cat", "a dog", "", "a cat"), 4).splitlines()
    assert shown == [
        "Answer A: a cat", "Reasoning: because a cat",
        "Answer B: a dog", "Reasoning: because a dog",
        "Answer A again.",
    ]  # fmt: skip
    [same] = growing([Draft(Ballot(0, 1, "a cat", "a cat"), " a\ncat ")], 1).splitlines()
    assert same == "Answer A: a cat", "a text that is the answer is shown once"
    long = [Draft(Ballot(i, 1, f"{i}" * 9999, str(i)), "word " * 9999) for i in range(64)]
    assert len(growing(long, 64)) < 2 * MAX_CHARS + 64 * len("Reasoning: Answer A: … ")


def test_each_draft_is_computed_where_fewest_write_while_others_go_on() -> None:
    s = script()
    assert s.write(0, 0, 3) == []
    s.end(0, "a cat", num_sampled=3)
    first = prepared(s)
    assert first is not None and (first.role, first.has_tools) == ("synthesizer", False)
    assert (first.gang.endpoint_id, first.gang.agent_ids) == ("b", ())
    assert [speaker for speaker, _ in first.turns] == ["assistant", "user"]
    assert first.turns[0][1] == "Answer A: a cat\nReasoning: text"
    # One at a time: what ends meanwhile is computed with the next.
    s.end(1, "a dog")
    assert prepared(s) is None
    s.put(m.Prefilled(first.gang.gang_id, 90, 60, 0.2))
    assert s.event("prefilled")["endpoint_id"] == "b"
    second = prepared(s)
    assert second is not None and second.gang.gang_id != first.gang.gang_id
    assert second.turns[0][1].startswith(first.turns[0][1] + "\nAnswer B: a dog")
    # The stream of the first ends in order: that is no loss.
    s.put(m.GangLost(first.gang.gang_id, "UNAVAILABLE", "the endpoint ended the gang"))
    s.put(m.Prefilled(second.gang.gang_id, 120, 80, 0.2))
    s.end(2, "I can't say.")
    assert prepared(s) is None, "an abstention adds nothing"
    assert (s.machine.accounts.prompt, s.machine.accounts.cached) == (210, 140)


def test_the_round_is_asked_for_where_its_prompt_is_and_shows_what_was_computed() -> None:
    s = script()
    s.end(0, "a cat")
    ahead = prepared(s)
    assert ahead is not None
    s.put(m.Prefilled(ahead.gang.gang_id, 90, 60, 0.2))
    s.end(1, "a dog")
    running = prepared(s)
    assert running is not None
    s.end(2, "a cat")
    s.end(3, "a cow", gang_id="1.b")
    assert s.all(m.BreakOff) == [m.BreakOff(running.gang.gang_id)]
    [asked] = s.all(m.Declare)
    assert (asked.role, asked.agent_ids, asked.prefilled_at) == ("synthesizer", (4,), "b")
    s.put(m.Prefilled(running.gang.gang_id, 99, 1, 0.2))
    assert s.effects == [], "what was broken off is not heard"
    s.place(asked.attempt, b=(4,))
    [opened] = s.all(m.OpenGang)
    assert opened.turns[0][1].startswith(ahead.turns[0][1] + "\n")
    assert opened.turns[1][0] == ahead.turns[1][0] == "user"
    assert len(ahead.turns[1][1]) == 1 and opened.turns[1][1].startswith(ahead.turns[1][1])
    assert s.machine.accounts.generated == 0


def test_without_it_the_round_is_the_same() -> None:
    def opened(*, prepares: bool) -> m.OpenGang:
        s = script(prepares=prepares)
        for agent_id, answer in enumerate(("a cat", "a dog", "a cow")):
            s.write(agent_id, 0, 2)
            s.end(agent_id, answer, num_sampled=2)
            if ahead := prepared(s):
                assert prepares
                s.put(m.Prefilled(ahead.gang.gang_id, 9, 1, 0.1))
        s.end(3, "a cat", gang_id="1.b")
        [asked] = s.all(m.Declare)
        assert bool(asked.prefilled_at) == prepares
        s.place(asked.attempt, a=(4,))
        [found] = s.all(m.OpenGang)
        return found

    assert opened(prepares=True) == opened(prepares=False)


@pytest.mark.parametrize(
    "cut", [m.DeadlinePassed(), m.CancelRequested("REQUESTED"), m.ShuttingDown(), m.MoneySpent()]
)
def test_every_cut_ends_it(cut: m.Input) -> None:
    s = script()
    s.end(0, "a cat")
    ahead = prepared(s)
    assert ahead is not None
    s.put(cut)
    assert m.BreakOff(ahead.gang.gang_id) in s.effects
    s.put(m.AgentEnded("1.a", 1, 1, "CANCELLED", "", 0, 0))
    assert prepared(s) is None


def test_a_failure_is_not_tried_again_and_costs_nothing_else() -> None:
    s = script()
    s.end(0, "a cat")
    ahead = prepared(s)
    assert ahead is not None
    s.put(m.GangLost(ahead.gang.gang_id, "REJECTED", "full", 1.0))
    assert s.effects == []
    s.end(1, "a dog")
    assert prepared(s) is None
    s.end(2, "a cow")
    s.end(3, "a pig", gang_id="1.b")
    [asked] = s.all(m.Declare)
    assert (asked.role, asked.prefilled_at) == ("synthesizer", "")


def test_one_that_ran_at_a_takeover_is_not_there() -> None:
    s = script()
    s.end(0, "a cat")
    assert prepared(s) is not None
    s.put(m.OwnerChanged(2))
    assert s.all(m.BreakOff) == []
    [asked] = s.all(m.Declare)
    s.place(asked.attempt, a=(1, 2), b=(3,))
    s.end(1, "a dog", gang_id=f"{asked.attempt}.a", attempt=2)
    again = prepared(s)
    assert again is not None and again.turns[0][1].count("Answer ") == 2


def test_a_draft_that_may_still_change_is_not_shown_yet() -> None:
    s = script(quorum="all")
    s.call(0)
    s.result("a0.1.c1", proof="3")
    s.write(0, 0, 1)
    assert [ballot.agent_id for ballot in s.machine.ballots] == []
    s = script(quorum="verified", num_agents=4)
    s.call(0)
    s.result("a0.1.c1", proof="3")
    assert prepared(s) is None, "it voted by its proof and is open still"


@pytest.mark.parametrize("strategy", ["vote", "refine", "best_of", "auto"])
def test_only_prompts_that_grow_are_computed_ahead(strategy: str) -> None:
    s = script(strategy=strategy)
    s.end(0, "a cat")
    assert prepared(s) is None
    limited = script(max_rounds=1)
    limited.end(0, "a cat")
    assert prepared(limited) is None
