"""Who has fallen silent, and who is slow beside its siblings: from when agents wrote, nothing else.

It keeps two things. Of each gang, when it was last heard while somebody in it ought to write: what
is longer than its endpoint's limit is a *stall*, and the gang goes elsewhere. Of each agent, how
long a token takes it: one that would end much later than at its siblings' pace is a *straggler*,
and is hedged. An agent alone that is silent while its gang writes is a straggler, never a stall:
its endpoint lives, and may only have taken its memory away for a while.

Time in which this process itself did not run does not count: an aggregator that was stopped would
take its whole fleet for dead when it wakes.

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
    heard_at: float | None = None  # None: nothing that was sampled has come
    waits_since: float | None = None  # somebody ought to write since; None: nobody


@dataclass(slots=True)
class _Agent:
    heard_at: float
    token_s: float = 0.0
    num_timed: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of a gang: when its gang was opened, and the time since the one before it."""

    opened_at: float
    gap_s: float | None


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

    def wrote(self, gang_id: str, tokens: Mapping[int, int], now: float) -> Heard | None:
        """Agents of a gang wrote so many tokens each."""
        gang = self._gangs.get(gang_id)
        if gang is None:
            return None
        for agent_id, count in tokens.items():
            self._timed(agent_id, gang_id, count, now)
        gap_s = None
        if gang.heard_at is not None and gang.waits_since is not None:
            gap_s = max(0.0, now - max(gang.heard_at, gang.waits_since))
        gang.heard_at = gang.waits_since = now
        return Heard(gang.opened_at, gap_s)

    def _timed(self, agent_id: int, gang_id: str, count: int, now: float) -> None:
        agent = self._agents.get((agent_id, gang_id))
        if agent is None:
            self._agents[agent_id, gang_id] = _Agent(now)  # its first message tells no pace
            return
        if count:
            token_s = max(0.0, now - agent.heard_at) / count
            first = not agent.num_timed
            agent.token_s += (1.0 if first else GAIN) * (token_s - agent.token_s)
            agent.num_timed += count
        agent.heard_at = now

    def look(self, writing: Mapping[str, Collection[int]], now: float) -> dict[str, float]:
        """How long each gang has been silent in which somebody ought to write.

        ``writing`` names these agents, by gang. Gangs that have sampled nothing yet are told of,
        too: see ``has_written``. Call it every ``interval_s``.
        """
        late_s = 0.0
        if self._looked_at is not None:
            late_s = max(0.0, now - self._looked_at - 2 * self._interval_s)
        self._looked_at = now
        silent: dict[str, float] = {}
        for gang_id, gang in self._gangs.items():
            ought = writing.get(gang_id, ())
            for agent_id in self._ids_of(gang_id):
                agent = self._agents[agent_id, gang_id]
                agent.heard_at = agent.heard_at + late_s if agent_id in ought else now
            if gang.waits_since is None:
                continue  # its prompt is being computed, or it waits for room
            gang.waits_since = gang.waits_since + late_s if ought else now
            if ought:
                silent[gang_id] = now - gang.waits_since
        return silent

    def has_written(self, gang_id: str) -> bool:
        """Whether anything a gang sampled has come."""
        return gang_id in self._gangs and self._gangs[gang_id].heard_at is not None

    def ended(self, gang_id: str) -> None:
        """A stream ended. What its agents' pace was stays known, for their siblings' sake."""
        self._gangs.pop(gang_id, None)

    def _ids_of(self, gang_id: str) -> list[int]:
        return [agent_id for agent_id, where in self._agents if where == gang_id]

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
            if agent is None or len(siblings) < ENOUGH_SIBLINGS:
                continue
            usual_s, silent_s = statistics.median(siblings), now - agent.heard_at
            # The pace is that of all tokens that are left, silence is this one token's.
            later_s = max((agent.token_s - usual_s) * num_left, silent_s - usual_s)
            slow = max(agent.token_s, silent_s) > factor * usual_s
            if slow and later_s > gain_s:
                found.append(agent_id)
        return found
