"""Why an agent ends with its newest token, or with the one that was just drawn for it."""

from __future__ import annotations

import math

from cogitate.agent_decoder.core.events import Finish
from cogitate.agent_decoder.core.sequence import Agent
from cogitate.agent_decoder.core.starts import GangRules
from cogitate.agent_decoder.core.transcript import Turn

# Why it ended, and the reason beside it, empty where there is none.
Ending = tuple[Finish, str]


def ending_of(agent: Agent, rules: GangRules, threshold: float) -> Ending | None:
    """Why the agent ends where it stands; None if it does not. threshold 0 means none."""
    if agent.matcher is not None and agent.matcher.broken:
        return Finish.ERROR, "CONSTRAINT"
    if agent.last_turn in (Turn.ENDED, Turn.STOPPED):
        return Finish.STOP, ""
    if len(agent.sampled) >= agent.params.max_tokens:
        return Finish.LENGTH, ""
    if agent.sequence.num_positions >= rules.max_model_len:
        return Finish.LENGTH, ""
    full = len(agent.confidences) == agent.confidences.maxlen
    if threshold > 0.0 and full and agent.group_confidence < threshold:
        return Finish.CONFIDENCE, "CONFIDENCE"
    return None


def why_unusable(agent: Agent, logprob: float | None) -> str:
    """Why the token that was drawn means nothing, as a reason; empty if it is one."""
    if logprob is not None and not math.isfinite(logprob):  # numbers ran over (an absurd embedding)
        return "NOT_FINITE"
    # What may come could not be computed within the grammar's limits.
    return "CONSTRAINT" if agent.matcher is not None and agent.matcher.broken else ""
