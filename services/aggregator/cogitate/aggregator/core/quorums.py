"""Rules that say when the outcome is decided, by name.

=================  ==============================================================  =================
``all``            everybody voted                                                 arXiv 2203.11171
``unbeatable``     the ballots still to come cannot change the winner              arXiv 2401.10480
``unanimous:k``    k answers and all the same; where they differ, as unbeatable
``posterior:d``    the leader is the likelier of the first two with probability d  arXiv 2305.11860
``first:m``        the majority of the first m answers                             arXiv 2505.17813
``verified``       a tool proved an answer
=================  ==============================================================  =================

No rule waits once the winner of ``all`` is certain, but ``verified``, where a proof may still come.

Invariants (``tests/property/test_ballots.py``):

1. ``unbeatable`` decides for the winner that ``all`` would have, whatever the open ballots say.
2. What ``all``, ``unbeatable``, ``first`` or ``verified`` decided, further ballots do not undo.
3. Every rule decides when nobody is left to vote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

from cogitate.aggregator.core.ballots import Ballot, Decision, count
from cogitate.aggregator.core.kinds import Kind, Number, named

# A rule sees the ballots in journalled order and how many may still be cast.
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


def unanimous(least: float) -> Rule:
    """Decides at so many answers that are all the same."""

    def rule(ballots: Sequence[Ballot], num_open: int) -> Decision | None:
        tallies = count(ballots)
        if len(tallies) == 1 and len(tallies[0].ballots) >= least:
            number = len(tallies[0].ballots)
            return Decision(tallies[0].key, f"{number} answered and all of them agree")
        return unbeatable(ballots, num_open)

    return rule


def first(most: float) -> Rule:
    """Decides by the first so many answers, in the order in which they were journalled."""

    def rule(ballots: Sequence[Ballot], num_open: int) -> Decision | None:
        answers = [ballot for ballot in ballots if not ballot.abstained][: int(most)]
        decision = unbeatable(answers, min(num_open, int(most) - len(answers)))
        if decision is None or not decision.key:
            return decision
        agree = sum(ballot.key == decision.key for ballot in answers)
        return Decision(decision.key, f"{agree} of the first {len(answers)} answers agree")

    return rule


def posterior(wanted: float) -> Rule:
    """Decides once the leader is likelier, so probably, than that with most ballots beside it."""

    def rule(ballots: Sequence[Ballot], num_open: int) -> Decision | None:
        tallies = count(ballots)
        if tallies:
            # By ballots, as the probability counts: the second by weight may have fewer.
            second = max((len(tally.ballots) for tally in tallies[1:]), default=0)
            probability = lead_probability(len(tallies[0].ballots), second)
            if probability >= wanted:
                return Decision(
                    tallies[0].key,
                    f"{len(tallies[0].ballots)} of {len(ballots)} agree, the next {second}: "
                    f"with a probability of {probability:.3f} that order stays",
                )
        return unbeatable(ballots, num_open)

    return rule


def lead_probability(leading: int, second: int) -> float:
    """P(p > 1/2) for p distributed as Beta(leading + 1, second + 1), exact for whole numbers.

    Source: the Beta criterion of Adaptive-Consistency (arXiv 2305.11860, equation 2).
    """
    draws = leading + second + 1
    ways = sum(comb(draws, successes) for successes in range(leading + 1))
    return float(ways / 2**draws)


QUORUMS: dict[str, Kind[Rule]] = {
    "all": Kind(lambda _: all_voted),
    "unbeatable": Kind(lambda _: unbeatable),
    "verified": Kind(lambda _: verified),
    "unanimous": Kind(unanimous, Number("how many must agree", 3, 2, 1000, whole=True)),
    "first": Kind(first, Number("how many answers are waited for", 3, 1, 1000, whole=True)),
    "posterior": Kind(
        posterior, Number("the probability to stop at", 0.95, 0.5, 1.0, is_open=True)
    ),
}
DEFAULT_QUORUM = "unbeatable"


def quorum(name: str) -> Rule:
    """The rule of a name. Raises ValueError with a sentence."""
    return named(name, QUORUMS)


# Of how many answers, by weight and by ballots, it is tried whether they may still be agreed on.
_LEADING = 3


def least_needed(rule: Rule, ballots: Sequence[Ballot], most: int) -> int:
    """How many more ballots must be cast at least, of ``most`` that can be: as if all agreed.

    All on one of the leading answers; one of many ballots of little weight may need the fewest.

    No ballot says how far away a proof is. So for ``verified`` it is as many as were cast in vain:
    an exponential search, which costs twice the least at most and takes few turns.
    """
    if rule is verified and rule(ballots, most) is None:
        return min(most, max(1, len(ballots)))
    tallies = count(ballots)
    by_ballots = sorted(tallies, key=lambda tally: -len(tally.ballots))
    leading = dict.fromkeys(t.key for t in (*tallies[:_LEADING], *by_ballots[:_LEADING]))
    keys = list(leading) or ["any"]
    agreeing = [Ballot(agent_id=-1, attempt=0, answer=key, key=key, proved=True) for key in keys]
    for number in range(most + 1):
        for one in agreeing:
            if rule([*ballots, *[one] * number], most - number) is not None:
                return number
    return most
