"""``auto``: a vote; where it shows that the question is open, a round of ``refine`` follows.

The default of several agents. What makes a question open, and why a vote cannot answer it, is said
in ``openness``. All others end after one round, as under ``vote``: decided by the same ballots at
the same moment, with the same budget. A second round begins only if what is left of a token budget
carries all its agents.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.strategies.openness import is_open
from cogitate.aggregator.core.strategies.refine import Refine


class Auto(Refine):
    """One round, or two if nobody agrees on a text."""

    rounds_are_sure = False

    def __init__(self) -> None:
        super().__init__(2)

    def wants_another(self, ballots: Sequence[Ballot]) -> bool:
        return is_open(ballots)
