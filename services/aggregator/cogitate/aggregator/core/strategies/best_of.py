"""``best_of``: best of N by verifiers (arXiv 2110.14168): answers are scored, the best one wins.

One verifier for each different answer. All of them share one prompt, the question and all answers,
and so one prefill: what differs is the beginning of their turn, which names the answer they judge.
A score is a number from 0 to 10; one that is not there or is outside of it is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.aggregator.core.answers import number_key
from cogitate.aggregator.core.ballots import Ballot, Decision, count
from cogitate.aggregator.core.strategies.base import AgentPlan, Draft, RoundPlan, Strategy, Turn
from cogitate.aggregator.core.strategies.workspace import LETTERS, candidates, workspace

HIGHEST = 10.0
REQUEST = (
    "These are the answers that were given. Judge one of them: check it against the question, and "
    "give a score from 0 (certainly wrong) to 10 (certainly right)."
)
MAX_TOKENS = 96


class BestOf(Strategy):
    """A second round scores the answers of the first."""

    num_rounds = 2

    def weigh(self, ballot: Ballot) -> float:
        score = score_of(ballot)
        return 1.0 if not ballot.about else (score or 0.0) / HIGHEST

    def follow(
        self, number: int, drafts: Sequence[Draft], first_id: int, num_agents: int
    ) -> RoundPlan | None:
        tallies = candidates(drafts)
        if len(tallies) < 2:
            return None  # nothing to choose between
        plans = tuple(
            AgentPlan(
                first_id + i, 0.0, opening=f"Score of answer {letter}:", max_tokens=MAX_TOKENS,
                about=tally.key,
            )
            for i, (letter, tally) in enumerate(zip(LETTERS, tallies, strict=False))
        )  # fmt: skip
        turns = (
            Turn("assistant", workspace(drafts, with_counts=False)),
            Turn("user", REQUEST),
        )
        return RoundPlan("verifier", plans, turns, quorum="all", has_tools=False)

    def conclude(
        self, rounds: Sequence[Sequence[Ballot]], decision: Decision
    ) -> tuple[Sequence[Ballot], Decision]:
        if len(rounds) == 1:
            return rounds[0], decision
        tallies = count(rounds[0])
        scores = {b.about: s for b in rounds[-1] if (s := score_of(b)) is not None}
        if not scores:
            return rounds[0], Decision(tallies[0].key, "no verifier gave a score; most ballots")
        # Ties go to the answer with more ballots: the count has it first.
        best = max(tallies, key=lambda tally: scores.get(tally.key, -1.0))
        reason = f"verifiers scored {len(scores)} answers; this one has {scores[best.key]:g} of 10"
        return rounds[0], Decision(best.key, reason)


def score_of(ballot: Ballot) -> float | None:
    """A verifier's score; None if it gave none."""
    digits = number_key(ballot.answer) if ballot.about else ""
    score = float(digits) if digits else -1.0
    return score if 0.0 <= score <= HIGHEST else None
