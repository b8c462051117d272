"""One contemplation as a pure state machine: inputs in, effects out.

::

    start → placing → running → deciding → ended
               ^         |          |
               +--lost---+          +-- kills acknowledged → verdict | failed | cancelled

* placing: some agents wait for the router (``places``). * running: agents write, call tools, vote.
* deciding: the outcome stands (quorum, budget, deadline, cancel); open agents are being stopped.

Invariants (``tests/property/test_contemplation.py``, random orders of inputs):

1. Exactly one ending is emitted, and nothing after it.
2. Every agent is accounted for once: generated = used + killed + lost.
3. A ballot is cast at most once for each agent; stale attempts are ignored.
4. Identical tool calls are run once; every waiting agent gets the result.
5. With a budget, the sum of all grants never exceeds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import Accounts, AgentState, ToolRun, ToolRuns
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import QUORUMS, Ballot, Decision, count
from cogitate.aggregator.core.budget import Budget
from cogitate.aggregator.core.outbox import Outbox
from cogitate.aggregator.core.outcome import outcome_of
from cogitate.aggregator.core.places import Places
from cogitate.aggregator.core.strategies import STRATEGIES


class Contemplation:
    """Owned by one runner; every method returns the effects to perform, in order."""

    def __init__(self, spec: m.Spec) -> None:
        self.spec = spec
        self.ballots: list[Ballot] = []
        self.accounts = Accounts()
        self.tools = ToolRuns()
        self.killed: list[tuple[int, str, int]] = []
        self.decision: Decision | None = None
        self.ended = False
        self._strategy = STRATEGIES[spec.strategy]
        self._rule = QUORUMS[spec.quorum]
        plans = self._strategy.plan(spec.num_agents, spec.temperature)
        self.agents = {plan.agent_id: AgentState(plan) for plan in plans}
        self.budget = Budget(spec.budget_tokens, self.agents.values())
        self._out = Outbox()
        self.places = Places(self.agents, self.budget, self.accounts, self._out, spec.patience_s)
        self._emit = self._out.emit
        self._cut_short_by: list[str] = []  # degraded reasons
        self._failure: tuple[str, str, bool] | None = None  # reason, message, retryable
        self._cancelled = ""
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Granted: self.places.granted,
            m.Denied: self.places.denied,
            m.AskAgain: self.places.ask_again,
            m.Admitted: self._admitted,
            m.Prefilled: self._prefilled,
            m.Stepped: self._stepped,
            m.ToolCalled: self._tool_called,
            m.ToolReturned: self._tool_returned,
            m.AgentEnded: self._agent_ended,
            m.GrantUsedUp: self._grant_used_up,
            m.GangLost: self._gang_lost,
            m.DeadlinePassed: self._deadline_passed,
            m.CancelRequested: self._cancel_requested,
            m.ShuttingDown: self._shutting_down,
            m.OwnerChanged: self._owner_changed,
        }

    # -- the three entries -------------------------------------------------------------------

    def start(self) -> list[m.Effect]:
        """Begins: every agent needs a place."""
        for feature, message in self.spec.left_out:
            self._emit("feature_degraded", feature=feature, message=message)
        self._emit("round_started", round_number=1, role="solver", agent_ids=tuple(self.agents))
        self.places.ask(self.agents.values())
        return self._out.take()

    def handle(self, event: m.Input) -> list[m.Effect]:
        """Takes one input. After the ending nothing has an effect."""
        if self.ended:
            return []
        self._handlers[type(event)](event)
        self._advance()
        return self._out.take()

    def flush(self) -> list[m.Effect]:
        """Emits collected text; the shell calls it some times a second."""
        self._out.flush()
        return self._out.take()

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

    def _admitted(self, event: m.Admitted) -> None:
        for agent in self.places.admitted(event.gang_id, event.build_digest):
            gang = self.places.gangs[event.gang_id]
            self._emit(
                "agent_started",
                agent_id=agent.agent_id,
                attempt=agent.attempt,
                endpoint_id=gang.endpoint_id,
                provider=gang.provider,
                hint=event.hints.get(agent.agent_id, ""),
                role="solver",
            )

    def _prefilled(self, event: m.Prefilled) -> None:
        if not self.places.of(event.gang_id):
            return
        self.accounts.prompt += event.num_prompt
        self.accounts.cached += event.num_cached
        self._emit(
            "prefilled",
            gang_id=event.gang_id,
            endpoint_id=self.places.gangs[event.gang_id].endpoint_id,
            prompt_token_count=event.num_prompt,
            cached_token_count=event.num_cached,
            seconds=event.seconds,
        )

    def _stepped(self, event: m.Stepped) -> None:
        for delta in event.deltas:
            agent = self._current(event.gang_id, delta.agent_id, delta.attempt)
            if agent is None:
                continue
            if delta.token_offset != agent.num_sampled:
                # Tokens are missing or repeated: go on elsewhere from the last good one.
                message = "the endpoint's tokens do not follow each other"
                self._gang_lost(m.GangLost(event.gang_id, "ENGINE_FAILURE", message))
                return
            agent.record(delta)
            self._out.write(delta)

    def _gang_lost(self, event: m.GangLost) -> None:
        if self.decision is None:
            self.places.lost(event)
            return
        for agent in self.places.of(event.gang_id):
            # Nobody is left to acknowledge the kill: book what was seen.
            self._book_kill(agent)

    def _agent_ended(self, event: m.AgentEnded) -> None:
        agent = self._current(event.gang_id, event.agent_id, event.attempt)
        if agent is None:
            return
        broke = event.finish in ("CANCELLED", "ERROR")
        if broke and not agent.killing:
            # Nobody asked for it: the engine failed or is going away.
            self.accounts.lost += max(0, event.num_sampled - agent.num_sampled)
            self.places.move([agent], "ENGINE_FAILURE", "the engine stopped the agent")
            return
        agent.num_sampled = max(0, event.num_sampled)
        self.accounts.injected += max(0, event.num_injected)
        if broke or (agent.killing and not self._still_counts(event)):
            self._book_kill(agent)
            return
        agent.open = False
        self.budget.settle(agent)
        self.accounts.used += agent.num_sampled
        self._cast(agent, event.answer, event)
        if self.decision is not None:
            self._decide(self._from_what_exists(self.decision.reason), agent.killing)

    def _still_counts(self, event: m.AgentEnded) -> bool:
        """Whether an answer that crossed its kill on the way is the only one there is."""
        assert self.decision is not None
        return not (self.decision.key or self._cancelled) and bool(event.answer.strip())

    def _cast(self, agent: AgentState, answer: str, event: m.AgentEnded | None = None) -> None:
        """Counts an agent's ballot; without an event it rests on a proof alone."""
        key = key_of(answer, self.spec.equivalence)
        proved = bool(key) and key == key_of(agent.proved_answer, self.spec.equivalence)
        ballot = Ballot(
            agent_id=agent.agent_id,
            attempt=agent.attempt,
            answer=answer,
            key=key,
            proved=proved,
            mean_logprob=event.mean_logprob if event else 0.0,
            lowest_confidence=event.lowest_confidence if event else 0.0,
            group_confidence=event.group_confidence if event else 0.0,
            finish=event.finish if event else "STOP",
            num_sampled=agent.num_sampled,
        )
        agent.voted = True
        weight = min(1.0, max(0.0, self._strategy.weigh(ballot)))
        self.ballots.append(replace(ballot, weight=weight))
        tallies = count(self.ballots)
        self._emit(
            "ballot_cast",
            ballot=self.ballots[-1],
            leader_key=tallies[0].key if tallies else "",
            leader_count=len(tallies[0].ballots) if tallies else 0,
            ballot_count=len(self.ballots),
        )

    # -- tools -------------------------------------------------------------------------------

    def _tool_called(self, event: m.ToolCalled) -> None:
        agent = self._current(event.gang_id, event.agent_id, event.attempt)
        if agent is None or agent.killing or event.call.call_id in self.tools.seen:
            return
        agent.pending_call = event.call
        run, first = self.tools.join(event.agent_id, event.call)
        self._emit(
            "tool_call_started",
            agent_id=event.agent_id,
            call=event.call,
            shared_call_id="" if first else run.call.call_id,
        )
        if run.result is not None:
            self._deliver(run)
        elif first and event.call.name in self.spec.client_tools:
            self._emit("awaiting_client", agent_ids=(event.agent_id,), call=event.call)
        elif first:
            self._out.add(m.RunTool(event.agent_id, event.call))

    def _tool_returned(self, event: m.ToolReturned) -> None:
        run = self.tools.by_call_id.get(event.call_id)
        if run is None or run.result is not None or self.decision is not None:
            return
        run.result = event.result
        self._deliver(run)

    def _deliver(self, run: ToolRun) -> None:
        """Gives the result to everybody who waits for it."""
        result = run.result
        assert result is not None
        waiting, run.waiting = run.waiting, []
        for agent_id, call in waiting:
            agent = self.agents[agent_id]
            if not agent.open or agent.pending_call != call:
                continue
            self._emit(
                "tool_call_finished",
                agent_id=agent_id,
                call_id=call.call_id,
                result=result,
                shared=call.call_id != run.call.call_id,
            )
            agent.pending_call = None
            agent.segments.append(m.Segment(result=result.payload))
            agent.proved_answer = result.proved_answer or agent.proved_answer
            if self.spec.quorum == "verified" and key_of(
                result.proved_answer, self.spec.equivalence
            ):
                # The proof is the answer: no need to have it written out.
                self._cast(agent, result.proved_answer)
            elif agent.gang_id:
                self._out.add(m.Inject(agent.gang_id, agent_id, call.call_id, result.payload))

    # -- budget, deadline, cancel ------------------------------------------------------------

    def _grant_used_up(self, event: m.GrantUsedUp) -> None:
        agent = self.agents.get(event.agent_id)
        if agent is not None and agent.open and agent.gang_id == event.gang_id:
            agent.starved = True

    def _regrant(self) -> None:
        """Hands out what others left; when nothing is left and all wait, the budget is over."""
        for agent in self._open_agents():
            if not agent.starved or not self.budget.top_up(agent):
                continue
            agent.starved = False
            if agent.gang_id:
                self._out.add(m.Grant(agent.gang_id, {agent.agent_id: agent.granted}))
            else:
                self.places.ask([agent])
        waiting = self._open_agents()
        if waiting and all(agent.starved for agent in waiting):
            self._failure = ("BUDGET_EXCEEDED", "the token budget ended before any answer", False)
            self._cut_short("BUDGET", "the token budget is used up", "BUDGET")

    def _deadline_passed(self, _: m.DeadlinePassed) -> None:
        if self.decision is None:
            why = "the deadline passed before any answer"
            if self.places.failure is not None:
                why += f"; the last problem was: {self.places.failure[1]}"
            self._failure = ("DEADLINE_EXCEEDED", why, False)
            self._cut_short("DEADLINE", "the deadline passed", "DEADLINE")

    def _shutting_down(self, _: m.ShuttingDown) -> None:
        if self.decision is None:
            message = "the aggregator is shutting down; ask again"
            self._failure = ("UNAVAILABLE", message, True)
            self._cut_short("AGENTS_LOST", "the aggregator is shutting down", "LOST")

    def _owner_changed(self, _: m.OwnerChanged) -> None:
        for agent in self._open_agents() if self.decision else ():
            self._book_kill(agent)  # nobody is left to acknowledge it
        if self.decision is None:
            self.places.owner_changed()
            for agent_id, call in self.tools.unanswered():
                if call.name not in self.spec.client_tools:
                    self._out.add(m.RunTool(agent_id, call))

    def _cancel_requested(self, event: m.CancelRequested) -> None:
        if self.decision is None:
            self._cancelled = event.reason
            self._decide(Decision("", "cancelled"), "CANCELLED")

    def _cut_short(self, degraded: str, why: str, kill_reason: str) -> None:
        self._cut_short_by.append(degraded)
        self._decide(self._from_what_exists(why), kill_reason)

    def _from_what_exists(self, why: str) -> Decision:
        tallies = count(self.ballots)
        return Decision(tallies[0].key if tallies else "", why)

    # -- deciding ----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Looks whether the outcome stands, and ends when nobody is open any more."""
        if self.decision is None:
            num_open = sum(not agent.voted for agent in self._open_agents())
            decision = self._rule(self.ballots, num_open)
            if decision is not None:
                self._decide(decision, "DECIDED")
            elif self.budget.limit:
                self._regrant()
        if self.decision is not None and not self._open_agents():
            self._end()

    def _decide(self, decision: Decision, kill_reason: str) -> None:
        """The outcome stands: open agents are stopped, once."""
        self.decision = decision
        if decision.key:
            self._emit("decided", quorum=self.spec.quorum, key=decision.key, reason=decision.reason)
        by_gang: dict[str, list[int]] = {}
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
        assert self.decision is not None
        self.ended = True
        for gang_id in self.places.gangs:
            self._out.add(m.CloseGang(gang_id))
        if self._cancelled:
            self._emit("cancelled", reason=self._cancelled)
        elif not self.ballots:
            reason, message, retryable = (
                self._failure
                or self.places.failure
                or ("NO_QUORUM", "no agent gave an answer", True)
            )
            self._emit("failed", reason=reason, message=message, retryable=retryable)
        else:
            lost = ["AGENTS_LOST"] if self.places.gave_up else []
            degraded = [*self._cut_short_by, *lost]
            self._emit("verdict", outcome=outcome_of(self.ballots, self.decision, degraded))

    def _open_agents(self) -> list[AgentState]:
        return [agent for agent in self.agents.values() if agent.open]
