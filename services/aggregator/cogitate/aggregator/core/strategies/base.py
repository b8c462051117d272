"""What a strategy decides: how agents begin, what ballots weigh, which rounds follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cogitate.aggregator.core.ballots import Ballot, Decision, count

SOLVER = "solver"


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """How one agent begins. ``temperature`` None means the model's own, ``max_tokens`` 0 as asked.

    ``opening`` is text its turn begins with; ``about`` the key of the answer it judges.
    """

    agent_id: int
    temperature: float | None = None
    hint_index: int | None = None
    opening: str = ""
    max_tokens: int = 0
    about: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message after the conversation: who speaks, ``assistant`` or ``user``, and what."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A ballot and everything its agent wrote."""

    ballot: Ballot
    text: str


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round: what its agents are for, how they begin, and what they are shown."""

    role: str
    agents: tuple[AgentPlan, ...]
    turns: tuple[Turn, ...] = ()
    quorum: str = ""  # empty: the contemplation's own
    has_tools: bool = True

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The turns as pairs of speaker and text."""
        return tuple((turn.speaker, turn.text) for turn in self.turns)


class Strategy:
    """One round of independent agents; subclasses change what they need to. Without state."""

    num_rounds = 1
    # False: whether a round follows depends on the one before; no budget is kept back for it.
    rounds_are_sure = True
    # True: what `follow` shows only grows at its end from draft to draft, so that an endpoint can
    # compute it while others still write.
    prepares = False

    def plan(self, num_agents: int, temperature: float | None) -> RoundPlan:
        """The first round. One agent is greedy and unhinted; several differ by seed and by hint."""
        if num_agents == 1:
            alone = AgentPlan(0, 0.0 if temperature is None else temperature)
            return RoundPlan(SOLVER, (alone,))
        return RoundPlan(SOLVER, tuple(AgentPlan(i, temperature, i) for i in range(num_agents)))

    def weigh(self, ballot: Ballot) -> float:
        """A ballot's weight, from 0 to 1."""
        return 1.0

    def threshold(self, ballots: Sequence[Ballot], num_agents: int) -> float | None:
        """The confidence under which agents are stopped, once it is known; then for good."""
        return None

    def wants_another(self, ballots: Sequence[Ballot]) -> bool:
        """Whether a round is worth its tokens after one with these ballots, if it is not sure."""
        return True

    def follow(
        self, number: int, drafts: Sequence[Draft], first_id: int, num_agents: int
    ) -> RoundPlan | None:
        """The round after ``number`` of them, made of the last one's drafts; None: it is over.

        Its agents' ids begin at ``first_id``. Asked only while ``num_rounds`` are not over.
        """
        return None

    def conclude(
        self, rounds: Sequence[Sequence[Ballot]], decision: Decision
    ) -> tuple[Sequence[Ballot], Decision]:
        """The ballots the outcome is of, and the outcome: the last round's that has answers."""
        answered = [n for n, r in enumerate(rounds) if any(not ballot.abstained for ballot in r)]
        if not answered or answered[-1] == len(rounds) - 1:
            return rounds[-1], decision
        last = rounds[answered[-1]]
        leader = count(last)[0]
        reason = (
            f"round {answered[-1] + 1} is the last with answers: {len(leader.ballots)} of "
            f"{len(last)} agree"
        )
        return last, Decision(leader.key, reason)
