"""One contemplation as a pure state machine: inputs in, effects out.

::

    start → placing → running → deciding → ended
               ^  ^      |          |
               |  +-lost-+          +-- kills acknowledged → verdict | failed | cancelled
               +---- the next round ┘

* placing: some agents wait for the router (``places``). * running: agents write, call tools, vote.
* deciding: the outcome of the round stands (quorum) or of all (budget, deadline, cancel); open
  agents are being stopped. Rounds, and how wide they are: ``rounds``.

Invariants (``tests/property/test_contemplation.py``, random orders of inputs):

1. Exactly one ending is emitted, and nothing after it.
2. Every agent is accounted for once: generated = used + killed + lost.
3. A ballot is cast at most once for each agent; stale attempts are ignored.
4. Identical tool calls are run once; every waiting agent gets the result.
5. With a budget, the sum of all grants never exceeds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import Accounts, AgentState
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import Ballot, Decision, count
from cogitate.aggregator.core.likeness import Likeness
from cogitate.aggregator.core.outbox import Outbox
from cogitate.aggregator.core.outcome import Outcome, outcome_of, unfinished
from cogitate.aggregator.core.places import Places
from cogitate.aggregator.core.preparation import Preparation
from cogitate.aggregator.core.races import Races
from cogitate.aggregator.core.rounds import Rounds
from cogitate.aggregator.core.strategies.synthesis import ROLE as SYNTHESIZER
from cogitate.aggregator.core.tool_calls import ToolCalls


class Contemplation:
    """Owned by one runner; every method returns the effects to perform, in order."""

    def __init__(self, spec: m.Spec) -> None:
        self.spec = spec
        self.rounds = Rounds(spec)
        self.agents, self.budget = self.rounds.agents, self.rounds.budget
        self.accounts = Accounts()
        self.killed: list[tuple[int, str, int]] = []
        self.decision: Decision | None = None
        self.ended = False
        self._out = Outbox()
        self.places = Places(self.rounds, self.accounts, self._out, spec)
        self.races = Races(spec, self.rounds, self.places, self.accounts, self._out)
        self._ahead = Preparation(self.rounds, self.places, self._out, wanted=spec.prepares)
        self._calls = ToolCalls(spec, self.agents, self._out, self._cast)
        self.tools = self._calls.runs
        self.likeness = Likeness(self.rounds, self._out, spec.equivalence, self._cast)
        self._emit = self._out.emit
        self._announced = False
        self._cut_short_by: list[str] = []  # degraded reasons
        self._failure: m.Failure | None = None
        self._cancelled = ""
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Granted: self.races.granted,
            m.Denied: self.races.denied,
            m.RetriesRefused: self.races.retries_refused,
            m.Straggling: self.races.straggling,
            m.Queued: self.places.queued,
            m.AskAgain: self.places.ask_again,
            m.Admitted: self.races.admitted,
            m.Prefilled: self.places.prefilled,
            m.Stepped: self._stepped,
            m.ToolCalled: self._tool_called,
            m.ToolReturned: self._tool_returned,
            m.AgentEnded: self._agent_ended,
            m.Embedded: self.likeness.embedded,
            m.GrantUsedUp: self._grant_used_up,
            m.GangLost: self._gang_lost,
            m.DeadlinePassed: self._deadline_passed,
            m.MoneySpent: lambda _: self._budget_ended("money budget"),
            m.CancelRequested: self._cancel_requested,
            m.ShuttingDown: self._shutting_down,
            m.OwnerChanged: self._owner_changed,
        }

    # -- the three entries -------------------------------------------------------------------

    def start(self) -> list[m.Effect]:
        """Begins: every agent needs a place."""
        self._start_round(self.rounds.begin())
        return self._out.take()

    def handle(self, event: m.Input) -> list[m.Effect]:
        """Takes one input. After the ending nothing has an effect."""
        if self.ended:
            return []
        if not self._ahead.heard(event):
            self._handlers[type(event)](event)
        self._advance()
        self._ahead.look(decided=self.decision is not None)
        return self._out.take()

    def flush(self) -> list[m.Effect]:
        """Emits collected text; the shell calls it some times a second."""
        self._out.flush()
        return self._out.take()

    @property
    def ballots(self) -> list[Ballot]:
        """All that were cast, of all rounds."""
        return self.rounds.all_ballots

    @property
    def awaits_client(self) -> bool:
        """Whether an agent waits for a tool in the client."""
        calls = [agent.pending_call for agent in self._open_agents()]
        return any(call is not None and call.name in self.spec.client_tools for call in calls)

    # -- what endpoints say ------------------------------------------------------------------

    def _current(self, gang_id: str, agent_id: int, attempt: int) -> AgentState | None:
        """The agent, unless this is stale or none of the endpoint's business."""
        agent = self.agents.get(agent_id)
        if agent is None or not agent.open:
            return None
        return agent if (agent.gang_id, agent.attempt) == (gang_id, attempt) else None

    def _stepped(self, event: m.Stepped) -> None:
        for delta in event.deltas:
            agent = self._current(event.gang_id, delta.agent_id, delta.attempt)
            if agent is None:
                self.races.stepped(event.gang_id, delta)
                continue
            if delta.token_offset != agent.num_sampled:
                # Tokens are missing or repeated: go on elsewhere from the last good one.
                message = "the endpoint's tokens do not follow each other"
                self._gang_lost(m.GangLost(event.gang_id, "ENGINE_FAILURE", message))
                return
            agent.record(delta)
            self._out.write(delta)
            if delta.is_answer and self.rounds.plan.role == SYNTHESIZER:
                self._emit("verdict_delta", text=delta.text)

    def _gang_lost(self, event: m.GangLost) -> None:
        if self.decision is None:
            self.races.gang_lost(event)
            self.places.lost(event)
            return
        for agent in self.places.of(event.gang_id):
            # Nobody is left to acknowledge the kill: book what was seen.
            self._book_kill(agent)

    def _agent_ended(self, event: m.AgentEnded) -> None:
        self.races.decided_by(event)
        if (agent := self._current(event.gang_id, event.agent_id, event.attempt)) is None:
            return
        self.accounts.add_prompt(event.num_prompt, event.num_cached)
        if event.finish == "CONFIDENCE":
            agent.killing = agent.killing or "CONFIDENCE"
        broke = event.finish in ("CANCELLED", "ERROR", "CONFIDENCE")
        if broke and not agent.killing:
            # Nobody asked for it: the engine failed or is going away.
            self.accounts.lost += max(0, event.num_sampled - agent.num_sampled)
            why = f"the engine stopped the agent ({event.reason or event.finish})"
            self.places.move([agent], "ENGINE_FAILURE", why)
            return
        agent.num_sampled = max(0, event.num_sampled)
        self.accounts.injected += max(0, event.num_injected)
        if broke or (agent.killing and not self._still_counts(event)):
            self._book_kill(agent)
            return
        agent.open = False
        self.budget.settle(agent)
        self.accounts.used += agent.num_sampled
        self.budget.learn(agent.num_sampled)
        if self.decision is None and self.likeness.holds(agent, event):
            return  # its ballot waits for the answer's vector
        self._cast(agent, event.answer, event)
        if self.decision is not None:
            self._decide(self._from_what_exists(self.decision.reason), agent.killing)

    def _still_counts(self, event: m.AgentEnded) -> bool:
        """Whether an answer that crossed its kill on the way is the only one there is."""
        assert self.decision
        return not (self.decision.key or self._cancelled) and bool(event.answer.strip())

    def _cast(self, agent: AgentState, answer: str, event: m.AgentEnded | None = None) -> None:
        """Counts an agent's ballot; without an event it rests on a proof alone."""
        own = key_of(answer, self.spec.equivalence)
        proved = bool(own) and own == key_of(agent.proved_answer, self.spec.equivalence)
        key = self.likeness.key(agent, own)
        ballot = agent.ballot(answer, key, self.rounds.number, event, proved=proved)
        agent.voted = True
        weight = min(1.0, max(0.0, self.rounds.strategy.weigh(ballot)))
        had_threshold = self.rounds.threshold is not None
        self.rounds.cast(replace(ballot, weight=weight))
        ballots = self.rounds.ballots
        tallies = count(ballots)
        self._emit(
            "ballot_cast",
            ballot=ballots[-1],
            leader_key=tallies[0].key if tallies else "",
            leader_count=len(tallies[0].ballots) if tallies else 0,
            ballot_count=len(ballots),
        )
        if self.rounds.threshold is not None and not had_threshold:
            open_ = {agent.gang_id for agent in self._open_agents()} | self.races.gang_ids()
            for gang_id in sorted(open_ - {""}):
                self._out.add(m.SetThreshold(gang_id, self.rounds.threshold))

    # -- tools -------------------------------------------------------------------------------

    def _tool_called(self, event: m.ToolCalled) -> None:
        self.races.decided_by(event)
        agent = self._current(event.gang_id, event.agent_id, event.attempt)
        if agent is not None and not agent.killing:
            self._calls.called(agent, event.call)

    def _tool_returned(self, event: m.ToolReturned) -> None:
        if self.decision is None:
            self._calls.returned(event)

    # -- budget, deadline, cancel ------------------------------------------------------------

    def _grant_used_up(self, event: m.GrantUsedUp) -> None:
        agent = self.agents.get(event.agent_id)
        if agent is not None and agent.open and agent.gang_id == event.gang_id:
            agent.starved = True

    @property
    def _is_over(self) -> bool:
        """Whether no round follows."""
        return self.rounds.is_last or bool(self._cut_short_by or self._cancelled)

    @property
    def _settled(self) -> bool:
        """Whether the outcome of all stands, and not only that of a round before the last."""
        return self.decision is not None and (self._announced or self._is_over)

    def _deadline_passed(self, _: m.DeadlinePassed) -> None:
        if not self._settled:
            why = "the deadline passed before any answer"
            if self.places.failure is not None:
                why += f"; the last problem was: {self.places.failure.message}"
            self._failure = m.Failure("DEADLINE_EXCEEDED", why, False)
            self._cut_short("DEADLINE", "the deadline passed", "DEADLINE")

    def _budget_ended(self, which: str) -> None:
        if not self._settled:
            why = f"the {which} ended before any answer"
            self._failure = m.Failure("BUDGET_EXCEEDED", why, False)
            self._cut_short("BUDGET", f"the {which} is used up", "BUDGET")

    def _shutting_down(self, _: m.ShuttingDown) -> None:
        if not self._settled:
            message = "the aggregator is shutting down; ask again"
            self._failure = m.Failure("UNAVAILABLE", message, True)
            self._cut_short("AGENTS_LOST", "the aggregator is shutting down", "LOST")

    def _owner_changed(self, _: m.OwnerChanged) -> None:
        for agent in self._open_agents() if self.decision else ():
            self._book_kill(agent)  # nobody is left to acknowledge it
        self.races.close(self._open_agents(), kill=False)
        if self.decision is None:
            self.places.owner_changed()
            self.likeness.ask_again()
            for agent_id, run in self.tools.unanswered():
                if run.call.name not in self.spec.client_tools:
                    self._out.add(m.RunTool(agent_id, run.call, run.pictures))

    def _cancel_requested(self, event: m.CancelRequested) -> None:
        if not self._settled:
            self._cancelled = event.reason
            self._decide(Decision("", "cancelled"), "CANCELLED")

    def _cut_short(self, degraded: str, why: str, kill_reason: str) -> None:
        self._cut_short_by.append(degraded)
        self.likeness.give_up("the time for it is over")
        self._decide(self._from_what_exists(why), kill_reason)

    def _from_what_exists(self, why: str) -> Decision:
        tallies = count(self.rounds.ballots)
        return Decision(tallies[0].key if tallies else "", why)

    # -- deciding ----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Looks whether the outcome stands, and ends when nobody is open any more."""
        if self.decision is None:
            num_running = sum(not agent.voted for agent in self._open_agents())
            num_running += len(self.likeness.waiting)
            decision = self.rounds.judge(num_running)
            if decision is not None:
                self._decide(decision, "DECIDED")
            else:
                self._widen(num_running)
                if self.budget.limit and self.places.regrant() and not self.likeness.waiting:
                    self._budget_ended(self.budget.name)
        if self.decision is not None and not self._open_agents():
            following = [] if self._settled else self.rounds.follow()
            if following:
                self.places.close()
                self.decision = None
                self._start_round(following)
            else:
                self._end()

    def _start_round(self, agents: Sequence[AgentState]) -> None:
        self._emit(
            "round_started",
            round_number=self.rounds.number,
            role=self.rounds.plan.role,
            agent_ids=tuple(agent.agent_id for agent in agents),
        )
        self.places.ask(agents)

    def _widen(self, num_running: int) -> None:
        """More agents, once those that run cannot decide it among themselves."""
        if not (agents := self.rounds.widen(num_running)):
            return
        tallies = count(self.rounds.ballots)
        agree = len(tallies[0].ballots) if tallies else 0
        self._emit(
            "widened",
            agent_ids=tuple(agent.agent_id for agent in agents),
            reason=f"{agree} of {len(self.rounds.ballots)} ballots agree, {num_running} are open",
        )
        self.places.ask(agents)

    def _decide(self, decision: Decision, kill_reason: str) -> None:
        """The outcome stands: open agents are stopped, once."""
        self.decision = decision
        self.rounds.drop_reserve()
        self.races.close(self._open_agents())
        if self._is_over:
            self._announce(decision)
        by_gang: dict[str, list[int]] = {}
        for agent in self.likeness.drop():
            agent.killing = kill_reason
            self.accounts.used -= agent.num_sampled
            self._book_kill(agent)
        for agent in self._open_agents():
            if agent.killing:
                continue
            agent.killing = kill_reason
            if agent.gang_id:
                by_gang.setdefault(agent.gang_id, []).append(agent.agent_id)
            else:
                self._book_kill(agent)
        for gang_id, agent_ids in by_gang.items():
            self._out.add(m.Kill(gang_id, tuple(agent_ids), kill_reason))

    def _announce(self, decision: Decision) -> None:
        if decision.key and not self._announced:
            self._announced = True
            self._emit("decided", quorum=self.spec.quorum, key=decision.key, reason=decision.reason)

    def _book_kill(self, agent: AgentState) -> None:
        agent.open = False
        self.budget.settle(agent)
        if agent.voted:
            # It voted by its proof before it was stopped: its tokens were used.
            self.accounts.used += agent.num_sampled
            return
        self.accounts.killed += agent.num_sampled
        self.killed.append((agent.agent_id, agent.killing, agent.num_sampled))
        self._emit(
            "agent_killed",
            agent_id=agent.agent_id,
            reason=agent.killing,
            num_sampled=agent.num_sampled,
        )

    def _end(self) -> None:
        """Emits the one ending."""
        assert self.decision
        self.ended = True
        self.places.close()
        if self._cancelled:
            self._emit("cancelled", reason=self._cancelled)
        elif outcome := self._outcome():
            self._emit("verdict", outcome=outcome)
        else:
            failure = self._failure or self.places.failure or m.NO_ANSWER
            self._emit("failed", **failure._asdict())

    def _outcome(self) -> Outcome | None:
        if not self.ballots:
            return unfinished(self.agents.values(), self._cut_short_by)
        lost = ["AGENTS_LOST"] if self.places.gave_up else []
        ballots, decision = self.rounds.conclude(self.decision or Decision("", ""))
        self._announce(decision)
        return outcome_of(ballots, decision, [*self._cut_short_by, *lost])

    def _open_agents(self) -> list[AgentState]:
        return [agent for agent in self.agents.values() if agent.open]
