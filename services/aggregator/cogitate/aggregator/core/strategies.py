"""How agents work together, by name. A strategy says how agents begin and how ballots weigh.

``vote`` is self-consistency (arXiv 2203.11171): independent agents, one ballot each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cogitate.aggregator.core.ballots import Ballot


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """How one agent begins. ``temperature`` None means the model's own."""

    agent_id: int
    temperature: float | None
    hint_index: int | None


class Strategy(Protocol):
    """What a strategy decides."""

    def plan(self, num_agents: int, temperature: float | None) -> list[AgentPlan]:
        """The agents of the first round."""
        ...

    def weigh(self, ballot: Ballot) -> float:
        """A ballot's weight, from 0 to 1."""
        ...


class Vote:
    """Every agent thinks for itself and has one vote."""

    def plan(self, num_agents: int, temperature: float | None) -> list[AgentPlan]:
        """A single agent is greedy and unhinted; several differ by seed and by hint."""
        if num_agents == 1:
            return [AgentPlan(0, 0.0 if temperature is None else temperature, None)]
        return [AgentPlan(agent_id, temperature, agent_id) for agent_id in range(num_agents)]

    def weigh(self, ballot: Ballot) -> float:
        return 1.0


STRATEGIES: dict[str, Strategy] = {"vote": Vote()}
DEFAULT_STRATEGY = "vote"
