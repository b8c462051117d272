"""Ballots that wait for the vector of their answer, as scripts."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.answers import key_of, least_cosine

from tests.unit.test_aggregator_contemplation import Script

pytestmark = pytest.mark.unit

RED, CRIMSON, BLUE = (1.0, 0.0), (0.96, 0.28), (0.0, 1.0)


def script(**fields: Any) -> Script:
    return Script(**{"equivalence": "embedding:0.9", **fields}).running()


def embedded(s: Script, agent_id: int, vector: tuple[float, ...] = (), failure: str = "") -> None:
    s.put(m.Embedded(agent_id, vector, failure))


def books(s: Script) -> tuple[int, int, int]:
    return (s.machine.accounts.used, s.machine.accounts.killed, s.machine.accounts.lost)


def test_the_same_meaning_in_other_words_is_the_same_answer() -> None:
    s = script(num_agents=3)
    s.end(0, "It is red.", num_sampled=4)
    assert s.effects == [m.Embed(0, "It is red.")]
    s.end(1, "blue", num_sampled=1)
    s.end(2, "Crimson!", num_sampled=2)
    embedded(s, 1, BLUE)
    assert s.event("ballot_cast")["ballot"].key == "blue"
    embedded(s, 2, CRIMSON)
    embedded(s, 0, RED)
    assert s.events == ["ballot_cast", "decided", "verdict"]
    outcome = s.event("verdict")["outcome"]
    assert (outcome.key, [b.key for b in outcome.ballots]) == (
        "crimson",
        ["blue", *["crimson"] * 2],
    )
    assert outcome.answer == "It is red."  # the words of the lowest agent, all equally sure
    assert outcome.degraded_reasons == ()
    assert books(s) == (7, 0, 0)


@pytest.mark.parametrize("answer", ["", "  ", "I don't know.", "Sorry, but I cannot."])
def test_an_answer_that_is_none_abstains_without_the_model(answer: str) -> None:
    s = script()
    s.end(0, answer)
    assert s.events == ["ballot_cast"] and s.all(m.Embed) == []
    assert s.event("ballot_cast")["ballot"].abstained


def test_an_answer_without_another_is_not_embedded() -> None:
    s = script(num_agents=1)
    s.end(0, "red")
    assert s.events == ["ballot_cast", "decided", "verdict"]


def test_a_text_is_embedded_once_where_its_vector_is_there() -> None:
    s = script(num_agents=4)
    s.end(0, "red")
    s.end(1, "Red.")  # at the same time: its vector is not there yet
    assert s.all(m.Embed) == [m.Embed(1, "Red.")]
    embedded(s, 0, RED)
    s.end(2, "RED!")
    assert s.events == ["ballot_cast"] and s.all(m.Embed) == []
    embedded(s, 1, RED)
    s.end(3, "crimson")
    embedded(s, 3, CRIMSON)
    assert s.event("verdict")["outcome"].decision == "all ballots are in: 4 of 4 agree"


def test_verifiers_scores_are_not_embedded() -> None:
    s = script(num_agents=2, strategy="best_of")
    s.end(0, "red")
    embedded(s, 0, RED)
    s.end(1, "blue")
    embedded(s, 1, BLUE)
    s.place(2, a=(2, 3))
    s.put(m.Admitted("2.a", "build", {}))
    s.end(2, "3", gang_id="2.a")
    assert s.events == ["ballot_cast"]
    s.end(3, "9", gang_id="2.a")
    assert s.event("verdict")["outcome"].key == "red"  # by the second verifier


def test_a_later_round_compares_its_own_ballots_only() -> None:
    s = script(num_agents=2, strategy="refine")
    for agent_id in (0, 1):
        s.end(agent_id, "red")
        embedded(s, agent_id, RED)
    s.place(2, a=(2, 3))
    s.put(m.Admitted("2.a", "build", {}))
    s.end(2, "crimson", gang_id="2.a")
    embedded(s, 2, CRIMSON)
    assert s.event("ballot_cast")["ballot"].key == "crimson"


def test_decided_while_an_answer_waits() -> None:
    s = script(num_agents=3, quorum="first:1")
    s.write(2, 0, 5)
    s.end(0, "red", num_sampled=1)
    s.end(1, "blue", num_sampled=3)
    embedded(s, 0, RED)
    assert s.events == ["deltas", "ballot_cast", "decided", "agent_killed"]
    assert s.machine.killed == [(1, "DECIDED", 3)]
    assert s.all(m.Kill) == [m.Kill("1.a", (2,), "DECIDED")]
    embedded(s, 1, RED)
    assert s.effects == []
    s.end(2, "", finish="CANCELLED", num_sampled=5)
    assert s.events[-1] == "verdict"
    assert books(s) == (1, 8, 0)


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (m.DeadlinePassed(), "DEADLINE"),
        (m.MoneySpent(), "BUDGET"),
        (m.ShuttingDown(), "AGENTS_LOST"),
    ],
)
def test_what_waits_when_time_is_over_counts_by_its_text(cut: m.Input, reason: str) -> None:
    s = script(num_agents=3)
    for agent_id, answer in enumerate(["red", "Red!", "crimson"]):
        s.end(agent_id, answer, num_sampled=1)
    s.put(cut)
    assert s.events == ["feature_degraded", *["ballot_cast"] * 3, "decided", "verdict"]
    assert "text" in s.event("feature_degraded")["message"]
    outcome = s.event("verdict")["outcome"]
    assert (outcome.key, outcome.degraded_reasons) == ("red", (reason,))
    assert [ballot.key for ballot in outcome.ballots] == ["red", "red", "crimson"]
    assert books(s) == (3, 0, 0)


def test_a_cancel_does_not_wait_for_the_model() -> None:
    s = script(num_agents=2)
    s.end(0, "red", num_sampled=2)
    s.end(1, "blue", num_sampled=1)
    s.put(m.CancelRequested("REQUESTED"))
    assert s.events == ["agent_killed", "agent_killed", "cancelled"]
    assert books(s) == (0, 3, 0)


def test_a_model_that_fails_leaves_the_text() -> None:
    s = script(num_agents=2)
    s.end(0, "red")
    embedded(s, 0, failure="the model failed")
    assert s.events == ["feature_degraded", "ballot_cast"]
    told = s.event("feature_degraded")
    assert told["feature"] == "EQUIVALENCE_EMBEDDING" and "the model failed" in told["message"]
    s.end(1, "RED")
    embedded(s, 1, RED)
    assert s.event("verdict")["outcome"].decision == "all ballots are in: 2 of 2 agree"


def test_a_new_owner_asks_again() -> None:
    s = script(num_agents=2)
    s.end(0, "red")
    s.put(m.OwnerChanged(2))
    assert s.all(m.Embed) == [m.Embed(0, "red")]
    embedded(s, 0, RED)
    assert s.events == ["ballot_cast"]
    s.put(m.OwnerChanged(3))
    assert s.all(m.Embed) == []


def test_an_agent_that_waits_is_not_moved_with_its_gang() -> None:
    s = script(num_agents=2)
    s.end(0, "red")
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    assert [d.agent_ids for d in s.all(m.Declare)] == [(1,)]
    embedded(s, 0, RED)
    assert s.events == ["ballot_cast"]


def test_a_budget_that_is_used_up_waits_for_the_ballots_there_are() -> None:
    s = script(num_agents=2, budget_tokens=2, max_tokens=1)
    s.end(0, "red", num_sampled=1)
    s.write(1, 0, 1)
    s.put(m.GrantUsedUp("1.a", 1))
    assert s.all(m.Kill) == []
    embedded(s, 0, RED)
    assert s.all(m.Kill) == [m.Kill("1.a", (1,), "BUDGET")]
    assert "feature_degraded" not in s.events


def test_a_proof_is_of_the_very_answer_and_not_of_one_like_it() -> None:
    s = script(num_agents=2)
    s.call(0)
    s.result("a0.1.c1", proof="red")
    s.end(0, "crimson")
    embedded(s, 0, CRIMSON)
    assert not s.event("ballot_cast")["ballot"].proved
    s.call(1, arguments='{"x":1}')
    s.result("a1.1.c1", proof="blue")
    s.end(1, "Blue.")
    embedded(s, 1, BLUE)
    assert s.event("verdict")["outcome"].ballots[1].proved


def test_a_proof_needs_no_model_where_it_decides() -> None:
    s = script(num_agents=2, quorum="verified")
    s.call(0)
    s.result("a0.1.c1", proof="red")
    assert s.events[:2] == ["tool_call_finished", "ballot_cast"] and s.all(m.Embed) == []


def test_names_and_keys() -> None:
    assert [least_cosine(name) for name in ("embedding", "embedding:0.5", "auto")] == [
        0.9, 0.5, None,
    ]  # fmt: skip
    for wrong in ("embedding:2", "embedding:-0.1", "embedding:x", "embedding:nan"):
        with pytest.raises(ValueError, match="from 0 to 1"):
            least_cosine(wrong)
    assert key_of("It's Red.", "embedding:0.5") == "its red"
    assert key_of("I don't know", "embedding") == ""
