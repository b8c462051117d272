"""Declarations that wait for room, in lines that are fair to tenants.

A *line* holds what competes for the same room: one model, and where it may run. In a line the
highest priority is served first; among tenants of one priority deficit round robin (Shreedhar and
Varghese, SIGCOMM 1995) over predicted cost, so that a tenant whose gangs are large gets no more
than one whose gangs are small. A tenant's own declarations go in the order they came.

Whoever's turn it is waits for room at the head of its line, and nobody of its line passes it:
otherwise small gangs would take every place that comes free, and a large one would never start.

What cannot be served in the time it may wait, or be done by its deadline if it runs as long as
others did, is refused at once, as far as that can be predicted from what the line served lately.
When the queue is full, the tenant that has most in it gives way.

Invariants, checked by the state machine in tests/property/test_router_queue.py:
1. What was added leaves exactly once: taken, removed or evicted.
2. A declaration is never served before an older one of its tenant, line and priority.
3. Tenants that always wait get the same cost, to the largest declaration and a quantum.
4. At most `max_count` wait.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from cogitate.router.core.types import Declare

# How far back the rate looks at which a line is served, in seconds of its having waiters.
RATE_WINDOW_S = 10.0
# What a position of a prompt costs beside one that an agent writes. Source: the virtual token
# counter (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024), which has 1 and 2.
PROMPT_WEIGHT = 0.5
# How much the latest run counts in the mean of runs.
RUN_WEIGHT = 0.2
# Not before a line had waiters for so long is its rate taken for known.
RATE_LEAST_S = 1.0

LineKey = tuple[str, frozenset[str], frozenset[str], int]


@dataclass(frozen=True)
class Waiting:
    """A declaration in the queue. Times are seconds of the desk's clock."""

    command: Declare
    holder: int
    since_s: float

    @cached_property
    def line(self) -> LineKey:
        """What it competes for."""
        return line_of(self.command)

    @cached_property
    def cost(self) -> float:
        """Its predicted cost in tokens written: every prompt once, at its weight, and what its
        agents will write.
        """
        return sum(
            PROMPT_WEIGHT * gang.prefix_tokens + len(gang.agent_ids) * max(1, gang.tokens_per_agent)
            for gang in self.command.gangs
        )


@dataclass(slots=True)
class _Flow:
    """One tenant's declarations in one band, and what it may still be served in this round."""

    waiting: deque[Waiting] = field(default_factory=deque)
    deficit: float = 0.0
    cost: float = 0.0


@dataclass(slots=True)
class _Band:
    """One priority of a line: tenants in the order of the round."""

    quantum: float
    flows: OrderedDict[str, _Flow] = field(default_factory=OrderedDict)

    @property
    def cost(self) -> float:
        return sum(flow.cost for flow in self.flows.values())

    def head(self) -> Waiting:
        """Whose turn it is; stays the same until that one is taken."""
        while True:
            tenant, flow = next(iter(self.flows.items()))
            if flow.waiting[0].cost <= flow.deficit:
                return flow.waiting[0]
            # A round in which nobody is served adds a quantum to each: skip those at once.
            rounds = min(
                math.ceil((f.waiting[0].cost - f.deficit) / self.quantum)
                for f in self.flows.values()
            )
            for other in self.flows.values() if rounds > 1 else ():
                other.deficit += (rounds - 1) * self.quantum
            flow.deficit += self.quantum
            if flow.waiting[0].cost > flow.deficit:
                self.flows.move_to_end(tenant)

    def drop(self, item: Waiting, *, served: bool) -> None:
        tenant = item.command.tenant
        flow = self.flows[tenant]
        flow.waiting.remove(item)
        flow.cost -= item.cost
        if served:
            flow.deficit -= item.cost
        if not flow.waiting:
            del self.flows[tenant]  # whoever has nothing waiting saves nothing up
        elif served and flow.waiting[0].cost > flow.deficit:
            self.flows.move_to_end(tenant)


@dataclass(slots=True)
class _Line:
    bands: dict[int, _Band] = field(default_factory=dict)
    # Cost served, and seconds with waiters, both fading with `RATE_WINDOW_S`.
    served: float = 0.0
    busy_s: float = 0.0
    looked_at_s: float = 0.0
    run_s: float = 0.0  # how long those that were served ran of late

    def look(self, now: float) -> None:
        """Lets time pass; only time in which somebody waits tells how fast a line is served."""
        if self.bands:
            passed = max(0.0, now - self.looked_at_s)
            fade = math.exp(-passed / RATE_WINDOW_S)
            self.served *= fade
            self.busy_s = self.busy_s * fade + RATE_WINDOW_S * (1 - fade)
        self.looked_at_s = now

    def rate(self, cost: float) -> float | None:
        """Cost a second; None while less was served of late than one of that cost: not known."""
        if self.busy_s < RATE_LEAST_S or self.served < cost:
            return None
        return self.served / self.busy_s


@dataclass(slots=True)
class Queue:
    """Owns the declarations that wait. `quantum`: what a tenant is served of a round, positions."""

    max_count: int = 1000
    quantum: float = 128.0
    _lines: dict[LineKey, _Line] = field(default_factory=dict)
    _items: dict[str, Waiting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._items)

    def has_line(self, command: Declare) -> bool:
        """Whether somebody waits for the same room, of its priority or a higher one."""
        line = self._lines.get(line_of(command))
        return line is not None and any(p >= command.priority for p in line.bands)

    def expected_s(self, item: Waiting, now: float) -> float | None:
        """How long it would wait if it came now, to its being served; None if that is not known.

        Before it come all of higher priority, and of its own either all or its tenant's times the
        number of tenants, whichever is less: each of them is served as much.
        """
        line = self._lines.get(item.line)
        if line is None:
            return None
        line.look(now)
        rate = line.rate(item.cost)
        if rate is None:
            return None
        ahead = sum(b.cost for p, b in line.bands.items() if p > item.command.priority)
        band = line.bands.get(item.command.priority)
        if band is not None:
            mine = band.flows.get(item.command.tenant)
            tenants = len(band.flows) + (mine is None)
            own = (mine.cost if mine else 0.0) + item.cost
            ahead += min(band.cost, own * tenants - item.cost)
        return (ahead + item.cost) / rate

    def add(self, item: Waiting, now: float) -> Waiting | None:
        """Takes it in; returns whoever had to give way, maybe itself: it is not in the queue."""
        evicted = None
        if len(self._items) >= self.max_count:
            evicted = self._most(item)
            if evicted is item:
                return item
            self._drop(evicted, served=False)
        line = self._lines.setdefault(item.line, _Line(looked_at_s=now))
        line.look(now)
        band = line.bands.setdefault(item.command.priority, _Band(self.quantum))
        flow = band.flows.setdefault(item.command.tenant, _Flow())
        flow.waiting.append(item)
        flow.cost += item.cost
        self._items[item.command.contemplation_id] = item
        return evicted

    def heads(self) -> Iterator[Waiting]:
        """Whose turn it is in each line, the one that waits longest first."""
        found = [line.bands[max(line.bands)].head() for line in self._lines.values() if line.bands]
        yield from sorted(found, key=lambda w: (w.since_s, w.command.contemplation_id))

    def next_of(self, item: Waiting) -> Waiting | None:
        """Whose turn it is in the line of an item that has left it."""
        line = self._lines.get(item.line)
        return line.bands[max(line.bands)].head() if line is not None and line.bands else None

    def take(self, item: Waiting, now: float) -> None:
        """It was served."""
        line = self._lines[item.line]
        line.look(now)
        line.served += item.cost
        self._drop(item, served=True)

    def remove(self, contemplation_id: str, now: float) -> Waiting | None:
        """Takes it out unserved, if it is there."""
        item = self._items.get(contemplation_id)
        if item is not None:
            self._lines[item.line].look(now)
            self._drop(item, served=False)
        return item

    def commands(self) -> Iterator[Declare]:
        """All that wait."""
        return (item.command for item in self._items.values())

    def get(self, contemplation_id: str) -> Waiting | None:
        """Who waits under this id."""
        return self._items.get(contemplation_id)

    def next_end_s(self) -> float:
        """When the next one's time is over; infinite if nobody waits. O(waiting)."""
        return min((self.end_s(item) for item in self._items.values()), default=math.inf)

    def of(self, holder: int) -> list[str]:
        """The contemplations of a holder that wait."""
        return [c for c, item in self._items.items() if item.holder == holder]

    def overdue(self, now: float) -> list[Waiting]:
        """Those whose time is over; they are still there. O(waiting)."""
        return [item for item in self._items.values() if self.end_s(item) <= now]

    def end_s(self, item: Waiting) -> float:
        """When it has waited as long as it may: by its wish, or to be done by its deadline."""
        command, line = item.command, self._lines.get(item.line)
        run_s = line.run_s if line is not None else 0.0
        return item.since_s + min(command.max_wait_s, max(0.0, command.remaining_s - run_s))

    def ran(self, key: LineKey, seconds: float) -> None:
        """One of a line ended after so long."""
        line = self._lines.get(key)
        if line is not None:
            line.run_s += RUN_WEIGHT * (seconds - line.run_s) if line.run_s else seconds

    def ahead_of(self, contemplation_id: str) -> int:
        """How many of its line, with its priority or a higher one, came before it."""
        item = self._items[contemplation_id]
        bands = self._lines[item.line].bands
        return sum(
            other.since_s < item.since_s or priority > item.command.priority
            for priority, band in bands.items()
            if priority >= item.command.priority
            for flow in band.flows.values()
            for other in flow.waiting
            if other is not item
        )

    def _drop(self, item: Waiting, *, served: bool) -> None:
        line = self._lines[item.line]
        band = line.bands[item.command.priority]
        band.drop(item, served=served)
        del self._items[item.command.contemplation_id]
        if not band.flows:
            del line.bands[item.command.priority]
        if not line.bands and len(self._lines) > self.max_count:
            del self._lines[item.line]  # its rate is forgotten

    def _most(self, item: Waiting) -> Waiting:
        """Of the tenant with most waiting, the new one too: the newest of its lowest priority."""
        cost: dict[str, float] = {}
        for other in (*self._items.values(), item):
            cost[other.command.tenant] = cost.get(other.command.tenant, 0.0) + other.cost
        tenant = max(cost, key=lambda t: (cost[t], t == item.command.tenant, t))
        theirs = [w for w in (*self._items.values(), item) if w.command.tenant == tenant]
        return min(theirs, key=lambda w: (w.command.priority, -w.since_s, w is not item))


def line_of(command: Declare) -> LineKey:
    """What it competes for."""
    limits = command.terms.constraints
    model = command.gangs[0].model
    return (model, limits.providers, limits.regions, limits.max_price_per_hour_micro_usd)
