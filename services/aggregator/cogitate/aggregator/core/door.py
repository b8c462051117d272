"""Who is refused at the door, because the router has just refused one like it.

What would wait too long for room is refused by the router at once. Under an overload that is nearly
all that comes, and each takes a journalled contemplation and a question to the router: together
more than the answers of those that are let in. So such a refusal speaks for a short time for all
who compete for the same room, of the same tenant and priority, with no fewer agents and no more
time. When that is over the next of them asks for all, and a refusal that is long past is void.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

# At most this share of the wait that was foreseen: a queue never runs empty meanwhile.
WAIT_SHARE = 0.1
# More time than the refused one had by so little is no more: clocks and networks differ.
SAME_TIME = 1.05
MAX_KINDS = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes two contemplations wait for the same room. `constraints`: as serialized."""

    tenant: str
    model: str
    priority: int
    constraints: bytes = b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the router said to one with so many agents and so much time, in seconds."""

    agents: int
    time_s: float
    message: str
    wait_s: float
    told_s: float
    counts_s: float
    until_s: float


@dataclass(slots=True)
class Door:
    """Owns the latest refusal of each kind. `memory_s`: how long one counts; 0: not at all."""

    memory_s: float
    _refusals: dict[Kind, Refusal] = field(default_factory=dict)

    def refused(
        self, kind: Kind, agents: int, time_s: float, message: str, wait_s: float, now: float
    ) -> None:
        """The router refused one for the `wait_s` it foresees."""
        counts_s = min(self.memory_s, WAIT_SHARE * wait_s)
        if counts_s <= 0:
            return
        if len(self._refusals) >= MAX_KINDS:
            self._refusals = {k: r for k, r in self._refusals.items() if r.until_s > now}
        if len(self._refusals) < MAX_KINDS or kind in self._refusals:
            self._refusals[kind] = Refusal(
                agents, time_s, message, wait_s, now, counts_s, now + counts_s
            )

    def admitted(self, kind: Kind) -> None:
        """The router took one in."""
        self._refusals.pop(kind, None)

    def refusal(
        self, kind: Kind, agents: int, time_s: float, now: float
    ) -> tuple[str, float] | None:
        """Why one is not let in, and after how many seconds it may ask again; None: it is."""
        last = self._refusals.get(kind)
        if last is None or agents < last.agents or time_s > last.time_s * SAME_TIME:
            return None
        if now < last.until_s:
            return last.message, max(0.0, last.wait_s - (now - last.told_s))
        if now < last.until_s + last.counts_s:  # the others wait for what this one is told
            self._refusals[kind] = replace(last, until_s=now + last.counts_s)
        else:
            del self._refusals[kind]
        return None
