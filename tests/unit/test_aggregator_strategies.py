"""Strategies by example: what later rounds see, how answers are scored, whom DeepConf stops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.ballots import Ballot, Decision
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.core.strategies import strategy
from cogitate.aggregator.core.strategies.base import Draft
from cogitate.aggregator.core.strategies.workspace import MAX_CHARS, workspace

pytestmark = pytest.mark.unit


def drafts(*answers: str, text: str = "because") -> list[Draft]:
    return [
        Draft(Ballot(i, 1, answer, answer if answer != "-" else ""), f"{text} {answer}")
        for i, answer in enumerate(answers)
    ]


def spec(num_agents: int, **fields: Any) -> m.Spec:
    base = m.Spec(
        contemplation_id="c", model="mini", effort="CONTEMPLATING", num_agents=num_agents,
        strategy="vote", quorum="all", equivalence="auto", seed=1, temperature=None,
        budget_tokens=0, max_tokens=0,
    )  # fmt: skip
    return replace(base, **fields)


class Played:
    """A machine on one endpoint that takes every agent at once."""

    def __init__(self, made: m.Spec) -> None:
        self.machine = Contemplation(made)
        self.effects: list[m.Effect] = []
        self.gang_of: dict[int, str] = {}
        self._perform(self.machine.start())

    def _perform(self, effects: list[m.Effect]) -> None:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, m.Declare):
                gang_id = f"g{effect.attempt}"
                gang = m.PlacedGang(gang_id, "e", "p", "r", effect.agent_ids, "why")
                self.gang_of |= dict.fromkeys(effect.agent_ids, gang_id)
                self._perform(self.machine.handle(m.Granted(effect.attempt, (gang,), "fake")))
                self._perform(self.machine.handle(m.Admitted(gang_id, "b", {})))

    def end(self, agent_id: int, answer: str, finish: str = "STOP", **fields: Any) -> None:
        self._perform(
            self.machine.handle(
                m.AgentEnded(self.gang_of[agent_id], agent_id, 1, finish, answer, 0, 0, **fields)
            )
        )

    def writes(self, agent_id: int, text: str, *, is_answer: bool = False) -> None:
        delta = m.Delta(agent_id, 1, 0, (1,), text, is_answer, -1.0)
        self._perform(self.machine.handle(m.Stepped(self.gang_of[agent_id], (delta,))))

    def of(self, kind: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [effect.fields for effect in self.of(m.Emit) if effect.kind == kind]


def test_the_workspace_has_each_answer_once_and_is_bounded() -> None:
    shown = workspace(drafts("12", "7", "12", "-"))
    assert shown.splitlines() == [
        "Answer A, held by 2 of 4: 12", "Reasoning: because 12",
        "Answer B, held by 1 of 4: 7", "Reasoning: because 7",
    ]  # fmt: skip
    long = workspace(drafts(*map(str, range(40)), text="word " * 5000))
    assert len(long) < MAX_CHARS * 2
    assert long.count("Answer ") == 8


def test_refine_shows_the_drafts_to_as_many_agents_and_the_last_vote_decides() -> None:
    played = Played(spec(2, strategy="refine"))
    played.writes(0, "first thought")
    played.end(0, "5")
    played.end(1, "6")
    second = played.of(m.OpenGang)[-1]
    assert [order.agent_id for order in second.agents] == [2, 3]
    assert (second.role, second.has_tools) == ("refiner", True)
    assert [speaker for speaker, _ in second.turns] == ["assistant", "user"]
    assert "first thought" in second.turns[0][1]
    assert played.events("decided") == []
    played.end(2, "6")
    played.end(3, "6")
    [verdict] = played.events("verdict")
    assert verdict["outcome"].key == "6"
    assert [b.round_number for b in played.machine.ballots] == [1, 1, 2, 2]
    assert [e["round_number"] for e in played.events("round_started")] == [1, 2]
    assert len(played.events("decided")) == 1


def test_a_later_round_without_answers_leaves_the_one_before() -> None:
    played = Played(spec(2, strategy="refine"))
    played.end(0, "5")
    played.end(1, "5")
    played.end(2, "")
    played.end(3, "I don't know")
    [verdict] = played.events("verdict")
    assert (verdict["outcome"].key, verdict["outcome"].abstained) == ("5", False)


def test_rounds_may_be_limited_and_need_something_to_build_on() -> None:
    once = Played(spec(2, strategy="refine:4", max_rounds=1))
    once.end(0, "5")
    once.end(1, "5")
    assert len(once.events("verdict")) == 1
    nothing = Played(spec(2, strategy="refine"))
    nothing.end(0, "I can't")
    nothing.end(1, "")
    [verdict] = nothing.events("verdict")
    assert verdict["outcome"].abstained


@pytest.mark.parametrize("name", ["refine:3", "best_of", "synthesis"])
@pytest.mark.parametrize("quorum", ["verified", "all"])
def test_what_is_proved_is_not_worked_on_where_a_proof_decides(name: str, quorum: str) -> None:
    played = Played(spec(3, strategy=name, quorum=quorum))
    played.end(0, "5")
    call = m.Call("a1.1.c1", "prove", "{}")
    played._perform(played.machine.handle(m.ToolCalled(played.gang_of[1], 1, 1, call)))
    played._perform(played.machine.handle(m.ToolReturned("a1.1.c1", m.Result(False, "6", None))))
    if quorum == "verified":
        assert [e["key"] for e in played.events("decided")] == ["6"]
    for agent_id, answer in ((1, "6"), (2, "5")):
        played.end(agent_id, answer, finish="CANCELLED" if quorum == "verified" else "STOP")
    rounds = [e["round_number"] for e in played.events("round_started")]
    assert rounds == ([1] if quorum == "verified" else [1, 2])


def test_the_deadline_between_two_rounds_ends_it() -> None:
    played = Played(spec(3, strategy="refine", quorum="unbeatable"))
    played.end(0, "5")
    played.end(1, "5")  # decided for this round: agent 2 is being stopped
    played._perform(played.machine.handle(m.DeadlinePassed()))
    played.end(2, "", finish="CANCELLED")
    [verdict] = played.events("verdict")
    assert (verdict["outcome"].key, verdict["outcome"].degraded_reasons) == ("5", ("DEADLINE",))


def test_best_of_scores_each_answer_once_and_takes_the_best() -> None:
    played = Played(spec(3, strategy="best_of"))
    for agent_id, answer in enumerate(["5", "5", "6"]):
        played.end(agent_id, answer)
    second = played.of(m.OpenGang)[-1]
    assert [order.opening for order in second.agents] == [
        "Score of answer A:", "Score of answer B:",
    ]  # fmt: skip
    assert (second.role, second.has_tools) == ("verifier", False)
    played.end(3, "I give it 2.")
    played.end(4, "9")
    [verdict] = played.events("verdict")
    assert (verdict["outcome"].key, verdict["outcome"].answer) == ("6", "6")
    judged = [(b.about, b.weight) for b in played.machine.ballots if b.about]
    assert judged == [("5", 0.2), ("6", 0.9)]


def test_best_of_without_a_choice_or_without_scores_is_a_vote() -> None:
    same = Played(spec(2, strategy="best_of"))
    same.end(0, "5")
    same.end(1, "5")
    assert same.events("verdict")[0]["outcome"].key == "5"
    silent = Played(spec(3, strategy="best_of"))
    for agent_id, answer in enumerate(["6", "5", "5"]):
        silent.end(agent_id, answer)
    silent.end(3, "eleven")
    silent.end(4, "11")  # not a score
    assert silent.events("verdict")[0]["outcome"].key == "5"


def test_synthesis_streams_the_answer() -> None:
    played = Played(spec(2, strategy="synthesis"))
    played.end(0, "a cat")
    played.end(1, "a black cat")
    played.writes(2, "A black ", is_answer=True)
    played.end(2, "A black cat.")
    assert [event["text"] for event in played.events("verdict_delta")] == ["A black "]
    [verdict] = played.events("verdict")
    assert (verdict["outcome"].answer, verdict["outcome"].agent_id) == ("A black cat.", 2)


def test_width_grows_only_where_the_outcome_needs_it() -> None:
    agreed = Played(spec(16, quorum="posterior:0.95", initial_agents=2))
    assert agreed.events("round_started")[0]["agent_ids"] == (0, 1, 2, 3)
    for agent_id in range(4):
        agreed.end(agent_id, "5")
    assert len(agreed.machine.agents) == 4
    assert agreed.events("widened") == []
    split = Played(spec(16, quorum="posterior:0.95", initial_agents=2))
    split.end(0, "5")
    split.end(1, "6")
    assert split.events("widened")[0]["agent_ids"] == (4, 5, 6)
    whole = Played(spec(6, quorum="all", initial_agents=2))
    assert len(whole.machine.agents) == 6, "nobody can be spared, so nobody is kept waiting"


def test_a_reserve_replaces_who_is_lost_or_abstains() -> None:
    played = Played(spec(4, quorum="first:1", initial_agents=1))
    played.end(0, "I don't know")
    assert list(played.machine.agents) == [0, 1]
    played.end(1, "7")
    assert played.events("verdict")[0]["outcome"].key == "7"


# -- DeepConf beside a reference of its own -------------------------------------------------------


@dataclass
class Recorded:
    """An agent's run: its group confidence after each token, once it has a whole window."""

    confidences: list[float]
    answer: str


def reference(runs: list[Recorded], kept_share: float, num_warm_up: int) -> tuple[set[int], str]:
    """DeepConf as the paper has it (arXiv 2508.15260, section 3.2), over whole recordings.

    Returns who is stopped, and the winner of the vote weighed by lowest group confidence.
    """
    lowest = [min(run.confidences) for run in runs]
    bar = float(np.percentile(lowest[:num_warm_up], 100 * (1 - kept_share)))
    stopped = {i for i in range(num_warm_up, len(runs)) if lowest[i] < bar}
    weights: dict[str, float] = {}
    for i, run in enumerate(runs):
        if i not in stopped:
            weights[run.answer] = weights.get(run.answer, 0.0) + lowest[i]
    return stopped, max(weights, key=lambda key: weights[key])


@pytest.mark.parametrize("seed", range(200))
def test_deepconf_stops_whom_the_reference_stops_and_decides_alike(seed: int) -> None:
    random = Random(seed)
    kept = random.choice([0.1, 0.5, 0.9])
    num_agents = random.randint(5, 24)
    runs = [
        Recorded(
            [random.uniform(2, 20) for _ in range(random.randint(1, 30))], random.choice("345")
        )
        for _ in range(num_agents)
    ]
    num_warm_up = max(4, -(-num_agents // 4))
    played = Played(spec(num_agents, strategy=f"confidence:{kept}"))
    stopped = set()
    for agent_id, run in enumerate(runs):  # those of the warm-up end first, as recorded
        bars = played.of(m.SetThreshold)
        bar = bars[-1].group_confidence if bars else 0.0
        falls = [c for c in run.confidences if c < bar]
        finish = "CONFIDENCE" if falls else "STOP"  # as endpoints do it, token by token
        if falls:
            stopped.add(agent_id)
        played.end(
            agent_id, "" if falls else run.answer, finish=finish,
            lowest_confidence=min(run.confidences), group_confidence=run.confidences[-1],
        )  # fmt: skip
    expected_stopped, winner = reference(runs, kept, num_warm_up)
    assert stopped == expected_stopped
    killed = {agent_id for agent_id, reason, _ in played.machine.killed if reason == "CONFIDENCE"}
    assert killed == expected_stopped
    assert played.events("verdict")[0]["outcome"].key == winner


def test_a_threshold_reaches_gangs_that_are_opened_later() -> None:
    played = Played(spec(8, strategy="confidence", quorum="unanimous:8", initial_agents=4))
    sure = {"lowest_confidence": 9.0, "group_confidence": 9.0}
    for agent_id in range(4):
        played.end(agent_id, "56"[agent_id % 2], **sure)
    later = played.of(m.OpenGang)[-1].gang.gang_id
    assert (later, 9.0) in [(e.gang_id, e.group_confidence) for e in played.of(m.SetThreshold)]


def test_a_strategy_without_ballots_to_weigh_is_not_asked() -> None:
    assert strategy("confidence").threshold([], 8) is None
    assert strategy("vote").conclude([[]], Decision("", "why")) == ([], Decision("", "why"))


def test_without_a_ballot_the_answer_is_what_was_written_when_time_ended() -> None:
    played = Played(spec(2))
    played.writes(0, "The sky ", is_answer=True)
    played.writes(1, "I think about light, which", is_answer=False)
    played._perform(played.machine.handle(m.DeadlinePassed()))
    for agent_id in range(2):
        played.end(agent_id, "", finish="CANCELLED")
    outcome = played.events("verdict")[0]["outcome"]
    assert (outcome.answer, outcome.agent_id, outcome.abstained) == ("The sky", 0, False)
    assert outcome.degraded_reasons == ("DEADLINE", "NO_BALLOT", "UNFINISHED")
    nothing = Played(spec(1))
    nothing.writes(0, "hm", is_answer=False)
    nothing._perform(nothing.machine.handle(m.MoneySpent()))
    nothing.end(0, "", finish="CANCELLED")
    assert nothing.events("failed")[0]["reason"] == "BUDGET_EXCEEDED"
