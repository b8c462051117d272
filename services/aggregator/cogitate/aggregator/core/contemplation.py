"""One contemplation as a pure state machine: inputs in, effects out.

::

    start → placing → running → deciding → ended
               ^         |          |
               +--lost---+          +-- kills acknowledged → verdict | failed | cancelled

* placing: some agents wait for the router. * running: agents write, call tools, vote.
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
from typing import Any

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import Accounts, AgentState, DeltaBuffer, ToolRun, ToolRuns
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.ballots import QUORUMS, Ballot, Decision, count
from cogitate.aggregator.core.strategies import STRATEGIES

# An agent that lost its endpoint this often is given up.
MAX_LOSSES = 3
# Tokens granted at a time once the even shares are used up.
GRANT_CHUNK = 16


class Contemplation:
    """Owned by one runner; every method returns the effects to perform, in order."""

    def __init__(self, spec: m.Spec) -> None:
        self.spec = spec
        self.ballots: list[Ballot] = []
        self.accounts = Accounts()
        self.tools = ToolRuns()
        self.killed: list[tuple[int, str, int]] = []
        self.gangs: dict[str, m.PlacedGang] = {}
        self.decision: Decision | None = None
        self.ended = False
        self._strategy = STRATEGIES[spec.strategy]
        self._rule = QUORUMS[spec.quorum]
        plans = self._strategy.plan(spec.num_agents, spec.temperature)
        share = spec.budget_tokens // len(plans)
        self._pool = spec.budget_tokens - share * len(plans)
        self.agents = {plan.agent_id: AgentState(plan, share) for plan in plans}
        self._attempt = 1
        self._buffer = DeltaBuffer()
        self._degraded: list[str] = []
        self._failure: tuple[str, str, bool] | None = None  # reason, message, retryable
        self._cancelled = ""
        self._effects: list[m.Effect] = []

    # -- the two entries ---------------------------------------------------------------------

    def start(self) -> list[m.Effect]:
        """Begins: every agent needs a place."""
        agent_ids = tuple(self.agents)
        self._emit("round_started", round_number=1, role="solver", agent_ids=agent_ids)
        self._effects.append(m.Declare(self._attempt, agent_ids))
        return self._take()

    def handle(self, event: m.Input) -> list[m.Effect]:
        """Takes one input. After the ending nothing has an effect."""
        if self.ended:
            return []
        handlers: dict[type, Callable[[Any], None]] = {
            m.Granted: self._granted,
            m.Denied: self._denied,
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
        }
        handlers[type(event)](event)
        self._advance()
        return self._take()

    def flush(self) -> list[m.Effect]:
        """Emits buffered text; the shell calls it some times a second."""
        if deltas := self._buffer.take():
            self._effects.append(m.Emit("deltas", {"deltas": deltas}))
        return self._take()

    def _take(self) -> list[m.Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _emit(self, kind: str, **fields: Any) -> None:
        if deltas := self._buffer.take():
            self._effects.append(m.Emit("deltas", {"deltas": deltas}))
        self._effects.append(m.Emit(kind, fields))

    # -- places ------------------------------------------------------------------------------

    def _granted(self, event: m.Granted) -> None:
        if self.decision is not None:
            return
        self._emit("placed", gangs=event.gangs, policy=event.policy, payload=event.payload)
        for gang in event.gangs:
            wanted = [
                self.agents[i]
                for i in gang.agent_ids
                if self.agents[i].open and not self.agents[i].gang_id
            ]
            if not wanted:
                continue
            self.gangs[gang.gang_id] = gang
            for agent in wanted:
                agent.gang_id = gang.gang_id
            orders = tuple(agent.order() for agent in wanted)
            self._effects.append(m.OpenGang(gang, event.attempt, orders))

    def _denied(self, event: m.Denied) -> None:
        self._failure = (event.reason, event.message, event.retryable)
        for agent in self._open_agents():
            if not agent.gang_id:
                self._give_up(agent)

    def _admitted(self, event: m.Admitted) -> None:
        gang = self.gangs[event.gang_id]
        for agent in self._agents_of(event.gang_id):
            agent.build_digest = event.build_digest
            self._emit(
                "agent_started",
                agent_id=agent.plan.agent_id,
                attempt=agent.attempt,
                endpoint_id=gang.endpoint_id,
                provider=gang.provider,
                hint=event.hints.get(agent.plan.agent_id, ""),
                role="solver",
            )

    def _prefilled(self, event: m.Prefilled) -> None:
        self.accounts.prompt += event.num_prompt
        self.accounts.cached += event.num_cached
        self._emit(
            "prefilled",
            gang_id=event.gang_id,
            endpoint_id=self.gangs[event.gang_id].endpoint_id,
            prompt_token_count=event.num_prompt,
            cached_token_count=event.num_cached,
            seconds=event.seconds,
        )

    def _gang_lost(self, event: m.GangLost) -> None:
        gang = self.gangs.get(event.gang_id)
        agents = self._agents_of(event.gang_id)
        if gang is None or not agents:
            return
        if self.decision is not None:
            # Nobody is left to acknowledge the kill: book what was seen.
            for agent in agents:
                self._book_kill(agent, agent.num_sampled)
            return
        stale_state = event.reason == "BUILD_MISMATCH"
        self._failure = (event.reason, event.message or "an endpoint was lost", True)
        moving = []
        for agent in agents:
            agent.gang_id = ""
            agent.num_losses += 1
            moves = agent.num_losses < MAX_LOSSES
            self._emit(
                "agent_lost",
                agent_id=agent.plan.agent_id,
                attempt=agent.attempt,
                endpoint_id=gang.endpoint_id,
                reason=event.reason,
                resumed=moves,
            )
            if stale_state:
                self._retract(agent)
            if not moves:
                self._give_up(agent)
                continue
            agent.attempt += 1
            moving.append(agent.plan.agent_id)
        if moving:
            self._attempt += 1
            failed = () if stale_state else ((gang.endpoint_id, event.reason),)
            self._effects.append(m.Declare(self._attempt, tuple(moving), failed))

    def _retract(self, agent: AgentState) -> None:
        """What it wrote cannot be continued where it goes: it starts over, visibly."""
        self.accounts.lost += agent.num_sampled
        if agent.num_sampled:
            self._emit(
                "text_retracted",
                agent_id=agent.plan.agent_id,
                attempt=agent.attempt,
                token_offset=0,
            )
        agent.forget()

    def _give_up(self, agent: AgentState) -> None:
        agent.open = False
        self.accounts.lost += agent.num_sampled
        if "AGENTS_LOST" not in self._degraded:
            self._degraded.append("AGENTS_LOST")

    # -- what agents do ----------------------------------------------------------------------

    def _stepped(self, event: m.Stepped) -> None:
        for delta in event.deltas:
            agent = self.agents.get(delta.agent_id)
            if agent is None or not agent.open or agent.attempt != delta.attempt:
                continue
            agent.record(delta)
            if self._buffer.splits(delta):
                self._effects.append(m.Emit("deltas", {"deltas": self._buffer.take()}))
            self._buffer.add(delta)

    def _tool_called(self, event: m.ToolCalled) -> None:
        agent = self.agents.get(event.agent_id)
        if agent is None or not agent.open or agent.attempt != event.attempt or agent.killing:
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
            self._effects.append(m.RunTool(event.agent_id, event.call))

    def _tool_returned(self, event: m.ToolReturned) -> None:
        run = self.tools.by_call_id.get(event.call_id)
        if run is None or run.result is not None:
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
            waits = agent.pending_call is not None and agent.pending_call.call_id == call.call_id
            if not agent.open or not waits:
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
            if result.proved_answer and self.spec.quorum == "verified":
                # The proof is the answer: no need to have it written out.
                self._cast(agent, result.proved_answer, "STOP", 0.0, 0.0, 0.0)
            elif agent.gang_id and not agent.killing:
                self._effects.append(
                    m.Inject(agent.gang_id, agent_id, call.call_id, result.payload)
                )

    def _agent_ended(self, event: m.AgentEnded) -> None:
        agent = self.agents.get(event.agent_id)
        if agent is None or not agent.open or agent.attempt != event.attempt:
            return
        self._pool += max(0, agent.granted - event.num_sampled) if self.spec.budget_tokens else 0
        self.accounts.injected += event.num_injected
        agent.num_sampled = event.num_sampled
        if agent.killing or event.finish == "CANCELLED":
            self._book_kill(agent, event.num_sampled)
        elif event.finish == "ERROR":
            self._failure = ("ENGINE_FAILURE", "the engine failed", True)
            self._give_up(agent)
        else:
            agent.open = False
            self.accounts.used += event.num_sampled
            self._cast(
                agent,
                event.answer,
                event.finish,
                event.mean_logprob,
                event.lowest_confidence,
                event.group_confidence,
            )

    def _cast(
        self,
        agent: AgentState,
        answer: str,
        finish: str,
        mean_logprob: float,
        lowest_confidence: float,
        group_confidence: float,
    ) -> None:
        key = key_of(answer, self.spec.equivalence)
        proved = bool(key) and key == key_of(agent.proved_answer, self.spec.equivalence)
        ballot = Ballot(
            agent_id=agent.plan.agent_id,
            attempt=agent.attempt,
            answer=answer,
            key=key,
            proved=proved,
            mean_logprob=mean_logprob,
            lowest_confidence=lowest_confidence,
            group_confidence=group_confidence,
            finish=finish,
            num_sampled=agent.num_sampled,
        )
        self.ballots.append(ballot)
        tallies = count(self.ballots)
        self._emit(
            "ballot_cast",
            ballot=ballot,
            leader_key=tallies[0].key if tallies else "",
            leader_count=len(tallies[0].ballots) if tallies else 0,
            ballot_count=len(self.ballots),
        )

    # -- budget, deadline, cancel ------------------------------------------------------------

    def _grant_used_up(self, event: m.GrantUsedUp) -> None:
        agent = self.agents.get(event.agent_id)
        if agent is not None and agent.open and agent.gang_id == event.gang_id:
            agent.starved = True

    def _regrant(self) -> None:
        """Hands out what others left; when nothing is left and all wait, the budget is over."""
        for agent in self._open_agents():
            if not agent.starved or self._pool <= 0:
                continue
            chunk = min(GRANT_CHUNK, self._pool)
            self._pool -= chunk
            agent.granted += chunk
            agent.starved = False
            totals = {agent.plan.agent_id: agent.granted}
            self._effects.append(m.Grant(agent.gang_id, totals))
        waiting = self._open_agents()
        if waiting and all(agent.starved for agent in waiting):
            self._degraded.append("BUDGET")
            self._failure = ("BUDGET_EXCEEDED", "the token budget ended before any answer", False)
            self._decide(self._from_what_exists("the token budget is used up"), "BUDGET")

    def _deadline_passed(self, _: m.DeadlinePassed) -> None:
        if self.decision is None:
            self._degraded.append("DEADLINE")
            self._failure = ("DEADLINE_EXCEEDED", "the deadline passed before any answer", False)
            self._decide(self._from_what_exists("the deadline passed"), "DEADLINE")

    def _cancel_requested(self, event: m.CancelRequested) -> None:
        self._cancelled = event.reason
        if self.decision is None:
            self._decide(Decision("", "cancelled"), "CANCELLED")

    def _from_what_exists(self, why: str) -> Decision:
        tallies = count(self.ballots)
        return Decision(tallies[0].key if tallies else "", why)

    # -- deciding ----------------------------------------------------------------------------

    def _advance(self) -> None:
        """Looks whether the outcome stands, and ends when nobody is open any more."""
        if self.decision is None:
            num_open = len([a for a in self._open_agents() if not self._has_voted(a)])
            decision = self._rule(self.ballots, num_open)
            if decision is not None:
                self._decide(decision, "DECIDED")
            elif self.spec.budget_tokens:
                self._regrant()
        if self.decision is not None and not self._open_agents():
            self._end()

    def _has_voted(self, agent: AgentState) -> bool:
        return any(ballot.agent_id == agent.plan.agent_id for ballot in self.ballots)

    def _decide(self, decision: Decision, kill_reason: str) -> None:
        self.decision = decision
        if decision.key:
            self._emit("decided", quorum=self.spec.quorum, key=decision.key, reason=decision.reason)
        by_gang: dict[str, list[int]] = {}
        for agent in self._open_agents():
            agent.killing = kill_reason
            if agent.gang_id:
                by_gang.setdefault(agent.gang_id, []).append(agent.plan.agent_id)
            else:
                self._book_kill(agent, agent.num_sampled)
        for gang_id, agent_ids in by_gang.items():
            self._effects.append(m.Kill(gang_id, tuple(agent_ids), kill_reason))

    def _book_kill(self, agent: AgentState, num_sampled: int) -> None:
        agent.open = False
        if self._has_voted(agent):
            # It voted by its proof before it was stopped: its tokens were used.
            self.accounts.used += num_sampled
            return
        reason = agent.killing or "LOST"
        self.accounts.killed += num_sampled
        self.killed.append((agent.plan.agent_id, reason, num_sampled))
        self._emit(
            "agent_killed", agent_id=agent.plan.agent_id, reason=reason, num_sampled=num_sampled
        )

    def _end(self) -> None:
        """Emits the one ending."""
        self.ended = True
        for gang_id in self.gangs:
            self._effects.append(m.CloseGang(gang_id))
        if self._cancelled:
            self._emit("cancelled", reason=self._cancelled)
        elif not self.ballots:
            reason, message, retryable = self._failure or (
                "NO_QUORUM", "no agent gave an answer", True,
            )  # fmt: skip
            self._emit("failed", reason=reason, message=message, retryable=retryable)
        else:
            self._emit("verdict", outcome=self.outcome())
        self._effects.append(m.End())

    def outcome(self) -> m.Outcome:
        """The verdict: the winner's words, or the agents' refusal if all abstained."""
        assert self.decision is not None
        tallies = [t for t in count(self.ballots) if t.key == self.decision.key]
        if not tallies:
            refusals = sorted(ballot.answer for ballot in self.ballots)
            answer = max(refusals, key=refusals.count)
            return m.Outcome(
                answer, "", False, True, tuple(self._degraded), self.decision.reason,
                tuple(self.ballots),
            )  # fmt: skip
        winner = tallies[0]
        return m.Outcome(
            answer=winner.representative.answer,
            key=winner.key,
            proved=winner.proved,
            abstained=False,
            degraded_reasons=tuple(self._degraded),
            decision=self.decision.reason,
            ballots=tuple(self.ballots),
        )

    def _open_agents(self) -> list[AgentState]:
        return [agent for agent in self.agents.values() if agent.open]

    def _agents_of(self, gang_id: str) -> list[AgentState]:
        return [a for a in self.agents.values() if a.open and a.gang_id == gang_id]
