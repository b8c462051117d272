"""``refine:r``: parallel, distil, refine, r rounds in all; the last one's vote decides.

Every agent of a later round sees the question and the bounded workspace of the round before it, and
answers anew. Source: Parallel-Distill-Refine (arXiv 2510.01123), PaCoRe (arXiv 2601.05593).
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.strategies.base import AgentPlan, Draft, RoundPlan, Strategy, Turn
from cogitate.aggregator.core.strategies.workspace import candidates, workspace

REQUEST = (
    "These are drafts of several people. Some may be wrong. Check them, keep what is right, "
    "correct what is not, and answer the question."
)


class Refine(Strategy):
    """Rounds of the same agents, each round on the drafts of the one before."""

    def __init__(self, num_rounds: float) -> None:
        self.num_rounds = int(num_rounds)

    def follow(
        self, number: int, drafts: Sequence[Draft], first_id: int, num_agents: int
    ) -> RoundPlan | None:
        if not candidates(drafts):
            return None
        plans = tuple(AgentPlan(first_id + i) for i in range(num_agents))
        turns = (Turn("assistant", workspace(drafts)), Turn("user", REQUEST))
        return RoundPlan("refiner", plans, turns)
