"""Hedges: a second attempt of a slow agent, from the very state in which it is.

::

    straggling --asked--> granted --> both write --the second is ahead, or ends--> it goes on alone
                  |                      |
                  +-- no place: nothing  +-- the first ends or calls a tool --> the second is killed
                                         +-- the first is lost --> the second goes on, catches up

Both are on the same build, so they write the same tokens. Clients see the first attempt's until
the second is ahead of it; from there on the second's, cut to what is behind what they saw. So the
race is won by whoever is ahead when the other is behind for good, and lasts no longer than the
catching up. If the two do not agree, the second is given up: the first is the one clients saw.

What the loser sampled that the winner did, too, is booked as lost. Only where neither tokens nor
money are bounded: what a race costs is not what a budget is for.

Invariants (``tests/property/test_contemplation.py``, ``tests/property/test_races.py``):

1. An agent has at most two attempts at a time, on different endpoints.
2. What clients see of a race has no gap and no repeat, whoever wins it.
3. Every token sampled is booked once, those of both attempts included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import Accounts, AgentState, Rival
from cogitate.aggregator.core.outbox import Outbox
from cogitate.aggregator.core.places import Places
from cogitate.aggregator.core.rounds import Rounds
from cogitate.aggregator.core.strategies.synthesis import ROLE as SYNTHESIZER

# Why a loser is killed, and for what reason an agent leaves a slow endpoint.
HEDGED, SLOW = "HEDGED", "SLOW"


class Races:
    """Owns agents' rivals. Its methods append to the outbox."""

    def __init__(
        self, spec: m.Spec, rounds: Rounds, places: Places, accounts: Accounts, outbox: Outbox
    ) -> None:
        self._rounds, self._places, self._accounts, self._out = rounds, places, accounts, outbox
        self._agents = rounds.agents
        self._is_bounded = bool(spec.budget_tokens or spec.budget_micro_usd)
        self._asked: dict[int, m.Declare] = {}
        self.num_begun = self.num_won = 0
        # Losers whose kill is not acknowledged: tokens of theirs that are booked.
        self._losers: dict[tuple[str, int, int], int] = {}

    # -- beginning -----------------------------------------------------------------------------

    def straggling(self, event: m.Straggling) -> None:
        """Asks for a second place for each that can be hedged."""
        asked = {i for question in self._asked.values() for i in question.agent_ids}
        known = [self._agents[i] for i in event.agent_ids if i in self._agents.keys() - asked]
        slow = [agent for agent in known if self.can_race(agent)]
        if not slow:
            return
        slow_at = {self._places.gangs[agent.gang_id].endpoint_id for agent in slow}
        agent_ids = tuple(agent.agent_id for agent in slow)
        question = self._places.question(agent_ids, slow_at=tuple(sorted(slow_at)))
        self._asked[question.attempt] = question

    @property
    def allowed(self) -> bool:
        """Whether there are races in this round. A synthesizer's text is shown as it comes."""
        return not self._is_bounded and self._rounds.plan.role != SYNTHESIZER

    def can_race(self, agent: AgentState) -> bool:
        """Whether it writes, alone."""
        # Who is being killed is decided about.
        stands = agent.pending_call or agent.starved or agent.killing or agent.voted
        # Any build will do for one that has not written yet.
        has_state = agent.build_digest or not agent.num_sampled
        runs = agent.open and agent.gang_id and has_state and not stands
        return bool(runs and agent.rival is None and self.allowed)

    def granted(self, event: m.Granted) -> None:
        """Opens gangs of second attempts; what was asked for others is for ``places``."""
        asked = self._asked.pop(event.attempt, None)
        if asked is None:
            self._places.granted(event)
            return
        elsewhere = [
            (gang, agents)
            for gang in event.gangs
            if gang.gang_id not in self._places.gangs
            and (agents := self._elsewhere(gang, asked.agent_ids))
        ]
        if elsewhere:
            gangs = tuple(gang for gang, _ in elsewhere)
            self._out.emit("placed", gangs=gangs, policy=event.policy, payload=event.payload)
        for gang, agents in elsewhere:
            # Whoever is named twice is raced once.
            orders = [self._begin(agent, gang.gang_id) for agent in agents if agent.rival is None]
            if orders:
                self._places.open(event.attempt, gang, orders)

    def _elsewhere(self, gang: m.PlacedGang, asked: Collection[int]) -> list[AgentState]:
        """Who of a gang still wants a second attempt, and has its first at another endpoint."""
        agents = [self._agents[i] for i in gang.agent_ids if i in asked]
        places = self._places.gangs
        return [
            agent
            for agent in agents
            if self.can_race(agent) and places[agent.gang_id].endpoint_id != gang.endpoint_id
        ]

    def _begin(self, agent: AgentState, gang_id: str) -> m.AgentOrder:
        agent.num_attempts += 1
        self.num_begun += 1
        start = agent.num_sampled
        agent.rival = Rival(gang_id, agent.num_attempts, start, len(agent.text), start)
        return replace(agent.order(), attempt=agent.rival.attempt)

    def denied(self, event: m.Denied) -> None:
        """No room: the agents go on as they are."""
        if self._asked.pop(event.attempt, None) is None:
            self._places.denied(event)

    def retries_refused(self, event: m.RetriesRefused) -> None:
        """No more attempts: these agents go on as they are."""
        if (asked := self._asked.pop(event.attempt, None)) is None:
            self._places.retries_refused(event)
            return
        if rest := tuple(i for i in asked.agent_ids if i not in event.agent_ids):
            self._asked[event.attempt] = replace(asked, agent_ids=rest)

    # -- what second attempts say --------------------------------------------------------------

    def _racing(self, gang_id: str) -> list[tuple[AgentState, Rival]]:
        return [
            (agent, agent.rival)
            for agent in self._agents.values()
            if agent.rival is not None and agent.rival.gang_id == gang_id
        ]

    def _rival(self, gang_id: str, agent_id: int, attempt: int) -> AgentState | None:
        agent = self._agents.get(agent_id)
        if agent is None or not agent.open or agent.rival is None:
            return None
        here = (agent.rival.gang_id, agent.rival.attempt)
        return agent if here == (gang_id, attempt) else None

    def admitted(self, event: m.Admitted) -> None:
        """A gang was taken. On another build a second attempt writes other tokens: it is over."""
        self._places.admitted(event)
        for agent, rival in self._racing(event.gang_id):
            rival.hint = event.hints.get(agent.agent_id, "")
            rival.build_digest = event.build_digest
        here = [agent for agent, _ in self._racing(event.gang_id)]
        for agent in [*here, *self._places.of(event.gang_id)]:
            builds = {agent.build_digest, agent.rival.build_digest if agent.rival else ""}
            if len(builds - {""}) > 1:
                self.drop(agent)

    def stepped(self, gang_id: str, delta: m.Delta) -> None:
        """A second attempt wrote; it may be ahead now."""
        agent = self._rival(gang_id, delta.agent_id, delta.attempt)
        if agent is None or agent.rival is None:
            return
        rival = agent.rival
        if delta.token_offset != rival.num_sampled:
            self.drop(agent)
            return
        rival.deltas.append(delta)
        rival.num_sampled += len(delta.token_ids)
        if rival.num_sampled > agent.num_sampled:
            self._overtake(agent, rival)

    def decided_by(self, event: m.AgentEnded | m.ToolCalled) -> None:
        """One of the two ended or called a tool: that decides the race, whoever it was."""
        if isinstance(event, m.AgentEnded) and self._acknowledged(event):
            return
        agent = self._agents.get(event.agent_id)
        if agent is None or agent.rival is None or not agent.open:
            return
        rival, ended = agent.rival, isinstance(event, m.AgentEnded)
        broke = isinstance(event, m.AgentEnded) and event.finish in ("CANCELLED", "ERROR")
        by = (event.gang_id, event.attempt)
        if by == (agent.gang_id, agent.attempt):
            if not broke:
                self.drop(agent)
        elif by == (rival.gang_id, rival.attempt):
            caught_up = rival.num_sampled >= agent.num_sampled and not broke
            if not (caught_up and self._overtake(agent, rival)):
                if isinstance(event, m.AgentEnded):
                    self._book(event.num_sampled - rival.num_sampled)
                self.drop(agent, kill=not ended)

    def _acknowledged(self, event: m.AgentEnded) -> bool:
        """Whether this is a loser's end: what was not seen of it is booked, too."""
        booked = self._losers.pop((event.gang_id, event.agent_id, event.attempt), None)
        if booked is not None:
            self._book(event.num_sampled - booked)
        return booked is not None

    # -- ending --------------------------------------------------------------------------------

    def _overtake(self, agent: AgentState, rival: Rival) -> bool:
        """The second attempt goes on alone, if it wrote what the first did. Says if it does."""
        rest = behind(rival, agent)
        if rest is None:
            return False
        self._book(agent.num_sampled - rival.start)
        self.num_won += 1
        if agent.gang_id:
            endpoint_id = self._places.gangs[agent.gang_id].endpoint_id
            self._places.tell_lost(agent, endpoint_id, SLOW, resumed=True)
            self._kill(agent.gang_id, agent.agent_id, agent.attempt, agent.num_sampled)
        agent.gang_id, agent.attempt, agent.rival = rival.gang_id, rival.attempt, None
        agent.build_digest = rival.build_digest
        self._places.tell_started(agent, rival.hint)
        for delta in rest:
            agent.record(delta)
            self._out.write(delta)
        return True

    def drop(self, agent: AgentState, *, kill: bool = True, asks: bool = True) -> None:
        """The second attempt is over; without a first one the agent asks for a place again."""
        rival, agent.rival = agent.rival, None
        if rival is None:
            return
        self._book(rival.num_sampled - rival.start)
        endpoint_id = self._places.gangs[rival.gang_id].endpoint_id
        self._places.note_lost(agent.agent_id, rival.attempt, endpoint_id, HEDGED, resumed=True)
        if kill:
            self._kill(rival.gang_id, agent.agent_id, rival.attempt, rival.num_sampled)
        if asks and agent.placeless and not agent.killing:
            agent.try_again()
            self._places.ask([agent], is_retry=True)

    def _book(self, num_tokens: int) -> None:
        """Two attempts sampled these, or nobody saw them."""
        self._accounts.lost += max(0, num_tokens)
        self._accounts.hedged += max(0, num_tokens)

    def _kill(self, gang_id: str, agent_id: int, attempt: int, num_sampled: int) -> None:
        self._losers[gang_id, agent_id, attempt] = num_sampled
        self._out.add(m.Kill(gang_id, (agent_id,), HEDGED))

    def gang_lost(self, event: m.GangLost) -> None:
        """Second attempts there are over. First ones are not this one's business."""
        racing = self._racing(event.gang_id)
        if racing and not self._places.of(event.gang_id):
            self._out.add(m.BreakOff(event.gang_id))
        for agent, _ in racing:
            self.drop(agent, kill=False)

    def close(self, agents: Iterable[AgentState], *, kill: bool = True) -> None:
        """The outcome stands, or the owner changed: no race goes on."""
        self._asked.clear()
        for agent in agents:
            races = agent.rival is not None
            self.drop(agent, kill=kill, asks=False)
            if races and not (kill or agent.gang_id):
                agent.try_again()

    def gang_ids(self) -> set[str]:
        """Where second attempts run."""
        return {agent.rival.gang_id for agent in self._agents.values() if agent.rival is not None}


def behind(rival: Rival, agent: AgentState) -> Sequence[m.Delta] | None:
    """What the rival wrote behind what was shown of the agent; None if the two do not agree.

    Of a message that is cut, the sum of log probabilities is shared by its tokens.
    """
    shown = agent.text[rival.num_characters :]
    written = "".join(delta.text for delta in rival.deltas)
    ids = tuple(token for delta in rival.deltas for token in delta.token_ids)
    num_shown = agent.num_sampled - rival.start
    ours = tuple(token for segment in agent.segments for token in segment.token_ids)
    if not written.startswith(shown) or ours[len(ours) - num_shown :] != ids[:num_shown]:
        return None
    rest, num_characters = [], len(shown)
    for delta in rival.deltas:
        skip = max(0, min(len(delta.token_ids), agent.num_sampled - delta.token_offset))
        cut = min(len(delta.text), num_characters)
        num_characters -= cut
        if skip == len(delta.token_ids) and cut == len(delta.text):
            continue
        kept = len(delta.token_ids) - skip
        rest.append(
            replace(
                delta,
                token_offset=delta.token_offset + skip,
                token_ids=delta.token_ids[skip:],
                text=delta.text[cut:],
                tokens=delta.tokens[skip:],
                logprob_sum=delta.logprob_sum * kept / max(1, len(delta.token_ids)),
            )
        )
    return rest
