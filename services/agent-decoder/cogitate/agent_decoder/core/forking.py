"""An agent's history, and agents that begin with another one's: snapshots and forks.

A fork is an agent that is resumed from its parent's history, but for the memory: where there is
room at once it shares the parent's full blocks, which nobody writes any more, has its own copy of
the block at its end, and computes what is left of its history, one position at least, whose logits
it needs. It draws by its own seed and id, counting on from the tokens it keeps: as it would if it
were resumed elsewhere.

Invariants (``tests/property/test_gang.py``, ``tests/property/test_forks.py``):

1. A fork's positions are its parent's up to the token it keeps, and its blocks hold them.
2. No block is written that another sequence reads.
3. A fork that cannot be made changes nothing, and its parent never notices one.
"""

from __future__ import annotations

from dataclasses import replace

from cogitate.agent_decoder.core.events import Snapshot
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.memory import fits, misfit
from cogitate.agent_decoder.core.sequence import Agent
from cogitate.agent_decoder.core.starts import AgentStart, InjectedPositions, SampledTokens


def history(agent: Agent, kept: int) -> tuple[SampledTokens | InjectedPositions, ...]:
    """What the agent did up to its first token that is not among the ``kept`` sampled ones."""
    segments: list[SampledTokens | InjectedPositions] = []
    at = 0
    for count, positions, origin in agent.injections:
        if count > kept:
            break
        if count > at:
            segments.append(SampledTokens(tuple(agent.sampled[at:count])))
        segments.append(InjectedPositions(positions, origin))
        at = count
    if kept > at:
        segments.append(SampledTokens(tuple(agent.sampled[at:kept])))
    return tuple(segments)


def snapshot(agent: Agent) -> Snapshot:
    """The agent as it stands."""
    return Snapshot(
        agent_id=agent.agent_id,
        attempt=agent.attempt,
        segments=history(agent, len(agent.sampled)),
        num_sampled=len(agent.sampled),
        withheld=agent.transcript.withheld,
        pending_call_id=agent.pending_call_id,
        mean_logprob=agent.mean_logprob,
        lowest_confidence=agent.lowest_confidence,
        group_confidence=agent.group_confidence,
    )


def fork(
    gang: Gang,
    parent_id: int,
    num_sampled: int,
    start: AgentStart,
    *,
    max_agents: int,
    has_room: bool,
) -> str:
    """Adds a copy that keeps so many sampled tokens (-1: all); the reason if it cannot be made.

    Without ``has_room``, or where its parent has no memory, it waits for some and then computes
    what it would have shared. The parent's blocks hold what was computed, and ``gang.copies`` are
    made before anything else happens to the gang: the block that is copied may be given back.
    """
    parent = gang.agents.get(parent_id)
    if parent is None:
        return "NOT_FOUND"
    kept = len(parent.sampled) if num_sampled == -1 else num_sampled
    if start.agent_id == parent_id or not 0 <= kept <= len(parent.sampled):
        return "INVALID_REQUEST"
    start = replace(
        start,
        opening=parent.opening,
        replay=history(parent, kept),
        mean_logprob=parent.mean_logprob,
        lowest_confidence=(
            parent.lowest_confidence if kept == len(parent.sampled) else float("inf")
        ),
    )
    if misfit(gang, start):
        return "INVALID_REQUEST"
    if not fits(gang, max_agents, start):
        return "REJECTED"
    num_prefix = len(gang.start.prefix)
    own = len(start.opening) + start.num_sampled + start.num_injected
    num_shared = min(parent.sequence.num_computed, num_prefix + max(own - 1, 0))
    gang.add_agent(start)
    if num_shared and has_room:
        agent = gang.agents[start.agent_id]
        for _ in range(num_shared - num_prefix):
            agent.sequence.pending.popleft()
        gang.branch(agent, parent.sequence, num_shared)
    return ""
