"""Where agents run: places asked for, gangs opened, agents moved when an endpoint is lost.

::

    placeless --ask--> asked --granted--> in a gang --lost, refused--> placeless
        ^                |
        +-----wait-------+ denied for now; given up when patience or attempts end

Every question to the router has a new attempt number, so a late answer to an older one is told
apart. An agent that moves keeps its tokens and gets a new attempt too, so that whatever its old
endpoint still says is stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import Accounts, AgentState
from cogitate.aggregator.core.outbox import Outbox
from cogitate.aggregator.core.rounds import Rounds

# A router or an endpoint that asks for less is not hammered.
MIN_RETRY_S = 0.05
# Another endpoint may still do, an image may be known to its encoder; if none does, this is why.
_FOR_GOOD = frozenset({"INVALID_REQUEST", "BAD_IMAGE", "NOT_FOUND"})


class Places:
    """Owns the gangs and who waits for a place. Its methods append to the outbox."""

    def __init__(
        self,
        rounds: Rounds,
        accounts: Accounts,
        outbox: Outbox,
        spec: m.Spec,
    ) -> None:
        self.gangs: dict[str, m.PlacedGang] = {}
        self.lost_attempts: list[m.LostAttempt] = []
        self.gave_up = False
        self.failure: m.Failure | None = None  # the last thing that went wrong
        self._last_loss = ""  # why an agent lost its endpoint last, to be told with what follows
        self._rounds, self._agents, self._budget = rounds, rounds.agents, rounds.budget
        self._accounts = accounts
        self._out, self._patience_s, self._max_losses = outbox, spec.patience_s, spec.max_losses
        self._attempt = 0
        self._asked: dict[int, m.Declare] = {}

    def of(self, gang_id: str) -> list[AgentState]:
        """The open agents of a gang."""
        return [a for a in self._agents.values() if a.open and a.gang_id == gang_id]

    def close(self) -> None:
        """No more commands for any gang."""
        for gang_id in self.gangs:
            self._out.add(m.CloseGang(gang_id))

    # -- asking ------------------------------------------------------------------------------

    def ask(
        self,
        agents: Iterable[AgentState],
        failed: tuple[tuple[str, str], ...] = (),
        *,
        anew: bool = False,
        is_retry: bool = False,
    ) -> None:
        """Asks the router for places."""
        agent_ids = tuple(agent.agent_id for agent in agents if agent.placeless)
        if not agent_ids:
            return
        anew = anew or not self.gangs
        asked = self.question(agent_ids, failed, anew=anew, is_retry=is_retry)
        self._asked[asked.attempt] = asked

    def question(
        self,
        agent_ids: tuple[int, ...],
        failed: tuple[tuple[str, str], ...] = (),
        *,
        anew: bool = False,
        is_retry: bool = True,
        slow_at: tuple[str, ...] = (),
    ) -> m.Declare:
        """Puts a question to the router under a new number."""
        self._attempt += 1
        prefilled_at = self._rounds.prefilled_at.get(self._rounds.number, "")
        role = self._rounds.plan.role
        asked = m.Declare(
            self._attempt, agent_ids, failed, anew, role, prefilled_at, is_retry, slow_at
        )
        self._out.add(asked)
        return asked

    def ask_again(self, event: m.AskAgain) -> None:
        """The wait is over."""
        self.ask(self._agents[i] for i in event.agent_ids)

    def granted(self, event: m.Granted) -> None:
        """Opens the gangs. Agents the router forgot have no place."""
        asked = self._asked.pop(event.attempt, None)
        if asked is None:
            return
        self._out.emit("placed", gangs=event.gangs, policy=event.policy, payload=event.payload)
        highest = max((gang.price_per_million for gang in event.gangs), default=0)
        self._rounds.price(highest, is_first=not self.gangs)
        for gang in event.gangs:
            if gang.gang_id in self.gangs:
                continue  # ids are unique; whoever is named under a known one gets no place
            here = [self._agents[i] for i in gang.agent_ids if i in asked.agent_ids]
            self._open(event.attempt, gang, [agent for agent in here if agent.placeless])
        self._without_place(
            [agent for agent in self._still(asked) if not agent.starved],
            m.Failure("NO_ENDPOINT", "the router left agents without a place", True),
            None,
        )

    def _open(self, attempt: int, gang: m.PlacedGang, agents: Sequence[AgentState]) -> None:
        """An agent without a token left keeps its place in the queue for tokens instead."""
        orders = []
        for agent in agents:
            agent.starved = not self._budget.can_start(agent)
            if not agent.starved:
                agent.gang_id = gang.gang_id
                orders.append(agent.order())
        if orders:
            self.open(attempt, gang, orders)

    def open(self, attempt: int, gang: m.PlacedGang, orders: Sequence[m.AgentOrder]) -> None:
        """Opens a gang."""
        self.gangs[gang.gang_id] = gang
        plan = self._rounds.plan
        self._out.add(
            m.OpenGang(gang, attempt, tuple(orders), plan.role, plan.shown, plan.has_tools)
        )
        if self._rounds.threshold is not None:
            self._out.add(m.SetThreshold(gang.gang_id, self._rounds.threshold))

    def denied(self, event: m.Denied) -> None:
        """Waits and asks again, if that may help and patience lasts."""
        asked = self._asked.pop(event.attempt, None)
        if asked is None:
            return
        agents = self._still(asked)
        if event.reason == "NOT_FOUND" and not asked.anew:
            self.ask(agents, asked.failed, anew=True)  # a router that does not know the lease
            return
        retry_after_s = event.retry_after_s
        why = f"{event.message}{self._last_loss}"
        failure = m.Failure(event.reason, why, retry_after_s is not None, retry_after_s)
        self._without_place(agents, failure, None if event.is_final else retry_after_s)

    def queued(self, event: m.Queued) -> None:
        """Tells that it waits for room in the router's queue."""
        if event.attempt in self._asked:
            self._out.emit("queued", ahead=event.ahead, expected_s=event.expected_s)

    def retries_refused(self, event: m.RetriesRefused) -> None:
        """Agents that failed end as lost: more attempts would only be more load."""
        if (asked := self._asked.get(event.attempt)) is None:
            return
        rest = tuple(i for i in asked.agent_ids if i not in event.agent_ids)
        self._asked[event.attempt] = replace(asked, agent_ids=rest)
        if not rest:
            del self._asked[event.attempt]
        self._note(m.Failure("RETRY_BUDGET_SPENT", event.message, True))
        for agent in self._still(asked):
            if agent.agent_id in event.agent_ids:
                self.tell_lost(agent, "", "RETRY_BUDGET_SPENT", resumed=False)
                self.give_up(agent)

    def tell_lost(self, agent: AgentState, endpoint_id: str, reason: str, *, resumed: bool) -> None:
        """Tells that an attempt is over, and whether the agent goes on."""
        lost = self.note_lost(agent.agent_id, agent.attempt, endpoint_id, reason, resumed=resumed)
        self._out.emit("agent_lost", **lost._asdict())

    def note_lost(
        self, agent_id: int, attempt: int, endpoint_id: str, reason: str, *, resumed: bool
    ) -> m.LostAttempt:
        """Notes it for the certificate."""
        lost = m.LostAttempt(agent_id, attempt, endpoint_id, reason, resumed)
        self.lost_attempts.append(lost)
        return lost

    def _still(self, asked: m.Declare) -> list[AgentState]:
        return [self._agents[i] for i in asked.agent_ids if self._agents[i].placeless]

    def _without_place(
        self,
        agents: Sequence[AgentState],
        failure: m.Failure,
        retry_after_s: float | None,
    ) -> None:
        if not agents:
            return
        self._note(failure)
        hopeless = retry_after_s is None or (
            self.failure is not None and not self.failure.retryable
        )
        delay_s = max(MIN_RETRY_S, retry_after_s or 0.0)
        waiting = []
        for agent in agents:
            agent.waited_s += delay_s
            if hopeless or agent.waited_s > self._patience_s:
                self.give_up(agent)
            else:
                waiting.append(agent.agent_id)
        if waiting:
            self._out.add(m.AskLater(tuple(waiting), delay_s))

    def _note(self, failure: m.Failure) -> None:
        """Remembers what went wrong; what can never work explains more than what followed it."""
        if self.failure is None or self.failure.retryable:
            self.failure = failure

    def regrant(self) -> bool:
        """Hands out the tokens that others left; True if none are left and everybody waits."""
        waiting = [agent for agent in self._agents.values() if agent.open]
        for agent in waiting:
            if not agent.starved or not self._budget.top_up(agent):
                continue
            agent.starved = False
            if agent.gang_id:
                self._out.add(m.Grant(agent.gang_id, {agent.agent_id: agent.granted}))
            else:
                self.ask([agent])
        return bool(waiting) and all(agent.starved for agent in waiting)

    # -- losing ------------------------------------------------------------------------------

    def admitted(self, event: m.Admitted) -> None:
        """The endpoint took the gang."""
        for agent in self.of(event.gang_id):
            agent.build_digest = event.build_digest
            agent.waited_s, agent.num_refusals = 0.0, 0
            self.tell_started(agent, event.hints.get(agent.agent_id, ""))

    def tell_started(self, agent: AgentState, hint: str) -> None:
        """Tells where an attempt runs."""
        gang = self.gangs[agent.gang_id]
        self._out.emit(
            "agent_started",
            agent_id=agent.agent_id,
            attempt=agent.attempt,
            endpoint_id=gang.endpoint_id,
            provider=gang.provider,
            hint=hint,
            role=self._rounds.plan.role,
        )

    def prefilled(self, event: m.Prefilled) -> None:
        """The gang's prompt is computed."""
        rivals = (a.rival.gang_id for a in self._agents.values() if a.rival is not None)
        if self.of(event.gang_id) or event.gang_id in rivals:
            self.book_prompt(event, self.gangs[event.gang_id].endpoint_id)

    def book_prompt(self, event: m.Prefilled, endpoint_id: str) -> None:
        """Counts a prompt's positions, and tells of them."""
        self._accounts.add_prompt(event.num_prompt, event.num_cached)
        self._out.emit(
            "prefilled",
            gang_id=event.gang_id,
            endpoint_id=endpoint_id,
            prompt_token_count=event.num_prompt,
            cached_token_count=event.num_cached,
            seconds=event.seconds,
        )

    def lost(self, event: m.GangLost) -> None:
        """Cuts the stream and moves the gang's agents."""
        agents = self.of(event.gang_id)
        if not agents:
            return
        self._out.add(m.BreakOff(event.gang_id))
        if event.retry_after_s is not None:
            self._refused(agents, event)
            return
        self.move(agents, event.reason, event.message or "an endpoint was lost")

    def _refused(self, agents: Sequence[AgentState], event: m.GangLost) -> None:
        """The endpoint is full: another at once, and from the second time on after a while."""
        endpoint_id = self.gangs[event.gang_id].endpoint_id
        again = any(agent.num_refusals for agent in agents)
        for agent in agents:
            agent.gang_id = ""
            agent.try_again()
            agent.num_refusals += 1
        failure = m.Failure(event.reason, event.message, True)
        agents = [agent for agent in agents if agent.placeless]
        if again:
            self._without_place(agents, failure, event.retry_after_s)
        else:
            self._note(failure)
            self.ask(agents, ((endpoint_id, event.reason),))

    def owner_changed(self) -> None:
        """Everybody asks for a place anew. Endpoints did nothing wrong: no loss is counted."""
        self._asked.clear()
        for agent in self._agents.values():
            if agent.open and agent.gang_id:
                endpoint_id = self.gangs[agent.gang_id].endpoint_id
                self.tell_lost(agent, endpoint_id, "OWNER_LOST", resumed=True)
                agent.gang_id = ""
                agent.try_again()
        self.ask([agent for agent in self._agents.values() if not agent.starved], anew=True)

    def move(self, agents: Sequence[AgentState], reason: str, message: str) -> None:
        """Takes agents off their endpoint and asks for another, or gives them up."""
        endpoint_id = self.gangs[agents[0].gang_id].endpoint_id
        stale_state = reason == "BUILD_MISMATCH"
        self._note(m.Failure(reason, message, reason not in _FOR_GOOD))
        self._last_loss = f"; on {endpoint_id} {message}"
        moving = []
        for agent in agents:
            agent.gang_id, agent.starved = "", False
            agent.num_losses += 1
            moves = agent.num_losses < self._max_losses
            self.tell_lost(agent, endpoint_id, reason, resumed=moves or agent.rival is not None)
            if agent.rival is not None:
                continue  # which goes on from where it began, and catches up
            if stale_state:
                self._retract(agent)
            if not moves:
                self.give_up(agent)
                continue
            agent.try_again()
            moving.append(agent)
        self.ask(moving, () if stale_state else ((endpoint_id, reason),), is_retry=True)

    def _retract(self, agent: AgentState) -> None:
        """What it wrote cannot be continued where it goes: it starts over, visibly."""
        self._accounts.lost += agent.num_sampled
        self._budget.write_off(agent)
        if agent.num_sampled:
            self._out.emit(
                "text_retracted", agent_id=agent.agent_id, attempt=agent.attempt, token_offset=0
            )
        agent.forget()

    def give_up(self, agent: AgentState) -> None:
        """The agent ends without a ballot."""
        agent.open = False
        self.gave_up = True
        self._accounts.lost += agent.num_sampled
        self._budget.settle(agent)
