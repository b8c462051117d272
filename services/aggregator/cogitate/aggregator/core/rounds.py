"""The rounds of a contemplation: which agents begin, what the rule says, what comes after.

::

    begin ──► judge after every ballot ──► the round is decided ──► follow ──► (next round)
                  │ undecided, and those that run cannot decide it
                  └──► widen

**Adaptive width.** With ``initial_agents`` a first round begins with so many, or with as many as
the rule needs if all of them agreed; the others are the reserve. Whenever those that run could not
decide it even if they all agreed with the leader, as many more begin as could. Nobody is started
whose ballot the outcome can stand without. Under a budget of tokens the reserve also holds those
whom the budget may not carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from cogitate.aggregator.core.agents import AgentState
from cogitate.aggregator.core.ballots import Ballot, Decision
from cogitate.aggregator.core.budget import Budget
from cogitate.aggregator.core.messages import Spec
from cogitate.aggregator.core.quorums import least_needed, quorum
from cogitate.aggregator.core.strategies import strategy
from cogitate.aggregator.core.strategies.base import Draft, RoundPlan


class Rounds:
    """Owns the ballots of all rounds, the plan of the one that runs, and the reserve."""

    def __init__(self, spec: Spec) -> None:
        self.number = 1
        self.ballots: list[Ballot] = []  # of this round
        self.earlier: list[list[Ballot]] = []
        self.agents: dict[int, AgentState] = {}  # of all rounds, in the order of their start
        self.strategy = strategy(spec.strategy)
        self.threshold: float | None = None
        # Where the rule was last asked, and what it said was: undecided, and nobody more is needed.
        self._undecided: tuple[int, ...] = ()
        self._enough: tuple[int, ...] = ()
        self._spec = spec
        self._most_rounds = min(self.strategy.num_rounds, spec.max_rounds or 2**31)
        self._plan = self.strategy.plan(spec.num_agents, spec.temperature)
        # By round: an endpoint that has most of its prompt in its prefix cache.
        self.prefilled_at: dict[int, str] = {}
        self._rule = quorum(spec.quorum)
        self._reserve = [AgentState(plan) for plan in self._plan.agents]
        self.budget = Budget(spec.budget_tokens, spec.max_tokens, spec.budget_micro_usd)

    @property
    def plan(self) -> RoundPlan:
        """The round that runs."""
        return self._plan

    @property
    def all_ballots(self) -> list[Ballot]:
        """Of all rounds, in the order in which they were cast."""
        return [ballot for ballots in (*self.earlier, self.ballots) for ballot in ballots]

    @property
    def is_last(self) -> bool:
        """Whether no round can follow, or none should after the ballots there are."""
        if self._spec.quorum == "verified" and any(ballot.proved for ballot in self.ballots):
            return True  # nothing is gained by refining, judging or rewording what is proved
        if self.strategy.rounds_are_sure or self.number >= self._most_rounds:
            return self.number >= self._most_rounds
        carried = self.budget.carries(self._spec.num_agents)
        return not (carried and self.strategy.wants_another(self.ballots))

    def begin(self) -> list[AgentState]:
        """The agents to start with."""
        num_first = len(self._reserve)
        if self._spec.initial_agents:
            num_first = max(self._spec.initial_agents, self._num_needed(0))
        return self._start(num_first)

    def widen(self, num_running: int) -> list[AgentState]:
        """The agents to start now, beside those that run and did not vote yet."""
        seen = (*self._state(num_running), self.budget.pool)
        if not self._reserve or seen == self._enough:
            return []
        self._enough = seen
        return self._start(self._num_needed(num_running) - num_running, num_running)

    def judge(self, num_running: int) -> Decision | None:
        """What the rule says."""
        # Asked after every message of every gang: most bring text and no ballot.
        if (seen := self._state(num_running)) == self._undecided:
            return None
        self._undecided = seen
        return self._rule(self.ballots, num_running + len(self._reserve))

    def _state(self, num_running: int) -> tuple[int, ...]:
        """All that rules look at: ballots are only ever added."""
        return (self.number, len(self.ballots), num_running, len(self._reserve))

    def cast(self, ballot: Ballot) -> None:
        """Counts a ballot; the warm-up may be over with it."""
        self.ballots.append(ballot)
        if self.threshold is None and self.number == 1:
            self.threshold = self.strategy.threshold(self.ballots, self._spec.num_agents)

    def drop_reserve(self) -> None:
        """The outcome stands: nobody begins any more."""
        self._reserve.clear()

    def follow(self) -> list[AgentState]:
        """Goes on to the next round, if there is one; its agents."""
        if self.is_last:
            return []
        if (plan := self._next(self.ballots)) is None:
            return []
        self._plan = plan
        self._rule = quorum(plan.quorum or self._spec.quorum)
        self.earlier.append(self.ballots)
        self.ballots = []
        self.number += 1
        self.threshold = None
        self._reserve = [AgentState(each) for each in plan.agents]
        return self._start(len(self._reserve))

    def price(self, per_million: int, *, is_first: bool) -> None:
        """A million tokens cost so much. With the first places nobody has begun yet.

        Agents whom money does not carry wait for what the others leave.
        """
        if self.budget.price(per_million, is_first=is_first) and is_first:
            agents = list(self.agents.values())
            for agent in agents:
                agent.granted = 0
            carried = agents[: self.budget.affordable(len(agents))]
            later = len(self._reserve) if carried == agents else 0
            self.budget.join(carried, later, self._num_sure)

    def preview(self) -> RoundPlan | None:
        """The next round as it would be with the ballots whose agents write no more."""
        # One that voted by its proof may still write, and so change its draft.
        ended = takewhile(lambda ballot: not self.agents[ballot.agent_id].open, self.ballots)
        return self._next(tuple(ended))

    def _next(self, ballots: Sequence[Ballot]) -> RoundPlan | None:
        drafts = [Draft(ballot, self.agents[ballot.agent_id].text) for ballot in ballots]
        return self.strategy.follow(self.number, drafts, len(self.agents), self._spec.num_agents)

    def conclude(self, decision: Decision) -> tuple[Sequence[Ballot], Decision]:
        """The ballots the outcome is of, and the outcome."""
        return self.strategy.conclude([*self.earlier, self.ballots], decision)

    @property
    def _num_sure(self) -> int:
        """Rounds that share what is left of the budget, with the one that runs."""
        return self._most_rounds - self.number + 1 if self.strategy.rounds_are_sure else 1

    def _num_needed(self, num_running: int) -> int:
        return least_needed(self._rule, self.ballots, num_running + len(self._reserve))

    def _start(self, count: int, num_running: int = 0) -> list[AgentState]:
        """Takes so many out of the reserve, as far as the budget carries them."""
        if count <= 0 or (num_running and not self.budget.carries(1)):
            return []  # those that run may leave tokens
        count = self.budget.affordable(min(count, len(self._reserve)))
        started, self._reserve = self._reserve[:count], self._reserve[count:]
        self.agents |= {agent.agent_id: agent for agent in started}
        self.budget.join(started, len(self._reserve), self._num_sure)
        return started
