"""``synthesis``: one more agent reads the drafts and writes the answer, which is streamed.

For questions whose answers are texts rather than values, where a vote finds no two the same.
Source: the aggregator of Mixture-of-Agents (arXiv 2406.04692), one layer. Drafts are shown in the
order in which their agents ended: so those that are there can be computed while others are written.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.strategies.base import AgentPlan, Draft, RoundPlan, Strategy, Turn
from cogitate.aggregator.core.strategies.workspace import candidates, growing

ROLE = "synthesizer"
REQUEST = (
    "These are drafts of several people. Some may be wrong or one-sided. Write the one best answer "
    "to the question, from what is right in them."
)


class Synthesis(Strategy):
    """A second round of one agent."""

    num_rounds = 2
    prepares = True

    def follow(
        self, number: int, drafts: Sequence[Draft], first_id: int, num_agents: int
    ) -> RoundPlan | None:
        if not candidates(drafts):
            return None
        turns = (Turn("assistant", growing(drafts, num_agents)), Turn("user", REQUEST))
        plans = (AgentPlan(first_id, 0.0),)
        return RoundPlan(ROLE, plans, turns, quorum="all", has_tools=False)
