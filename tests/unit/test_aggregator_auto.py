"""The default of several agents: which questions are open; others cost what a vote does."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies import default_strategy, strategy
from cogitate.aggregator.core.strategies.openness import MIN_WORDS, is_open
from cogitate.evals.boards import answer_sentence
from cogitate.evals.easy_vqa import SHAPE_COLOUR_NAMES, SHAPES
from cogitate.evals.easy_vqa import answer_sentence as scene_sentence

from tests.unit.test_aggregator_strategies import Played, spec

pytestmark = pytest.mark.unit

SKY = (
    "Sunlight is made of all colours, and the air scatters the blue ones far more than the red "
    "ones, so blue reaches our eyes from every side."
)
SEA = (
    "The gases of the atmosphere are small beside a wave of light, and short waves bend off them "
    "in all directions, which is why the sky looks blue."
)


def ballots(*answers: str, equivalence: str = "auto", proved: str = "") -> list[Ballot]:
    return [
        Ballot(i, 1, answer, key_of(answer, equivalence), proved=bool(proved) and answer == proved)
        for i, answer in enumerate(answers)
    ]


def test_texts_on_which_nobody_agrees_are_open() -> None:
    assert is_open(ballots(SKY, SEA))
    assert is_open(ballots(SKY, SEA, equivalence="text"))
    assert is_open(ballots(SKY, "", SEA, "I don't know."))
    counted = "1. Sleep early, at the same hour. 2. Drink water, walk, read a book and go to bed."
    assert is_open(ballots(SKY, counted)), "a text may have numbers in it"


def test_one_that_is_no_text_or_two_that_agree_close_it() -> None:
    assert not is_open(ballots())
    assert not is_open(ballots(SKY))
    assert not is_open(ballots(SKY, "I don't know.", ""))
    assert not is_open(ballots(SKY, SEA, SKY.upper()))
    for value in ("7", f"{SKY} That makes 7.", "(b)", "no", "Paris", "19*1=19, 10-3=7, 19+7=26."):
        assert not is_open(ballots(SKY, value)), value
        assert not is_open(ballots(SKY, value, equivalence="text")), value
    assert not is_open(ballots(SKY, SEA, proved=SEA))
    steps = "To find how many there are we first add 3 and 4, which gives 7, and take 2 away, so 5."
    assert not is_open(ballots(SKY, steps))
    words = ["word"] * MIN_WORDS
    assert is_open(ballots(SKY, " ".join(words)))
    assert not is_open(ballots(SKY, " ".join(words[1:])))


def test_json_and_keys_of_other_kinds_are_closed() -> None:
    long = [f'{{"text": "{text}"}}' for text in (SKY, SEA)]
    assert not is_open(ballots(*long, equivalence="json"))
    assert not is_open(ballots(*long, equivalence="text"))
    assert not is_open(ballots(f'["{SKY}"]', f'["{SEA}"]'))


def test_no_two_sentences_of_the_embedded_model_are_open() -> None:
    sentences = [
        answer_sentence(kind, "red", value)
        for kind in ("count", "sum", "max", "min", "diff")
        for value in (1, 2)
    ]
    sentences += [scene_sentence(label) for label in (*SHAPES, *SHAPE_COLOUR_NAMES, "yes", "no")]
    sentences += [
        "A blue circle.", "19*1=19, 10-3=7, 19+7=26.", "6*4=24, 24+5=29, 29-1=28.",
        "No red cards.", "I could not make 26.", "I can't answer that.",
        "I can't tell without looking closer.",
        "3 rows of 4 cards: red blue green red; blue red green blue; red red orange purple.",
    ]  # fmt: skip
    others = [*sentences, SKY]
    for sentence in sentences:
        assert not any(is_open(ballots(sentence, other)) for other in others), sentence


# -- the strategy ---------------------------------------------------------------------------------


def test_it_is_the_default_of_several_agents() -> None:
    assert [default_strategy(count) for count in (1, 2, 8)] == ["vote", "auto", "auto"]
    assert strategy("auto").num_rounds == 2


def test_an_open_question_is_refined_and_the_last_vote_decides() -> None:
    played = Played(spec(2, strategy="auto"))
    played.writes(0, "first thought")
    played.end(0, SKY)
    played.end(1, SEA)
    assert played.events("decided") == []
    second = played.of(m.OpenGang)[-1]
    assert (second.role, [order.agent_id for order in second.agents]) == ("refiner", [2, 3])
    assert "first thought" in second.turns[0][1]
    played.end(2, SEA)
    played.end(3, SEA)
    [verdict] = played.events("verdict")
    assert verdict["outcome"].answer == SEA
    assert [b.round_number for b in played.machine.ballots] == [1, 1, 2, 2]
    assert len(played.events("decided")) == 1


def effects_of(name: str, answers: list[str], **fields: Any) -> list[m.Effect]:
    played = Played(spec(len(answers), strategy=name, **fields))
    for agent_id, answer in enumerate(answers):
        agent = played.machine.agents.get(agent_id)
        if agent is not None and agent.open:
            killed = bool(agent.killing)
            played.end(agent_id, "" if killed else answer, "CANCELLED" if killed else "STOP")
    assert played.machine.ended
    return played.effects


@pytest.mark.parametrize("quorum", ["all", "unbeatable", "posterior:0.8", "first:2", "unanimous:2"])
@pytest.mark.parametrize("budget", [0, 600])
@pytest.mark.parametrize("initial", [0, 2])
@pytest.mark.parametrize(
    "answers", [["5", "5", "6", "5"], [SKY, SKY, SEA, SKY], ["a", "b", "c", "d"], ["", "", "5", ""]]
)
def test_a_closed_question_is_a_vote_effect_for_effect(
    answers: list[str], initial: int, budget: int, quorum: str
) -> None:
    fields: dict[str, Any] = {"quorum": quorum, "budget_tokens": budget, "initial_agents": initial}
    assert effects_of("auto", answers, **fields) == effects_of("vote", answers, **fields)


def test_one_round_at_most_turns_it_off() -> None:
    once = effects_of("auto", [SKY, SEA], max_rounds=1)
    assert once == effects_of("vote", [SKY, SEA])


@pytest.mark.parametrize(("budget", "rounds"), [(99, 1), (100, 2)])
def test_a_second_round_begins_only_if_the_budget_carries_it(budget: int, rounds: int) -> None:
    played = Played(spec(2, strategy="auto", budget_tokens=budget, max_tokens=40))
    first = played.of(m.OpenGang)[0]
    assert [order.granted for order in first.agents] == [budget // 2] * 2, "nothing is kept back"
    for agent_id, answer in enumerate((SKY, SEA)):
        delta = m.Delta(agent_id, 1, 0, tuple(range(25)), "t", False, -1.0)
        played._perform(played.machine.handle(m.Stepped("g1", (delta,))))
        ended = m.AgentEnded("g1", agent_id, 1, "STOP", answer, 25, 0)
        played._perform(played.machine.handle(ended))
    assert len(played.events("round_started")) == rounds
    assert len(played.events("verdict")) == (rounds == 1)


def test_a_deadline_in_the_second_round_leaves_the_first() -> None:
    played = Played(spec(2, strategy="auto"))
    played.end(0, SKY, mean_logprob=-2.0)
    played.end(1, SEA, mean_logprob=-1.0)
    played._perform(played.machine.handle(m.DeadlinePassed()))
    for agent_id in (2, 3):
        played.end(agent_id, "", finish="CANCELLED")
    [verdict] = played.events("verdict")
    assert verdict["outcome"].answer == SEA
    assert verdict["outcome"].degraded_reasons == ("DEADLINE",)
