"""From ballots and decision to the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogitate.aggregator.core.agents import AgentState
from cogitate.aggregator.core.ballots import Ballot, Decision, count


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict before it becomes a message."""

    answer: str
    key: str
    proved: bool
    abstained: bool
    degraded_reasons: tuple[str, ...]
    decision: str
    ballots: tuple[Ballot, ...]
    agent_id: int | None  # whose words the answer is; None if it is a refusal


def unfinished(agents: Iterable[AgentState], cut_short_by: Sequence[str]) -> Outcome | None:
    """The longest answer somebody was writing when budget or deadline ended; None without one."""
    writers = [agent for agent in agents if agent.answer.strip()]
    if not writers or not set(cut_short_by) & {"BUDGET", "DEADLINE"}:
        return None
    writer = max(writers, key=lambda agent: (len(agent.answer), -agent.agent_id))
    return Outcome(
        answer=writer.answer.strip(),
        key="",
        proved=False,
        abstained=False,
        degraded_reasons=(*cut_short_by, "NO_BALLOT", "UNFINISHED"),
        decision="no agent had ended; the longest answer as far as it was written",
        ballots=(),
        agent_id=writer.agent_id,
    )


def outcome_of(ballots: Sequence[Ballot], decision: Decision, degraded: Iterable[str]) -> Outcome:
    """The winner's words; if all abstained, their most frequent refusal (ties: by alphabet)."""
    reasons = list(dict.fromkeys(degraded))
    tallies = [tally for tally in count(ballots) if tally.key == decision.key]
    words = tallies[0].representative if tallies else None
    answer = words.answer if words else ""
    if words is None:
        refusals = sorted(ballot.answer for ballot in ballots if ballot.answer.strip())
        if refusals:
            answer = max(refusals, key=refusals.count)
        else:
            reasons.append("NO_BALLOT")
    return Outcome(
        answer=answer,
        key=words.key if words else "",
        proved=bool(tallies) and tallies[0].proved,
        abstained=words is None,
        degraded_reasons=tuple(reasons),
        decision=decision.reason,
        ballots=tuple(ballots),
        agent_id=words.agent_id if words else None,
    )
