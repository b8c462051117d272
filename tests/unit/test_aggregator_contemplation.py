"""The state machine's main paths, as scripts of inputs and the effects they must have."""

from __future__ import annotations

from typing import Any

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.contemplation import Contemplation

pytestmark = pytest.mark.unit

MAX_LOSSES = 3  # the default of a Spec


def spec(**fields: Any) -> m.Spec:
    defaults: dict[str, Any] = {
        "contemplation_id": "c", "model": "mini", "effort": "CONTEMPLATING", "num_agents": 3,
        "strategy": "vote", "quorum": "all", "equivalence": "auto", "seed": 1, "temperature": None,
        "budget_tokens": 0, "max_tokens": 0, "patience_s": 1.0,
    }  # fmt: skip
    return m.Spec(**{**defaults, **fields})


class Script:
    """Plays inputs to a machine; `effects` are those of the last one."""

    def __init__(self, **fields: Any) -> None:
        self.machine = Contemplation(spec(**fields))
        self.effects = self.machine.start()

    def put(self, *events: m.Input) -> list[m.Effect]:
        for event in events:
            self.effects = self.machine.handle(event)
        return self.effects

    def all(self, kind: type[Any]) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def events(self) -> list[str]:
        return [effect.kind for effect in self.all(m.Emit)]

    def event(self, kind: str) -> dict[str, Any]:
        [found] = [effect.fields for effect in self.all(m.Emit) if effect.kind == kind]
        return found

    # Inputs by their shortest names.

    def place(self, attempt: int = 1, **gangs: tuple[int, ...]) -> None:
        """Gang by gang, each on the endpoint of its name."""
        placed = tuple(
            m.PlacedGang(f"{attempt}.{name}", name, f"p-{name}", "here", ids, "why")
            for name, ids in gangs.items()
        )
        self.put(m.Granted(attempt, placed, "fake"))

    def running(self, **gangs: tuple[int, ...]) -> Script:
        self.place(**(gangs or {"a": tuple(self.machine.agents)}))
        for name in gangs or {"a": ()}:
            self.put(m.Admitted(f"1.{name}", "build", {}))
        return self

    def write(self, agent_id: int, offset: int, length: int, gang: str = "1.a", attempt: int = 1):
        ids = tuple(range(offset, offset + length))
        delta = m.Delta(agent_id, attempt, offset, ids, "text", False, -1.0)
        return self.put(m.Stepped(gang, (delta,)))

    def end(self, agent_id: int, answer: str, *, finish: str = "STOP", **fields: Any):
        given = {"gang_id": "1.a", "attempt": 1, "num_sampled": 0, "num_injected": 0, **fields}
        return self.put(m.AgentEnded(agent_id=agent_id, finish=finish, answer=answer, **given))

    def call(self, agent_id: int, number: int = 1, name: str = "zoom", arguments: str = "{}"):
        call = m.Call(f"a{agent_id}.1.c{number}", name, arguments)
        return self.put(m.ToolCalled("1.a", agent_id, 1, call))

    def result(self, call_id: str, proof: str = ""):
        return self.put(m.ToolReturned(call_id, m.Result(False, proof, f"result of {call_id}")))


# -- the main path -----------------------------------------------------------------------------


def test_from_start_to_verdict() -> None:
    s = Script()
    assert s.events == ["round_started"]
    assert s.all(m.Declare) == [m.Declare(1, (0, 1, 2), (), True)]
    s.place(a=(0, 2), b=(1,))
    assert s.events == ["placed"]
    assert [(o.gang.gang_id, [a.agent_id for a in o.agents]) for o in s.all(m.OpenGang)] == [
        ("1.a", [0, 2]), ("1.b", [1]),
    ]  # fmt: skip
    s.put(m.Admitted("1.a", "build", {2: "Look."}))
    started = [(e.fields["agent_id"], e.fields["hint"]) for e in s.all(m.Emit)]
    assert started == [(0, ""), (2, "Look.")]
    s.put(m.Admitted("1.b", "build", {}), m.Prefilled("1.a", 20, 5, 0.1))
    assert s.events == ["prefilled"]
    s.end(0, "It is 3.")
    assert s.events == ["ballot_cast"]
    s.end(2, "4")
    s.end(1, "3", gang_id="1.b")
    assert s.events == ["ballot_cast", "decided", "verdict"]
    assert sorted(c.gang_id for c in s.all(m.CloseGang)) == ["1.a", "1.b"]
    outcome = s.event("verdict")["outcome"]
    assert (outcome.key, outcome.degraded_reasons) == ("3", ())
    assert (s.machine.accounts.prompt, s.machine.accounts.cached) == (20, 5)
    assert s.end(1, "5", gang_id="1.b") == []


def test_unbeatable_stops_the_rest_and_waits_for_their_counts() -> None:
    s = Script(quorum="unbeatable", num_agents=3).running()
    s.write(2, 0, 4)
    s.end(0, "3")
    s.end(1, "3")
    assert s.events == ["deltas", "ballot_cast", "decided"][1:]
    assert s.all(m.Kill) == [m.Kill("1.a", (2,), "DECIDED")]
    s.end(2, "", finish="CANCELLED", num_sampled=6)
    assert s.events == ["agent_killed", "verdict"]
    assert s.machine.killed == [(2, "DECIDED", 6)]


def test_text_is_collected_until_a_flush_or_another_event() -> None:
    s = Script().running()
    assert s.write(0, 0, 2) == []
    assert s.write(0, 2, 1) == []
    s.write(1, 0, 1)
    s.effects = s.machine.flush()
    [first, second] = s.event("deltas")["deltas"]
    assert (first["agent_id"], first["token_count"], first["text"]) == (0, 3, "texttext")
    assert second["agent_id"] == 1
    assert s.machine.flush() == []
    s.write(0, 3, 1)
    answer = m.Delta(0, 1, 4, (4,), "3", True, -1.0)
    s.put(m.Stepped("1.a", (answer,)))
    assert s.events == ["deltas"]
    s.end(0, "3", num_sampled=5)
    assert s.events == ["deltas", "ballot_cast"]


# -- places ------------------------------------------------------------------------------------


def test_a_denial_is_waited_for_until_patience_ends() -> None:
    s = Script(patience_s=1.0)
    for attempt in (1, 2):
        s.put(m.Denied(attempt, "NO_ENDPOINT", "full", 0.5))
        assert s.all(m.AskLater) == [m.AskLater((0, 1, 2), 0.5)]
        s.put(m.AskAgain((0, 1, 2)))
        assert s.all(m.Declare) == [m.Declare(attempt + 1, (0, 1, 2), (), True)]
    s.put(m.Denied(3, "NO_ENDPOINT", "full", 0.5))
    failed = s.event("failed")
    assert (failed["reason"], failed["message"], failed["retryable"]) == (
        "NO_ENDPOINT",
        "full",
        True,
    )


def test_a_denial_for_good_ends_it() -> None:
    s = Script()
    s.put(m.Denied(1, "UNKNOWN_MODEL", "no such model", None))
    assert s.event("failed") == {
        "reason": "UNKNOWN_MODEL", "message": "no such model", "retryable": False,
        "retry_after_s": None,
    }  # fmt: skip


def test_a_wait_in_the_routers_queue_is_told_and_its_end_is_final() -> None:
    s = Script(patience_s=9.0)
    s.put(m.Queued(1, 3, 2.5))
    assert s.event("queued") == {"ahead": 3, "expected_s": 2.5}
    s.put(m.Denied(1, "REJECTED", "the wait is long", 7.0, is_final=True))
    assert s.all(m.AskLater) == []
    assert s.event("failed") == {
        "reason": "REJECTED", "message": "the wait is long", "retryable": True,
        "retry_after_s": 7.0,
    }  # fmt: skip


def test_a_denial_concerns_only_those_who_asked() -> None:
    s = Script().running(a=(0,), b=(1,), c=(2,))
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    s.put(m.GangLost("1.b", "UNAVAILABLE"))
    s.put(m.Denied(2, "NO_ENDPOINT", "full", None))
    assert [agent.open for agent in s.machine.agents.values()] == [False, True, True]


def test_answers_to_older_questions_and_from_strangers_are_ignored() -> None:
    s = Script().running()
    assert s.put(m.Denied(1, "NO_ENDPOINT", "late", None)) == []
    gang = m.PlacedGang("9.x", "x", "p", "r", (0,), "why")
    assert s.put(m.Granted(9, (gang,), "fake")) == []
    assert s.write(0, 0, 1, gang="9.x") == []
    assert s.end(0, "3", attempt=2) == []
    assert s.put(m.GangLost("9.x", "UNAVAILABLE")) == []


def test_agents_the_router_forgot_are_given_up() -> None:
    s = Script()
    s.place(a=(0, 1))
    s.put(m.Admitted("1.a", "build", {}))
    s.end(0, "3")
    s.end(1, "3")
    assert s.event("verdict")["outcome"].degraded_reasons == ("AGENTS_LOST",)


def test_a_lost_gang_goes_on_elsewhere_with_its_tokens_and_results() -> None:
    s = Script(num_agents=2).running()
    s.write(0, 0, 3)
    s.call(0)
    s.result("a0.1.c1")
    s.write(0, 3, 1)
    s.call(0, 2, arguments='{"x":1}')
    s.put(m.GangLost("1.a", "UNAVAILABLE", "gone"))
    assert s.events == ["agent_lost", "agent_lost"]
    assert s.all(m.BreakOff) == [m.BreakOff("1.a")]
    assert s.all(m.Declare) == [m.Declare(2, (0, 1), (("a", "UNAVAILABLE"),), False, is_retry=True)]
    s.place(2, b=(0, 1))
    [opened] = s.all(m.OpenGang)
    moved = opened.agents[0]
    assert moved.segments == (
        m.Segment(token_ids=(0, 1, 2)), m.Segment(result="result of a0.1.c1"),
        m.Segment(token_ids=(3,)),
    )  # fmt: skip
    assert (moved.attempt, moved.num_sampled, moved.pending_call_id) == (2, 4, "a0.1.c2")
    assert moved.build_digest == "build"
    assert opened.agents[1].segments == ()
    s.result("a0.1.c2")
    assert s.all(m.Inject) == [m.Inject("2.b", 0, "a0.1.c2", "result of a0.1.c2")]


def test_a_result_that_comes_while_an_agent_has_no_place_travels_with_it() -> None:
    s = Script(num_agents=1).running()
    s.call(0)
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    s.result("a0.1.c1")
    assert s.events == ["tool_call_finished"]
    assert s.all(m.Inject) == []
    s.place(2, b=(0,))
    [order] = s.all(m.OpenGang)[0].agents
    assert order.pending_call_id == ""
    assert order.segments == (m.Segment(result="result of a0.1.c1"),)


def test_a_gang_id_that_is_taken_gives_no_place() -> None:
    s = Script(num_agents=2).running(a=(0,), b=(1,))
    s.put(m.GangLost("1.a", "UNAVAILABLE", "gone"))
    again = m.PlacedGang("1.b", "b", "p", "r", (0,), "why")
    s.put(m.Granted(2, (again,), "fake"))
    assert s.all(m.OpenGang) == []
    assert not s.machine.agents[0].open


def test_another_build_starts_over_and_the_text_is_withdrawn() -> None:
    s = Script(num_agents=1).running()
    s.write(0, 0, 3)
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    s.place(2, b=(0,))
    s.put(m.GangLost("2.b", "BUILD_MISMATCH"))
    assert s.events == ["agent_lost", "text_retracted"]
    assert s.all(m.Declare) == [m.Declare(3, (0,), (), False, is_retry=True)]
    s.place(3, b=(0,))
    [order] = s.all(m.OpenGang)[0].agents
    assert (order.attempt, order.segments, order.num_sampled) == (3, (), 0)
    s.put(m.Admitted("3.b", "other", {}))
    s.end(0, "3", gang_id="3.b", attempt=3, num_sampled=5)
    assert (s.machine.accounts.lost, s.machine.accounts.used) == (3, 5)


def test_an_agent_that_is_lost_too_often_is_given_up() -> None:
    s = Script(num_agents=1).running()
    for number in range(1, MAX_LOSSES + 1):
        s.put(m.GangLost(f"{number}.a", "UNAVAILABLE", "gone"))
        if number < MAX_LOSSES:
            s.place(number + 1, a=(0,))
    assert s.event("agent_lost")["resumed"] is False
    assert s.event("failed")["message"] == "gone"


def test_a_full_endpoint_is_left_at_once_and_the_second_time_after_a_while() -> None:
    s = Script()
    s.place(a=(0, 1, 2))
    s.put(m.GangLost("1.a", "REJECTED", "full", 0.2))
    assert s.events == []
    assert s.all(m.Declare) == [m.Declare(2, (0, 1, 2), (("a", "REJECTED"),), False)]
    s.place(2, b=(0, 1, 2))
    s.put(m.GangLost("2.b", "REJECTED", "full", 0.2))
    assert s.all(m.AskLater) == [m.AskLater((0, 1, 2), 0.2)]
    s.put(m.AskAgain((0, 1, 2)))
    s.place(3, a=(0, 1, 2))
    s.put(m.Admitted("3.a", "build", {}))
    assert {agent.waited_s for agent in s.machine.agents.values()} == {0.0}


def test_a_router_without_the_lease_is_asked_anew() -> None:
    s = Script().running()
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    s.put(m.Denied(2, "NOT_FOUND", "no lease", None))
    assert s.all(m.Declare) == [m.Declare(3, (0, 1, 2), (("a", "UNAVAILABLE"),), True)]


@pytest.mark.parametrize("reason", ["INVALID_REQUEST", "BAD_IMAGE", "NOT_FOUND"])
def test_a_refusal_for_good_explains_more_than_the_denial_after_it(reason: str) -> None:
    s = Script()
    s.place(a=(0, 1, 2))
    s.put(m.GangLost("1.a", reason, "shorten it"))
    s.put(m.Denied(2, "NO_ENDPOINT", "nobody else", 0.5))
    failed = s.event("failed")
    assert (failed["message"], failed["retryable"]) == ("shorten it", False)


@pytest.mark.parametrize("finish", ["CANCELLED", "ERROR"])
def test_an_engine_that_stops_an_agent_unasked_loses_it_to_another(finish: str) -> None:
    s = Script(num_agents=2).running()
    s.write(0, 0, 2)
    s.end(0, "", finish=finish, num_sampled=3)
    assert s.event("agent_lost")["resumed"] is True
    assert s.all(m.Declare) == [
        m.Declare(2, (0,), (("a", "ENGINE_FAILURE"),), False, is_retry=True)
    ]
    assert s.machine.accounts.lost == 1  # the token that was never seen
    assert s.machine.agents[1].gang_id == "1.a"


@pytest.mark.parametrize("offset", [1, 3])
def test_tokens_that_do_not_follow_each_other_are_not_shown(offset: int) -> None:
    s = Script(num_agents=1).running()
    s.write(0, 0, 2)
    s.machine.flush()
    s.write(0, offset, 1)
    assert s.events == ["agent_lost"]
    s.place(2, b=(0,))
    assert s.all(m.OpenGang)[0].agents[0].num_sampled == 2


# -- tools -------------------------------------------------------------------------------------


def test_identical_calls_run_once_and_late_ones_get_the_result_at_once() -> None:
    s = Script().running()
    s.call(0, arguments='{"a": 1}')
    assert len(s.all(m.RunTool)) == 1
    s.call(1, arguments='{"a":1}')
    assert s.all(m.RunTool) == []
    assert s.event("tool_call_started")["shared_call_id"] == "a0.1.c1"
    s.result("a0.1.c1")
    assert [(i.agent_id, i.call_id) for i in s.all(m.Inject)] == [(0, "a0.1.c1"), (1, "a1.1.c1")]
    s.call(2, arguments='{"a":1}')
    assert s.events == ["tool_call_started", "tool_call_finished"]
    assert [i.call_id for i in s.all(m.Inject)] == ["a2.1.c1"]
    assert s.call(2, arguments='{"a":1}') == []  # the same message again
    assert s.result("a0.1.c1") == []
    assert s.machine.tools.num_calls == 3


def test_only_a_call_about_a_picture_of_ones_own_is_apart() -> None:
    s = Script(num_images=1).running()
    shown = [m.Picture("sha256:1", (0, 0, 500, 500)), m.Picture("sha256:1", (500, 0, 1000, 500))]
    for agent_id, picture in enumerate(shown):
        s.call(agent_id, arguments=f'{{"left": {agent_id}}}')
        s.put(m.ToolReturned(f"a{agent_id}.1.c1", m.Result(False, "", "crop", (picture,))))
    s.call(0, 2, arguments='{"image": 1}')
    assert [run.pictures for run in s.all(m.RunTool)] == [(shown[0],)]
    s.call(1, 2, arguments='{"image": 1}')
    assert [run.pictures for run in s.all(m.RunTool)] == [(shown[1],)]
    for number, arguments in enumerate(('{"image": 0}', '{"image": -1}', '{"image": 2}', "[]"), 3):
        for agent_id in (0, 1):
            s.result(f"a{agent_id}.1.c{number - 1}")
        s.call(0, number, arguments=arguments)
        # One that means no picture of its own gets none; one that is not there gets all there are.
        given = (shown[0],) if arguments == '{"image": 2}' else ()
        assert [run.pictures for run in s.all(m.RunTool)] == [given]
        if given:
            continue
        s.call(1, number, arguments=arguments)
        assert s.all(m.RunTool) == []


def test_a_tool_of_the_client_is_not_run_here() -> None:
    s = Script(client_tools=frozenset({"ask"})).running()
    s.call(0, name="ask")
    assert s.events == ["tool_call_started", "awaiting_client"]
    assert s.all(m.RunTool) == []
    assert s.machine.awaits_client
    s.result("a0.1.c1")
    assert not s.machine.awaits_client


def test_a_proof_decides_a_verified_contemplation() -> None:
    s = Script(quorum="verified").running()
    s.write(1, 0, 5)
    s.call(1)
    s.result("a1.1.c1", proof="6*4=24")
    assert s.events[-3:] == ["tool_call_finished", "ballot_cast", "decided"]
    assert s.all(m.Inject) == []
    for agent_id in range(3):
        s.end(agent_id, "", finish="CANCELLED", num_sampled=5)
    outcome = s.event("verdict")["outcome"]
    assert (outcome.answer, outcome.proved, outcome.agent_id) == ("6*4=24", True, 1)
    assert (s.machine.accounts.used, s.machine.accounts.killed) == (5, 10)


def test_a_proof_that_is_no_answer_here_is_told_to_the_agent() -> None:
    s = Script(quorum="verified", equivalence="number").running()
    s.call(1)
    s.result("a1.1.c1", proof="6*4=24")
    assert len(s.all(m.Inject)) == 1
    assert s.machine.decision is None


def test_a_result_after_the_decision_changes_nothing() -> None:
    s = Script(quorum="verified").running()
    s.call(0)
    s.call(1, arguments='{"a":1}')
    s.result("a0.1.c1", proof="1")
    assert s.result("a1.1.c1", proof="2") == []
    assert [ballot.answer for ballot in s.machine.ballots] == ["1"]


# -- budget ------------------------------------------------------------------------------------


def test_grants_come_from_the_pool_and_never_exceed_it() -> None:
    s = Script(budget_tokens=32, max_tokens=10).running()
    assert {agent.granted for agent in s.machine.agents.values()} == {10}
    s.end(0, "3", num_sampled=4)
    s.write(1, 0, 10)
    s.put(m.GrantUsedUp("1.a", 1))
    assert s.all(m.Grant) == [m.Grant("1.a", {1: 18})]  # 2 left over, 6 given back
    s.write(1, 10, 8)
    assert s.put(m.GrantUsedUp("1.a", 1)) == []  # agent 2 may leave something yet
    s.write(2, 0, 10)
    s.put(m.GrantUsedUp("1.a", 2))
    assert s.all(m.Kill) == [m.Kill("1.a", (1, 2), "BUDGET")]
    s.end(1, "", finish="CANCELLED", num_sampled=18)
    s.end(2, "", finish="CANCELLED", num_sampled=10)
    outcome = s.event("verdict")["outcome"]
    assert (outcome.key, outcome.degraded_reasons) == ("3", ("BUDGET",))
    assert s.machine.accounts.generated == 32


def test_no_more_agents_begin_than_the_budget_carries() -> None:
    s = Script(num_agents=8, budget_tokens=100, max_tokens=40, quorum="all")
    assert list(s.machine.agents) == [0, 1]  # 40 tokens each, as expected
    assert {agent.granted for agent in s.machine.agents.values()} == {50}
    s.place(1, a=(0, 1))
    s.end(0, "3", num_sampled=20)  # agents take 20, it turns out; the pool has 30
    assert list(s.machine.agents) == [0, 1, 2]
    assert s.machine.agents[2].granted == 30


def test_an_agent_that_starts_over_has_spent_what_it_wrote() -> None:
    s = Script(num_agents=1, budget_tokens=10).running()
    s.write(0, 0, 10)
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    s.place(2, b=(0,))
    assert s.all(m.OpenGang) == []  # there is no token left to sample
    assert s.event("failed")["reason"] == "BUDGET_EXCEEDED"


def test_a_starved_agent_without_a_place_asks_when_tokens_come_back() -> None:
    s = Script(num_agents=2, budget_tokens=20, max_tokens=10).running(a=(0,), b=(1,))
    s.write(0, 0, 10)
    s.put(m.GangLost("1.a", "UNAVAILABLE"))
    s.place(2, b=(0,))
    assert s.all(m.OpenGang) == []
    s.end(1, "3", gang_id="1.b", num_sampled=4)
    [asked] = s.all(m.Declare)
    s.place(asked.attempt, b=(0,))
    assert s.all(m.OpenGang)[0].agents[0].granted == 16


# -- deadline, cancel, shutdown ----------------------------------------------------------------


def test_the_deadline_gives_what_exists() -> None:
    s = Script().running()
    s.end(0, "3")
    s.put(m.DeadlinePassed())
    assert s.events == ["decided"]
    assert s.all(m.Kill) == [m.Kill("1.a", (1, 2), "DEADLINE")]
    s.put(m.GangLost("1.a", "DEADLINE_EXCEEDED", "the kill was not acknowledged"))
    assert s.events == ["agent_killed", "agent_killed", "verdict"]
    assert s.event("verdict")["outcome"].degraded_reasons == ("DEADLINE",)


def test_an_answer_that_crosses_the_kill_is_taken_if_there_is_no_other() -> None:
    s = Script(num_agents=2).running()
    s.put(m.DeadlinePassed())
    s.end(0, "3")
    assert s.events == ["ballot_cast", "decided"]
    assert s.all(m.Kill) == []
    s.end(1, "4")
    assert s.events == ["agent_killed", "verdict"]
    assert s.event("verdict")["outcome"].key == "3"


def test_a_deadline_without_any_answer_says_what_the_last_problem_was() -> None:
    s = Script()
    s.put(m.Denied(1, "NO_ENDPOINT", "all are full", 0.5))
    s.put(m.DeadlinePassed())
    failed = s.event("failed")
    assert failed["reason"] == "DEADLINE_EXCEEDED"
    assert failed["message"].endswith("the last problem was: all are full")


def test_a_cancel_while_the_router_thinks_ends_at_once() -> None:
    s = Script()
    s.put(m.CancelRequested("DISCONNECTED"))
    assert s.events == ["agent_killed"] * 3 + ["cancelled"]
    assert s.event("cancelled")["reason"] == "DISCONNECTED"
    gang = m.PlacedGang("1.a", "a", "p", "r", (0, 1, 2), "why")
    assert s.put(m.Granted(1, (gang,), "fake")) == []


def test_a_cancel_after_the_decision_is_too_late() -> None:
    s = Script(quorum="unbeatable").running()
    s.end(0, "3")
    s.end(1, "3")
    assert s.put(m.CancelRequested("REQUESTED")) == []
    s.end(2, "", finish="CANCELLED")
    assert s.events == ["agent_killed", "verdict"]


def test_a_shutdown_fails_what_has_no_answer() -> None:
    s = Script().running()
    s.put(m.ShuttingDown(), m.GangLost("1.a", "UNAVAILABLE"))
    failed = s.event("failed")
    assert (failed["reason"], failed["retryable"]) == ("UNAVAILABLE", True)


# -- another owner -----------------------------------------------------------------------------


def test_a_new_owner_asks_for_everybody_anew_and_counts_no_loss() -> None:
    s = Script(client_tools=frozenset({"ask_user"})).running(a=(0, 1), b=(2,))
    s.write(0, 0, 4)
    s.call(0)
    s.call(1, name="ask_user")
    for epoch in range(2, 3 + MAX_LOSSES):
        s.put(m.OwnerChanged(epoch))
        assert s.events == ["agent_lost"] * 3 if epoch == 2 else s.events == []
        assert s.all(m.Declare) == [m.Declare(epoch, (0, 1, 2), (), True)]
        assert [run.call.name for run in s.all(m.RunTool)] == ["zoom"]
        assert s.all(m.BreakOff) == []
    s.place(attempt=epoch, c=(0, 1, 2))
    [opened] = s.all(m.OpenGang)
    assert [(a.attempt, a.num_sampled, a.pending_call_id) for a in opened.agents] == [
        (2, 4, "a0.1.c1"), (2, 0, "a1.1.c1"), (2, 0, ""),
    ]  # fmt: skip
    s.result("a0.1.c1")
    assert s.all(m.Inject)
    s.result("a1.1.c1")
    assert s.all(m.Inject)
    for agent_id in range(3):
        s.end(agent_id, "3", gang_id=f"{epoch}.c", attempt=2)
    assert not s.event("verdict")["outcome"].degraded_reasons


def test_a_new_owner_ends_what_was_decided() -> None:
    s = Script(quorum="unbeatable").running()
    s.write(2, 0, 4)
    s.end(0, "3")
    s.end(1, "3")
    assert s.all(m.Kill)
    s.put(m.OwnerChanged(2))
    assert s.events == ["agent_killed", "verdict"]
    assert s.machine.killed == [(2, "DECIDED", 4)]


def test_a_new_owner_does_not_wait_for_what_the_last_one_waited_for() -> None:
    s = Script(num_agents=1)
    s.put(m.Denied(1, "NO_ENDPOINT", "full", 0.5))
    assert s.all(m.AskLater)
    s.put(m.OwnerChanged(2))
    assert s.all(m.Declare) == [m.Declare(2, (0,), (), True)]
