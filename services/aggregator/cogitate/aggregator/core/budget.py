"""The token budget of a contemplation, handed out as grants.

Every agent begins with an even share, an equal one in every round there may be. What an agent
leaves goes back into the pool, from which agents that used up theirs get more, a chunk at a time.

Invariant (``tests/property/test_contemplation.py``): pool + grants + tokens of attempts that had
to start over never exceed the limit, so engines that keep to their grants keep to the budget.
"""

from __future__ import annotations

from cogitate.aggregator.core.agents import AgentState

# Tokens granted at a time once the even shares are used up.
GRANT_CHUNK = 16


class Budget:
    """Owns the pool and raises agents' grants. A limit of 0 is none: then nothing is refused."""

    def __init__(self, limit: int, num_sharers: int) -> None:
        self.limit = self.pool = limit
        self.share_among(num_sharers)

    def share_among(self, num_sharers: int) -> None:
        """Who joins from now on gets an even share of what is there now."""
        self._share = self.pool // max(1, num_sharers)

    def join(self, agent: AgentState) -> None:
        """The agent's share, if the pool still has it."""
        agent.granted = min(self._share, self.pool)
        self.pool -= agent.granted

    def can_start(self, agent: AgentState) -> bool:
        """Whether the agent may sample at least one token; takes from the pool if it must."""
        return not self.limit or agent.granted > agent.num_sampled or self.top_up(agent)

    def top_up(self, agent: AgentState) -> bool:
        """Raises the agent's grant by what the pool has, a chunk at most; says if it did."""
        chunk = min(GRANT_CHUNK, self.pool)
        self.pool -= chunk
        agent.granted += chunk
        return chunk > 0

    def settle(self, agent: AgentState) -> None:
        """The agent samples no more: what it did not use goes back; an overshoot is taken off."""
        if self.limit:
            self.pool = max(0, self.pool + agent.granted - agent.num_sampled)
            agent.granted = agent.num_sampled

    def write_off(self, agent: AgentState) -> None:
        """The agent starts over: what it sampled is spent all the same."""
        if self.limit:
            agent.granted = max(0, agent.granted - agent.num_sampled)
