"""Agents that found no place or wait for one, and how much a pool of endpoints has to do; pure.

A pool is the endpoints of one model, of one provider if it names one. What is told of it are sums
over the pool, so that `ceil(sum / target)` is the number of endpoints needed: that is what
Kubernetes computes of an external metric whose target is an average value.

Invariants (tests/property/test_router_scaling.py):
1. A gang counts as waiting until it is granted or released, and for `window_s` after its last
   denial at most (test_waiting_gangs_are_those_denied_last_and_lately).
2. No more than `max_count` gangs are remembered, the latest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from cogitate.router.core.estimate import CostModel, speed_of
from cogitate.router.core.types import (
    Declare,
    Denied,
    Description,
    EndpointSnapshot,
    Granted,
    Queued,
    Replace,
    State,
)

# Denials that a further endpoint might have spared.
_FOR_LACK_OF_ROOM = frozenset({"NO_ENDPOINT", "UNKNOWN_MODEL", "REJECTED", "EVICTED"})


@dataclass(frozen=True, slots=True)
class _Waiting:
    at_s: float
    providers: frozenset[str]  # that may run it; empty: all
    agents: tuple[tuple[str, int], ...]  # model and number


class Demand:
    """Owns what was denied. Belongs to one event loop."""

    def __init__(self, window_s: float, max_count: int) -> None:
        self._window_s, self._max_count = window_s, max_count
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def note(
        self, command: Declare | Replace, answer: Granted | Denied | Queued, now: float
    ) -> None:
        """Takes in how a command was answered. Those in the queue are counted there."""
        self.forget(command.contemplation_id)
        if not isinstance(answer, Denied) or answer.reason not in _FOR_LACK_OF_ROOM:
            return
        allowed = command.terms.constraints.providers if isinstance(command, Declare) else ()
        agents = tuple((gang.model, len(gang.agent_ids)) for gang in command.gangs)
        self._waiting[command.contemplation_id] = _Waiting(now, frozenset(allowed), agents)
        if len(self._waiting) > self._max_count:
            self._waiting.popitem(last=False)

    def forget(self, contemplation_id: str) -> None:
        """Its contemplation ended, or found its place."""
        self._waiting.pop(contemplation_id, None)

    def agents(self, model: str, provider: str, now: float) -> int:
        """How many agents of a model wait that the provider may run; any if it is empty."""
        while self._waiting:  # in the order of their last denial
            oldest = next(iter(self._waiting.values()))
            if now - oldest.at_s < self._window_s:
                break
            self._waiting.popitem(last=False)
        return sum(
            count
            for waiting in self._waiting.values()
            if not provider or not waiting.providers or provider in waiting.providers
            for name, count in waiting.agents
            if name == model
        )


def queued_agents(commands: Iterable[Declare], model: str, provider: str) -> int:
    """How many agents of a model are in the queue that the provider may run; any if it is empty."""
    return sum(
        len(gang.agent_ids)
        for command in commands
        if not (allowed := command.terms.constraints.providers) or provider in ("", *allowed)
        for gang in command.gangs
        if gang.model == model
    )


@dataclass(frozen=True, slots=True)
class Pool:
    """The endpoints that are scaled together, and what each is to carry.

    `agents_per_endpoint` 0 takes `fill_share` of what the endpoints there may hold on average.
    """

    model: str
    provider: str = ""
    agents_per_endpoint: float = 0.0
    kv_target: float = 0.8
    wait_target_s: float = 10.0

    def has(self, what: Description) -> bool:
        """Whether an endpoint belongs to it."""
        return self.model in what.models and self.provider in ("", what.provider)


@dataclass(frozen=True, slots=True)
class Need:
    """What a pool has to do, in sums over it.

    `agents`: those that hold a place there or wait for one. `kv`: endpoints' worth of KV blocks in
    use. `wait_s`: how long one endpoint would take for all that waits. `agents_per_endpoint`: what
    one is to hold.
    """

    endpoints: int
    agents: int
    waiting_agents: int
    kv: float
    wait_s: float
    agents_per_endpoint: float

    @property
    def is_active(self) -> bool:
        """Whether the pool is needed at all."""
        return self.agents > 0


@dataclass(frozen=True, slots=True)
class Scale:
    """How full an endpoint is to be, and how large one is taken to be while there is none."""

    fill_share: float = 0.8
    prior_agents: int = 16


def need_of(
    pool: Pool,
    fleet: Iterable[EndpointSnapshot],
    denied_agents: int,
    now: float,
    model: CostModel,
    scale: Scale,
) -> Need:
    """Sums a pool up. Endpoints that are silent or draining neither carry nor count. O(fleet)."""
    held = waiting = count = room = 0
    kv = agents_per_s = 0.0
    for s in fleet:
        if not pool.has(s.description) or s.state is not State.READY or now >= s.expires_at_s:
            continue
        count += 1
        held += s.sequences
        room += s.description.max_sequences
        waiting += s.load.waiting if s.load else 0
        if total := s.description.total_blocks:
            kv += 1 - s.free_blocks / total
        agents_per_s += _agents_per_s(s, model)
    if not count:
        empty = Description("", "", max_sequences=scale.prior_agents)
        agents_per_s = _agents_per_s(EndpointSnapshot(empty), model)
    mean_room = room / count if count else scale.prior_agents / scale.fill_share
    queued = waiting + denied_agents
    return Need(
        endpoints=count,
        agents=held + denied_agents,
        waiting_agents=queued,
        kv=kv,
        wait_s=queued * max(1, count) / agents_per_s,
        agents_per_endpoint=pool.agents_per_endpoint or max(1.0, scale.fill_share * mean_room),
    )


def _agents_per_s(s: EndpointSnapshot, model: CostModel) -> float:
    """How many agents of usual length an endpoint ends in a second when its batch is full."""
    full = s.description.max_sequences
    step_s = speed_of(s, model).step_s(full, 0)
    return full / (step_s * model.prior_tokens_per_agent)
