"""The token budget of a contemplation, handed out as grants.

Where tokens have a price, a budget of money is one of tokens at the highest price: no more of them
are granted than it pays for.

No more agents begin than the budget carries to their end, by what agents of this contemplation
took so far, else by a guess; each begins with an even share, at most twice what it is expected to
need while others may still come. What an agent leaves goes back into the pool, from which agents
that used up theirs get more, a chunk at a time.

Invariant (``tests/property/test_contemplation.py``): pool + grants + tokens of attempts that had
to start over never exceed the limit, so engines that keep to their grants keep to the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.agents import AgentState

# Tokens granted at a time once the even shares are used up.
GRANT_CHUNK = 16
# Tokens an agent is expected to take until one has shown it.
TOKENS_PER_AGENT = 160


class Budget:
    """Owns the pool and raises agents' grants. A limit of 0 is none: then nothing is refused."""

    def __init__(self, limit: int, max_tokens: int = 0, micro_usd: int = 0) -> None:
        self.limit = self.pool = limit
        self.name = "token budget"
        self._micro_usd = micro_usd
        self._num_ended = self._num_taken = 0
        self._guess = min(max_tokens or TOKENS_PER_AGENT, TOKENS_PER_AGENT)

    @property
    def expected(self) -> int:
        """Tokens an agent takes to its end."""
        return self._num_taken // self._num_ended if self._num_ended else self._guess

    def price(self, per_million: int, *, is_first: bool) -> bool:
        """A million tokens cost so many micro-USD; says if money is the narrower limit by that.

        What runs already keeps its grants; without any it is not bound.
        """
        limit = self._micro_usd * 1_000_000 // per_million if per_million else 0
        narrower = bool(self._micro_usd and per_million) and not 0 < self.limit <= limit
        if not narrower or not (is_first or self.limit):
            return False
        self.name = "money budget"
        self.pool = limit if is_first else max(0, self.pool - (self.limit - limit))
        self.limit = max(1, limit)
        return True

    def learn(self, num_sampled: int) -> None:
        """An agent came to its end by itself."""
        self._num_ended += 1
        self._num_taken += num_sampled

    def affordable(self, count: int) -> int:
        """How many of ``count`` agents that could begin now should: one, if any, at least."""
        return min(count, max(1, self.pool // max(1, self.expected))) if self.limit else count

    def carries(self, count: int) -> bool:
        """Whether what is left is enough for so many more agents, as expected."""
        return not self.limit or self.pool >= count * self.expected

    def join(self, agents: Sequence[AgentState], num_later: int, num_rounds: int) -> None:
        """Gives shares to agents that begin; ``num_later`` may follow, ``num_rounds`` are left."""
        if not self.limit or not agents:
            return
        even = self.pool // num_rounds // (len(agents) + num_later)
        share = min(self.pool // len(agents), max(even, 2 * self.expected if num_later else 0))
        for agent in agents:
            agent.granted = share
            self.pool -= share

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
