"""Ballots, the count, and the rules that say when the outcome is decided.

Invariants (``tests/property/test_ballots.py``):

1. The winner does not depend on the order of the ballots.
2. ``unbeatable`` decides for the winner that ``all`` would have, whatever the open ballots say.
3. Once a rule has decided, further ballots do not undo it (``verified``: the first proof stands).

Sources: self-consistency (arXiv 2203.11171) for the vote; ``unbeatable`` is its loss-free early
stop, in the spirit of ESC (arXiv 2401.10480).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    @property
    def abstained(self) -> bool:
        """Whether it counts for no answer."""
        return not self.key


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


# A rule sees the ballots in journalled order and how many are still open.
Rule = Callable[[Sequence[Ballot], int], Decision | None]


def all_voted(ballots: Sequence[Ballot], num_open: int) -> Decision | None:
    """Decides when nobody is left to vote."""
    if num_open:
        return None
    tallies = count(ballots)
    if not tallies:
        return Decision("", "every agent abstained")
    leader = tallies[0]
    return Decision(
        leader.key, f"all ballots are in: {len(leader.ballots)} of {len(ballots)} agree"
    )


def unbeatable(ballots: Sequence[Ballot], num_open: int) -> Decision | None:
    """Decides once the open ballots, of weight 1 at most, cannot change the winner."""
    tallies = count(ballots)
    if num_open and tallies:
        runner_up = tallies[1].weight if len(tallies) > 1 else 0.0
        if tallies[0].weight > runner_up + num_open:
            return Decision(
                tallies[0].key,
                f"{len(tallies[0].ballots)} agree and the {num_open} still open cannot change it",
            )
    return all_voted(ballots, num_open)


def verified(ballots: Sequence[Ballot], num_open: int) -> Decision | None:
    """Decides at the first answer that a tool proved; without one, like ``all``."""
    for ballot in ballots:
        if ballot.proved:
            return Decision(ballot.key, f"a tool proved agent {ballot.agent_id}'s answer")
    return all_voted(ballots, num_open)


QUORUMS: dict[str, Rule] = {"all": all_voted, "unbeatable": unbeatable, "verified": verified}
DEFAULT_QUORUM = "unbeatable"
