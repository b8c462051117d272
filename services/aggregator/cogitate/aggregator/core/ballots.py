"""Ballots and the count. The winner does not depend on the order of the ballots.

Source: self-consistency (arXiv 2203.11171).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum


@dataclass(frozen=True, slots=True)
class Ballot:
    """An agent's parsed answer."""

    agent_id: int
    attempt: int
    answer: str
    key: str  # empty: it abstained
    proved: bool = False
    weight: float = 1.0
    mean_logprob: float = 0.0
    lowest_confidence: float = 0.0
    group_confidence: float = 0.0
    finish: str = "STOP"
    num_sampled: int = 0
    round_number: int = 1
    about: str = ""  # the key of the answer it judges, of a verifier

    @property
    def abstained(self) -> bool:
        """Whether it counts for no answer."""
        return not self.key

    @property
    def least_confidence(self) -> float:
        """How sure the agent was where it was least sure; 0 if its endpoint does not say."""
        return self.lowest_confidence or self.group_confidence


@dataclass(frozen=True, slots=True)
class Tally:
    """The ballots for one answer."""

    key: str
    ballots: tuple[Ballot, ...]

    @property
    def weight(self) -> float:
        """Sum of the ballots' weights, exact, so that their order does not matter."""
        return fsum(ballot.weight for ballot in self.ballots)

    @property
    def proved(self) -> bool:
        """Whether a tool proved the answer."""
        return any(ballot.proved for ballot in self.ballots)

    @property
    def representative(self) -> Ballot:
        """The ballot whose words stand for the answer: proved, then surest, then lowest agent."""
        return min(self.ballots, key=lambda b: (not b.proved, -b.mean_logprob, b.agent_id))


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome and why it stands."""

    key: str
    reason: str


def count(ballots: Sequence[Ballot]) -> list[Tally]:
    """Tallies, winner first. Ties: proved, then mean log probability, then the smaller key."""
    keys = sorted({ballot.key for ballot in ballots if not ballot.abstained})
    tallies = [Tally(key, tuple(b for b in ballots if b.key == key)) for key in keys]

    def rank(tally: Tally) -> tuple[float, bool, float, str]:
        surest = max(ballot.mean_logprob for ballot in tally.ballots)
        return (-tally.weight, not tally.proved, -surest, tally.key)

    return sorted(tallies, key=rank)
