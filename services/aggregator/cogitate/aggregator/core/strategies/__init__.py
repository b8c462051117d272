"""How agents work together, by name; each in a file of its own, with its source."""

from __future__ import annotations

from cogitate.aggregator.core.kinds import Kind, Number, named
from cogitate.aggregator.core.strategies.auto import Auto
from cogitate.aggregator.core.strategies.base import AgentPlan, Strategy
from cogitate.aggregator.core.strategies.best_of import BestOf
from cogitate.aggregator.core.strategies.confidence import Confidence
from cogitate.aggregator.core.strategies.refine import Refine
from cogitate.aggregator.core.strategies.synthesis import Synthesis
from cogitate.aggregator.core.strategies.vote import Vote

__all__ = ["STRATEGIES", "AgentPlan", "Strategy", "default_strategy", "strategy"]

STRATEGIES: dict[str, Kind[Strategy]] = {
    "auto": Kind(lambda _: Auto()),
    "vote": Kind(lambda _: Vote()),
    "confidence": Kind(
        Confidence, Number("the share of agents that is to be kept", 0.9, 0.0, 1.0, is_open=True)
    ),
    "refine": Kind(Refine, Number("rounds in all", 2, 1, 8, whole=True)),
    "best_of": Kind(lambda _: BestOf()),
    "synthesis": Kind(lambda _: Synthesis()),
}


def default_strategy(num_agents: int) -> str:
    """What a question that names none is worked on by: one agent has nobody to agree with."""
    return "auto" if num_agents > 1 else "vote"


def strategy(name: str) -> Strategy:
    """The strategy of a name. Raises ValueError with a sentence."""
    return named(name, STRATEGIES)
