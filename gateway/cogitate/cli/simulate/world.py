"""The simulation: events in the order of time, the router's desk in the middle.

Declarations, confirmations, releases and replacements go through `Desk` as an aggregator's would;
descriptions, loads, drain notices and closed streams go through `Fleet` as an endpoint's would.
Agents that lose their machine go on elsewhere: their prompt and what they wrote is computed again,
and only the rest is sampled. What is denied is asked again later; what never ends is lost.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from cogitate.cli.simulate.demand import Request
from cogitate.cli.simulate.engine import Engine
from cogitate.cli.simulate.machines import MODEL, Machine
from cogitate.router.core.desk import Desk
from cogitate.router.core.estimate import CostModel
from cogitate.router.core.fleet import EndpointChanged, Fleet
from cogitate.router.core.leases import Leases
from cogitate.router.core.placement import PlacementPolicy
from cogitate.router.core.types import (
    Confirm,
    Constraints,
    Declare,
    Denied,
    GangNeed,
    Granted,
    Replace,
    Terms,
)  # fmt: skip

RETRY_S: Final = 0.5
NOTICE_S: Final = 30.0
AWAY_S: Final = 120.0
# What an operator tells the router of a model of this size: steps and prompts on its class CPU.
PRIOR_STEP_S, PRIOR_SLOPE, PRIOR_PROMPTS_PER_S = 0.5, 0.01, 20.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What may differ between runs of the same load on the same fleet."""

    policy: str
    seconds_per_usd: float = 60.0
    spread_penalty: float = 0.1
    seed: int = 0
    report_s: float = 0.5  # as routers ask for it by default
    domains: int = 2
    survivors: float = 0.0  # share of a gang's agents
    outage_at_s: float | None = None  # when a whole provider goes
    outage_s: float = 60.0
    preemptions_per_hour: float = 0.0  # of each spot machine

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.policy} λ={self.seconds_per_usd:g}" if self.policy == "gang" else self.policy


@dataclass(slots=True)
class Running:
    """A contemplation in flight."""

    request: Request
    attempt: int = 0
    left: set[int] = field(default_factory=set)
    ends_s: dict[str, float] = field(default_factory=dict)  # by endpoint, the last agent there
    predicted_s: tuple[float, ...] = ()  # by share
    moved: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    setting: Setting
    makespans_s: list[float] = field(default_factory=list)
    predicted_s: list[float] = field(default_factory=list)
    imbalances: list[float] = field(default_factory=list)  # of what shares were given
    unevennesses: list[float] = field(default_factory=list)  # of when they ended
    moved_agents: int = 0
    denials: int = 0
    lost: int = 0
    cost_usd: float = 0.0
    computed: int = 0
    unique: int = 0
    used: int = 0
    errors: list[float] = field(default_factory=list)
    place_s: float = 0.0
    placements: int = 0


class World:
    """One run. `step` tells how many contemplations have ended."""

    def __init__(
        self, machines: Sequence[Machine], requests: Sequence[Request], setting: Setting
    ) -> None:
        self.setting, self.requests = setting, requests
        self.now = 0.0
        self.out = Outcome(setting)
        dice = Random(f"world-{setting.seed}")
        self.engines = {
            m.description.endpoint_id: Engine(m, Random(f"{setting.seed}-{i}"))
            for i, m in enumerate(machines)
        }
        model = CostModel(
            seconds_per_usd=setting.seconds_per_usd, spread_penalty=setting.spread_penalty
        )
        # Idle endpoints do not report here: silence means nothing, a closed stream everything.
        fleet = Fleet(float("inf"), len(machines), PRIOR_STEP_S, PRIOR_SLOPE, PRIOR_PROMPTS_PER_S)
        self.desk = Desk(
            fleet, Leases(2.0), PlacementPolicy(setting.policy, model), max_leases=10**6
        )
        self.running: dict[str, Running] = {}
        self.away: set[str] = set()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = self._streams = 0
        self._reporting: set[str] = set()
        self._streams_of: dict[str, int] = {}
        for endpoint_id in self.engines:
            self._join(endpoint_id)
        self.desk.board(0.0)
        for request in requests:
            self._at(request.at_s, self._arrive, request)
        self._plan_faults(machines, dice)

    def run(self, tick: Callable[[int], None] = lambda ended: None) -> Outcome:
        """Runs to the end."""
        patience_s = self.requests[-1].at_s + 7200
        while self._events and len(self.out.makespans_s) < len(self.requests):
            self.now, _, act, arguments = heapq.heappop(self._events)
            if self.now > patience_s:
                break
            act(*arguments)
            tick(len(self.out.makespans_s))
        self.out.lost = len(self.requests) - len(self.out.makespans_s)
        for endpoint_id, engine in self.engines.items():
            engine.advance(self.now)
            price = engine.machine.description.price_per_hour_micro_usd
            self.out.cost_usd += engine.busy_s * price / 3.6e9
            self.out.computed += engine.computed
            self.out.used += engine.busy_s > 0
            entry = self.desk.fleet.entries.get(endpoint_id)
            if entry and entry.learner and entry.learner.error is not None:
                self.out.errors.append(entry.learner.error)
        return self.out

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, act, arguments))

    def _plan_faults(self, machines: Sequence[Machine], dice: Random) -> None:
        setting, end = self.setting, self.requests[-1].at_s
        if setting.outage_at_s is not None:
            count: dict[str, int] = {}
            for machine in machines:
                provider = machine.description.provider
                count[provider] = count.get(provider, 0) + 1
            name = dice.choice(sorted(count))
            for machine in machines:
                if machine.description.provider == name:
                    self._at(setting.outage_at_s, self._leave, machine.description.endpoint_id,
                             setting.outage_s)  # fmt: skip
        rate = setting.preemptions_per_hour / 3600
        for machine in machines:
            if rate and machine.description.is_spot:
                when = dice.expovariate(rate)
                if when < end:
                    self._at(when, self._notice, machine.description.endpoint_id)

    def _join(self, endpoint_id: str) -> None:
        self._streams += 1
        self._streams_of[endpoint_id] = self._streams
        self.away.discard(endpoint_id)
        fleet, engine = self.desk.fleet, self.engines[endpoint_id]
        self._hear(fleet.describe(self._streams, engine.machine.description, self.now))
        self._hear(fleet.report(self._streams, endpoint_id, engine.load(), self.now))

    def _hear(self, changes: tuple[EndpointChanged, ...]) -> None:
        if self.desk.leases.leases:
            self.desk.news(changes)

    def _notice(self, endpoint_id: str) -> None:
        if endpoint_id not in self.away:
            stream = self._streams_of[endpoint_id]
            self._hear(self.desk.fleet.drain(stream, endpoint_id, NOTICE_S, self.now))
            self._at(self.now + NOTICE_S, self._leave, endpoint_id, AWAY_S)

    def _leave(self, endpoint_id: str, away_s: float) -> None:
        if endpoint_id in self.away:
            return
        self.away.add(endpoint_id)
        self._hear(self.desk.fleet.close(self._streams_of[endpoint_id], endpoint_id))
        lost: dict[str, dict[int, int]] = {}
        for contemplation, agent, tokens in self.engines[endpoint_id].drop(self.now):
            lost.setdefault(contemplation, {})[agent] = tokens
        for contemplation, agents in lost.items():
            self._move(contemplation, agents, endpoint_id)
        self._at(self.now + away_s, self._join, endpoint_id)

    def _arrive(self, request: Request) -> None:
        agents = dict(enumerate(request.tokens))
        self.running[request.id] = Running(request, left=set(agents))
        self.out.unique += request.prompt
        self._declare(request.id)

    def _declare(self, name: str) -> None:
        one = self.running[name]
        one.attempt += 1
        request, agents = one.request, len(one.request.tokens)
        terms = Terms(
            Constraints(
                min_failure_domains=min(self.setting.domains, agents),
                min_survivors=int(self.setting.survivors * agents),
            )
        )
        need = self._need(one, tuple(range(agents)), request.prompt, request.declared)
        answer = self._ask(
            lambda: self.desk.declare(Declare(name, one.attempt, (need,), 0, terms), 1, self.now)
        )
        if isinstance(answer, Denied):
            self._at(self.now + RETRY_S, self._declare, name)
            return
        one.predicted_s = tuple(g.share.predicted_s for g in answer.gangs)
        self._begin(one, answer, dict(enumerate(request.tokens)), request.prompt)

    def _move(self, name: str, agents: dict[int, int], failed: str) -> None:
        """Finds new places for agents that lost theirs: id -> tokens left to write."""
        one = self.running[name]
        one.attempt += 1
        one.moved += len(agents)
        written = max(one.request.tokens[a] - left for a, left in agents.items())
        prompt = one.request.prompt + max(0, written)
        tokens = max(1, sum(agents.values()) // len(agents))
        need = self._need(one, tuple(sorted(agents)), prompt, tokens)
        command = Replace(name, one.attempt, (need,), ((failed, "UNAVAILABLE"),))
        answer = self._ask(lambda: self.desk.replace(command, 1, self.now))
        if isinstance(answer, Denied):
            one.moved -= len(agents)
            self._at(self.now + RETRY_S, self._move, name, agents, failed)
            return
        self._begin(one, answer, agents, prompt)

    def _need(self, one: Running, agents: tuple[int, ...], prompt: int, tokens: int) -> GangNeed:
        return GangNeed(
            one.request.id, MODEL, agents, prefix_tokens=prompt, tokens_per_agent=tokens,
            prefix_digest=one.request.conversation,
        )  # fmt: skip

    def _ask(self, ask: Callable[[], Granted | Denied]) -> Granted | Denied:
        self.desk.board(self.now)
        began = time.thread_time()
        answer = ask()
        self.out.place_s += time.thread_time() - began
        self.out.placements += 1
        self.out.denials += isinstance(answer, Denied)
        return answer

    def _begin(self, one: Running, granted: Granted, agents: dict[int, int], prompt: int) -> None:
        request = one.request
        placed = tuple(
            (g.gang_id, g.share.endpoint_id, len(g.share.agent_ids)) for g in granted.gangs
        )
        self.desk.confirm(Confirm(request.id, granted.attempt, placed), 1, self.now)
        for gang in granted.gangs:
            endpoint_id = gang.share.endpoint_id
            mine = {agent: agents[agent] for agent in gang.share.agent_ids}
            engine = self.engines[endpoint_id]
            ready = engine.prefill(self.now, prompt, request.blocks, len(mine))
            stream = self._streams_of[endpoint_id]
            self._at(ready, self._start, endpoint_id, stream, request.id, mine, prompt)
            self._report_later(endpoint_id)

    def _start(
        self, endpoint_id: str, stream: int, name: str, agents: dict[int, int], prompt: int
    ) -> None:
        if self._streams_of[endpoint_id] != stream or endpoint_id in self.away:
            self._move(name, agents, endpoint_id)  # it went while the prompt was computed
            return
        self.engines[endpoint_id].start(self.now, name, agents, prompt)
        self._foretell(endpoint_id)

    def _foretell(self, endpoint_id: str) -> None:
        engine = self.engines[endpoint_id]
        when = engine.next_end()
        if when is not None:
            self._at(when, self._end, endpoint_id, engine.version)

    def _end(self, endpoint_id: str, version: int) -> None:
        engine = self.engines[endpoint_id]
        if engine.version != version:
            return
        for name, agent in engine.ended(self.now):
            one = self.running[name]
            one.left.discard(agent)
            one.ends_s[endpoint_id] = self.now - one.request.at_s
            if not one.left:
                self._finish(name)
        self._foretell(endpoint_id)

    def _finish(self, name: str) -> None:
        one = self.running.pop(name)
        self.desk.release(name, 1, self.now)
        self.out.makespans_s.append(self.now - one.request.at_s)
        self.out.predicted_s.append(max(one.predicted_s))
        self.out.moved_agents += one.moved
        if len(one.predicted_s) > 1:
            self.out.imbalances.append(_above_mean(one.predicted_s))
            if not one.moved:
                self.out.unevennesses.append(_above_mean(one.ends_s.values()))

    def _report_later(self, endpoint_id: str) -> None:
        if endpoint_id not in self._reporting:
            self._reporting.add(endpoint_id)
            self._at(self.now + self.setting.report_s, self._report, endpoint_id)

    def _report(self, endpoint_id: str) -> None:
        self._reporting.discard(endpoint_id)
        if endpoint_id in self.away:
            return
        engine = self.engines[endpoint_id]
        engine.advance(self.now)
        stream = self._streams_of[endpoint_id]
        self._hear(self.desk.fleet.report(stream, endpoint_id, engine.load(), self.now))
        self.desk.board(self.now)
        if engine.running or engine.waiting:
            self._report_later(endpoint_id)


def _above_mean(shares: Collection[float]) -> float:
    """How far the largest is above the mean, relative to it."""
    return max(shares) * len(shares) / sum(shares) - 1
