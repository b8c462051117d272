"""Watches the gangs of one contemplation: when they write, when they fall silent, when they fail.

The runner shows it what it opens and what comes back; it tells the guard, and says who straggles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import AgentState
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.core.pulse import ENOUGH_TOKENS, Pulse, Silence
from cogitate.aggregator.guard import Guard
from cogitate.kit import metrics
from cogitate.kit.metric_registry import Metric

# Losses that say nothing about how the endpoint fares.
_BENIGN = frozenset({"BUILD_MISMATCH", "INVALID_REQUEST", "REJECTED", "EVICTED", "STALLED"})
# What only an endpoint that runs can say.
_OF_ENDPOINTS = m.Admitted | m.Prefilled | m.Stepped | m.ToolCalled | m.AgentEnded | m.GrantUsedUp
# Who could not be hedged is not asked for again at every look.
HEDGE_AGAIN_S = 5.0


class Vigil:
    """Owned by one runner."""

    def __init__(self, guard: Guard, config: AggregatorConfig, machine: Contemplation) -> None:
        self._guard, self._config, self._machine = guard, config, machine
        self._pulse = Pulse(config.pulse_interval_s)
        self._begun: set[int] = set()
        self._tried: dict[int, float] = {}  # when an agent was last asked to be hedged
        self._stalled: set[str] = set()  # gangs that were told to
        self._lost_at: dict[int, float] = {}  # of agents that go on and did not write yet
        races = machine.races
        self._begun_before, self._won_before = races.num_begun, races.num_won

    def opened(self, effect: m.OpenGang) -> None:
        """A gang's stream begins."""
        self._pulse.opened(effect.gang.gang_id, time.monotonic())
        new = {order.agent_id for order in effect.agents} - self._begun
        self._begun |= new
        self._guard.retries.began(len(new))

    def ended(self) -> None:
        """The contemplation is over."""
        races, guard = self._machine.races, self._guard
        guard.retries.ended(len(self._begun), time.monotonic())
        guard.num_hedges_begun += races.num_begun - self._begun_before
        guard.num_hedges_won += races.num_won - self._won_before

    def heard(self, item: m.Input) -> None:
        """Something came back; call it before the machine takes it."""
        now = time.monotonic()
        if isinstance(item, _OF_ENDPOINTS) and (gang := self._gang(item.gang_id)):
            self._guard.breakers.heard_of(gang.endpoint_id, now)
        if isinstance(item, m.Stepped):
            self._wrote(item, now)
        elif isinstance(item, m.Prefilled):
            self._pulse.prefilled(item.gang_id, now)
        elif isinstance(item, m.ToolCalled | m.GrantUsedUp):
            self._pulse.paused(item.gang_id, item.agent_id)
        elif isinstance(item, m.GangLost):
            self._lost(item)
        elif isinstance(item, m.AgentEnded):
            self._ended(item)

    def _wrote(self, item: m.Stepped, now: float) -> None:
        gang = self._gang(item.gang_id)
        tokens = {delta.agent_id: len(delta.token_ids) for delta in item.deltas}
        if gang is None or not any(tokens.values()):
            return
        self._stalled.discard(item.gang_id)
        opened_at = self._pulse.opened_at(item.gang_id)
        gap_s = self._pulse.wrote(item.gang_id, tokens, now)
        self._guard.breakers.wrote(gang.endpoint_id, gap_s, opened_at)
        for agent_id in self._lost_at.keys() & tokens.keys():
            if self._machine.agents[agent_id].gang_id == item.gang_id:
                metrics.record(Metric.RESUME_DURATION, now - self._lost_at.pop(agent_id))

    def _ended(self, item: m.AgentEnded) -> None:
        if item.finish == "ERROR":
            self._failed(item.gang_id)
        elif item.finish != "CANCELLED" and (gang := self._gang(item.gang_id)):
            opened_at = self._pulse.opened_at(item.gang_id)
            self._guard.breakers.succeeded(gang.endpoint_id, opened_at)

    def _gang(self, gang_id: str) -> m.PlacedGang | None:
        return self._machine.places.gangs.get(gang_id)

    def _lost(self, item: m.GangLost) -> None:
        # A stream that ends in order has nobody in it any more.
        if item.reason not in _BENIGN and item.retry_after_s is None and self._in(item.gang_id):
            self._failed(item.gang_id)

    def _failed(self, gang_id: str) -> None:
        gang = self._gang(gang_id)
        if gang is not None and self._machine.decision is None:
            self._guard.failed(gang.endpoint_id, self._pulse.opened_at(gang_id))

    def emitted(self, effect: m.Emit) -> None:
        """The client is told."""
        if effect.kind == "agent_lost" and effect.fields["resumed"]:
            self._lost_at.setdefault(effect.fields["agent_id"], time.monotonic())

    def closed(self, gang_id: str) -> None:
        """A gang's stream ended, or nobody listens to it any more."""
        self._pulse.ended(gang_id)

    # -- looking -------------------------------------------------------------------------------

    def look(self) -> list[m.Input]:
        """Who stalls or straggles, as inputs of the machine; every ``pulse_interval_s``."""
        machine, config = self._machine, self._config
        if machine.decision is not None:
            return []
        now, writing = time.monotonic(), dict(self._writing())
        found: list[m.Input] = []
        slow: set[int] = set()
        for gang_id in self._stalling(writing, now):
            has_first = any(machine.agents[i].gang_id == gang_id for i in writing[gang_id])
            if has_first and machine.races.allowed:
                slow |= writing[gang_id]
            else:
                found.append(m.GangLost(gang_id, "STALLED", "the endpoint fell silent"))
        agents = [a for a in machine.agents.values() if machine.races.can_race(a)]
        places = {a.agent_id: (a.gang_id, self._num_left(a)) for a in agents}
        factor, gain_s = config.hedge_factor, config.hedge_min_gain_s
        slow |= set(self._pulse.stragglers(places, factor, gain_s, now) if factor else ())
        slow = {
            i for i in slow & places.keys() if now - self._tried.get(i, -math.inf) > HEDGE_AGAIN_S
        }
        self._tried |= dict.fromkeys(slow, now)
        return found + ([m.Straggling(tuple(sorted(slow)))] if slow else [])

    def _stalling(self, writing: dict[str, set[int]], now: float) -> Iterator[str]:
        """The gangs that are silent for too long, and those whose endpoint is.

        The latter are only raced: they have no pace of their own to be judged by.
        """
        silent = self._pulse.look(writing, now)
        for gang_id, agents in writing.items():
            silence = silent.get(gang_id)
            if silence is not None and silence.s > self._limit_s(gang_id, silence):
                self._stalls(gang_id)
                yield gang_id
            elif agents and self._machine.races.allowed:
                if self._guard.breakers.is_silent(self._endpoint(gang_id)):
                    yield gang_id

    def _writing(self) -> Iterator[tuple[str, set[int]]]:
        """By gang, the agents that ought to write there."""
        writes = [
            agent
            for agent in self._machine.agents.values()
            if agent.open and not (agent.pending_call or agent.starved or agent.killing)
        ]
        for gang_id in self._machine.places.gangs:
            yield gang_id, {agent.agent_id for agent in writes if _runs_in(agent, gang_id)}

    def _in(self, gang_id: str) -> bool:
        return any(_runs_in(a, gang_id) for a in self._machine.agents.values() if a.open)

    def _endpoint(self, gang_id: str) -> str:
        return self._machine.places.gangs[gang_id].endpoint_id

    def _limit_s(self, gang_id: str, silence: Silence) -> float:
        breakers = self._guard.breakers
        limit_s = breakers.limit_s(self._endpoint(gang_id))
        return limit_s if silence.is_warm else breakers.limits.ceiling_s

    def _stalls(self, gang_id: str) -> None:
        if gang_id in self._stalled:
            return
        self._stalled.add(gang_id)
        self._guard.failed(self._endpoint(gang_id), self._pulse.opened_at(gang_id), stalled=True)

    def _num_left(self, agent: AgentState) -> int:
        """Tokens it is expected to write still."""
        return max(ENOUGH_TOKENS, self._machine.budget.expected - agent.num_sampled)


def _runs_in(agent: AgentState, gang_id: str) -> bool:
    return gang_id in (agent.gang_id, agent.rival.gang_id if agent.rival is not None else "")
