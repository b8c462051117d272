"""Who has fallen silent, and who is slow beside its siblings: from when agents wrote, nothing else.

It keeps two things. Of each gang, when it was last heard while somebody in it ought to write: too
long for its endpoint is a *stall*. Of each agent, how long a token takes it: one that would end
much later than at its siblings' pace is a *straggler*.

Silence counts from the prompt's end on, and while an agent ought to write: not while it waits for
a place, a tool's result or tokens. What follows a prompt or a pause may be computed first, so an
agent is *warm* only once it wrote again. Time in which this process itself did not run does not
count: an aggregator that was stopped would take its whole fleet for dead when it wakes.

Invariant (``tests/unit/test_aggregator_pulse.py``): a gang in which nobody ought to write never
stalls, however long.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# How much a new time counts for an agent's pace.
GAIN = 0.2
# Tokens an agent must have written before it is compared, and siblings to compare with.
ENOUGH_TOKENS, ENOUGH_SIBLINGS = 8, 2


@dataclass(slots=True)
class _Gang:
    opened_at: float
    waits_since: float | None = None  # somebody ought to write since; None: its prompt is computed


@dataclass(slots=True)
class _Agent:
    heard_at: float
    is_warm: bool = True
    token_s: float = 0.0
    num_timed: int = 0


@dataclass(frozen=True, slots=True)
class Silence:
    """Of a gang in which somebody ought to write, and whether one of those was warm."""

    s: float
    is_warm: bool


class Pulse:
    """Of one contemplation. Times are a monotonic clock's, given by the caller."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._gangs: dict[str, _Gang] = {}
        self._agents: dict[tuple[int, str], _Agent] = {}
        self._looked_at: float | None = None

    def opened(self, gang_id: str, now: float) -> None:
        """A stream begins."""
        self._gangs[gang_id] = _Gang(now)

    def opened_at(self, gang_id: str) -> float:
        """When a gang was opened; the beginning of time if it is not known."""
        gang = self._gangs.get(gang_id)
        return gang.opened_at if gang is not None else float("-inf")

    def prefilled(self, gang_id: str, now: float) -> None:
        """From here on its agents ought to write."""
        if (gang := self._gangs.get(gang_id)) is not None:
            gang.waits_since = now

    def wrote(self, gang_id: str, tokens: Mapping[int, int], now: float) -> float | None:
        """Agents of a gang wrote so many tokens each. The gap before it, if a warm one made it."""
        gang = self._gangs.get(gang_id)
        if gang is None:
            return None
        was_warm = any(
            agent.is_warm
            for agent_id in tokens
            if (agent := self._agents.get((agent_id, gang_id))) is not None
        )
        for agent_id, count in tokens.items():
            self._timed(agent_id, gang_id, count, now)
        since, gang.waits_since = gang.waits_since, now
        return max(0.0, now - since) if was_warm and since is not None else None

    def _timed(self, agent_id: int, gang_id: str, count: int, now: float) -> None:
        agent = self._agents.get((agent_id, gang_id))
        if agent is None:
            self._agents[agent_id, gang_id] = _Agent(now)  # its first message tells no pace
            return
        if count and agent.is_warm:
            token_s = max(0.0, now - agent.heard_at) / count
            first = not agent.num_timed
            agent.token_s += (1.0 if first else GAIN) * (token_s - agent.token_s)
            agent.num_timed += count
        agent.heard_at, agent.is_warm = now, True

    def paused(self, gang_id: str, agent_id: int) -> None:
        """It waits; what it was given is computed before it writes again."""
        if (agent := self._agents.get((agent_id, gang_id))) is not None:
            agent.is_warm = False

    def look(self, writing: Mapping[str, Collection[int]], now: float) -> dict[str, Silence]:
        """How long each gang has been silent in which somebody ought to write.

        ``writing`` names these agents, by gang. Call it every ``interval_s``.
        """
        late_s = 0.0
        if self._looked_at is not None:
            late_s = max(0.0, now - self._looked_at - 2 * self._interval_s)
        self._looked_at = now
        for (agent_id, gang_id), agent in self._agents.items():
            agent.heard_at += late_s
            if agent_id not in writing.get(gang_id, ()):
                agent.heard_at, agent.is_warm = now, False
        silent: dict[str, Silence] = {}
        for gang_id, gang in self._gangs.items():
            if gang.waits_since is None:
                continue  # its prompt is being computed, or it waits for room
            ought = writing.get(gang_id, ())
            gang.waits_since = gang.waits_since + late_s if ought else now
            if ought:
                known = [self._agents.get((agent_id, gang_id)) for agent_id in ought]
                is_warm = any(agent is not None and agent.is_warm for agent in known)
                silent[gang_id] = Silence(now - gang.waits_since, is_warm)
        return silent

    def ended(self, gang_id: str) -> None:
        """A stream ended. What its agents' pace was stays known, for their siblings' sake."""
        self._gangs.pop(gang_id, None)

    def stragglers(
        self, places: Mapping[int, tuple[str, int]], factor: float, gain_s: float, now: float
    ) -> list[int]:
        """Agents that would end ``factor`` times later, and ``gain_s`` later, than at the pace of
        the others.

        ``places`` has gang and tokens still expected of each agent that ought to write.
        """
        paces = {
            key: agent.token_s
            for key, agent in self._agents.items()
            if agent.num_timed >= ENOUGH_TOKENS
        }
        found = []
        for agent_id, (gang_id, num_left) in places.items():
            agent = self._agents.get((agent_id, gang_id))
            siblings = [pace for (other, _), pace in paces.items() if other != agent_id]
            if agent is None or not agent.is_warm or len(siblings) < ENOUGH_SIBLINGS:
                continue
            usual_s, silent_s = statistics.median(siblings), now - agent.heard_at
            # The pace is that of all tokens that are left, silence is this one token's.
            later_s = max((agent.token_s - usual_s) * num_left, silent_s - usual_s)
            slow = max(agent.token_s, silent_s) > factor * usual_s
            if slow and later_s > gain_s:
                found.append(agent_id)
        return found
