"""Who booked what: leases of contemplations, held by the streams of aggregators.

A booking is made before the grant is sent (reserve), and taken back if the grant cannot be
delivered (rollback). It is pending until the endpoint's reports contain it: from the first load
after the confirmation, or `settle_s` after it was made, whichever is earlier. Pending bookings are
added to the reported load; all bookings bound the KV memory that is left. What a report contains
and is released is taken off it until the next: a queue that waited for that would run at its pace.

Invariants, checked by `check` and the state machine in tests/property/test_router_desk.py:
1. Booked agents of an endpoint = the sum over the bookings of all leases.
2. A lease has one holder; commands of another holder move it (confirm, declare) or are ignored
   (release), so that late clean-up cannot hit a retry.
3. When a holder ends, nothing of its leases is left.
4. No gang id is used twice in a lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cogitate.router.core.fleet import EndpointChanged
from cogitate.router.core.types import Change, Terms


@dataclass(frozen=True, slots=True)
class Booking:
    """Room taken on one endpoint by one gang, under one attempt."""

    gang_id: str
    attempt: int
    endpoint_id: str
    agents: int
    prefix_blocks: int
    blocks_per_agent: int
    made_at_s: float
    confirmed_at_s: float | None = None

    @property
    def blocks(self) -> int:
        """KV blocks it may grow to."""
        return self.prefix_blocks + self.agents * self.blocks_per_agent


@dataclass(slots=True)
class Lease:
    """All bookings of one contemplation."""

    contemplation_id: str
    holder: int
    owner_epoch: int = 0
    attempt: int = 0
    gangs_made: int = 0
    terms: Terms = field(default_factory=Terms)
    declared: bool = False  # else the terms are only guessed from what was confirmed
    bookings: dict[str, Booking] = field(default_factory=dict)
    # Endpoint -> the incarnation that failed here; a newer process is another chance.
    failed: dict[str, int] = field(default_factory=dict)
    # Endpoints whose process went away under this lease, for the news that they are back.
    lost: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class News:
    """An endpoint's change for one holder and the contemplations it concerns, in order."""

    holder: int
    contemplation_ids: tuple[str, ...]
    changed: EndpointChanged


@dataclass(frozen=True, slots=True)
class Booked:
    """What is booked on one endpoint; `pending_*` is the part no report contains yet."""

    agents: int = 0
    blocks: int = 0
    pending_agents: int = 0
    pending_blocks: int = 0
    left_agents: int = 0  # released since the report that contains them
    left_blocks: int = 0


@dataclass(slots=True)
class Leases:
    """Owns the bookings. Not safe across tasks that await in between; no method awaits."""

    settle_s: float
    leases: dict[str, Lease] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)  # changed since who empties it looked
    _by_endpoint: dict[str, dict[tuple[str, str], Booking]] = field(default_factory=dict)
    # Bookings that were released, and when, until a load is reported.
    _left: dict[str, list[tuple[float, Booking]]] = field(default_factory=dict)

    def hold(self, contemplation_id: str, holder: int, owner_epoch: int | None = None) -> Lease:
        """Returns the lease, made or moved to this holder. An unknown epoch leaves it as it is."""
        lease = self.leases.get(contemplation_id)
        if lease is None:
            lease = self.leases[contemplation_id] = Lease(contemplation_id, holder)
        lease.holder = holder
        if owner_epoch is not None:
            lease.owner_epoch = owner_epoch
        return lease

    def reserve(self, lease: Lease, booking: Booking) -> None:
        """Adds a booking, or replaces the one of the same gang."""
        self._drop(lease, (booking.gang_id,))
        lease.bookings[booking.gang_id] = booking
        key = (lease.contemplation_id, booking.gang_id)
        self.touched.add(booking.endpoint_id)
        self._by_endpoint.setdefault(booking.endpoint_id, {})[key] = booking

    def rollback(self, lease: Lease, attempt: int, gang_ids: Iterable[str]) -> None:
        """Takes undelivered bookings of one attempt back; a lease without any other ends."""
        mine = [g for g in gang_ids if g in lease.bookings]
        self._drop(lease, (g for g in mine if lease.bookings[g].attempt == attempt))
        if not lease.bookings:
            self.leases.pop(lease.contemplation_id, None)

    def void_unconfirmed(self, lease: Lease, attempt: int) -> None:
        """Drops what earlier attempts booked and nobody confirmed: its answer was not taken."""
        void = [
            b.gang_id
            for b in lease.bookings.values()
            if b.attempt < attempt and b.confirmed_at_s is None
        ]
        self._drop(lease, void)

    def confirm(
        self, lease: Lease, attempt: int, gangs: Mapping[str, tuple[str, int]], now: float
    ) -> None:
        """Makes the bookings of `attempt` what `gangs` says: gang id -> (endpoint, agents).

        A gang another attempt booked may be among them. Sizes of known bookings are kept; unknown
        ones take no KV blocks, the endpoint's own report has them.
        """
        ended = [b.gang_id for b in lease.bookings.values() if b.attempt == attempt]
        self._drop(lease, (g for g in ended if g not in gangs))
        for gang_id, (endpoint_id, agents) in sorted(gangs.items()):
            known = lease.bookings.get(gang_id)
            same = known is not None and known.endpoint_id == endpoint_id
            first = known.confirmed_at_s if known is not None and same else None
            booking = Booking(
                gang_id=gang_id,
                attempt=known.attempt if known is not None else attempt,
                endpoint_id=endpoint_id,
                agents=agents,
                prefix_blocks=known.prefix_blocks if known is not None and same else 0,
                blocks_per_agent=known.blocks_per_agent if known is not None and same else 0,
                made_at_s=known.made_at_s if known is not None else now,
                confirmed_at_s=now if first is None else first,
            )
            self.reserve(lease, booking)

    def leave(self, lease: Lease, endpoint_id: str) -> None:
        """Drops the lease's bookings on one endpoint."""
        gone = [b.gang_id for b in lease.bookings.values() if b.endpoint_id == endpoint_id]
        self._drop(lease, gone)

    def release(self, contemplation_id: str, holder: int, ended_s: float | None = None) -> bool:
        """Ends a lease; says whether this holder had it. `ended_s`: its agents have, by then."""
        lease = self.leases.get(contemplation_id)
        if lease is None or lease.holder != holder:
            return False
        if ended_s is not None:
            for booking in lease.bookings.values():
                self._left.setdefault(booking.endpoint_id, []).append((ended_s, booking))
        self._drop(lease, list(lease.bookings))
        del self.leases[contemplation_id]
        return True

    def drop_empty(self) -> bool:
        """Ends the oldest lease without bookings, such as one never granted; says if there was."""
        for contemplation_id, lease in self.leases.items():
            if not lease.bookings:
                del self.leases[contemplation_id]
                return True
        return False

    def end(self, holder: int) -> tuple[str, ...]:
        """Ends all leases of a holder whose stream ended; returns their contemplations."""
        mine = sorted(c for c, lease in self.leases.items() if lease.holder == holder)
        for contemplation_id in mine:
            self.release(contemplation_id, holder)
        return tuple(mine)

    def booked(self, endpoint_id: str, load_at_s: float | None, now: float) -> Booked:
        """Adds up an endpoint's bookings; `load_at_s` is when its known load was reported, and
        never earlier than it was at the last call.
        """
        agents = blocks = pending_agents = pending_blocks = 0
        for booking in self._by_endpoint.get(endpoint_id, {}).values():
            agents += booking.agents
            blocks += booking.blocks
            if self._is_pending(booking, load_at_s, now):
                pending_agents += booking.agents
                pending_blocks += booking.blocks
        left = self._still_told(endpoint_id, load_at_s)
        return Booked(
            agents, blocks, pending_agents, pending_blocks,
            sum(booking.agents for booking in left), sum(booking.blocks for booking in left),
        )  # fmt: skip

    def _still_told(self, endpoint_id: str, load_at_s: float | None) -> list[Booking]:
        """What was released since the endpoint's load was reported, and is in it."""
        since = self._left.pop(endpoint_id, None)
        if since is None or load_at_s is None:
            return []
        since = [left for left in since if left[0] > load_at_s]
        if since:
            self._left[endpoint_id] = since
        return [b for _, b in since if not self._is_pending(b, load_at_s, load_at_s)]

    def has_booked(self, endpoint_id: str) -> bool:
        """Whether anything is booked there."""
        return endpoint_id in self._by_endpoint

    def news(self, changed: EndpointChanged) -> tuple[News, ...]:
        """Says whom a change concerns, by holder. A process that went away takes its bookings."""
        concerned: dict[int, list[str]] = {}
        if changed.change is Change.GONE:
            self._left.pop(changed.endpoint_id, None)
        here = {c for c, _ in self._by_endpoint.get(changed.endpoint_id, {})}
        for contemplation_id, lease in sorted(self.leases.items()):
            if contemplation_id in here or changed.endpoint_id in lease.lost:
                concerned.setdefault(lease.holder, []).append(contemplation_id)
            if changed.change is Change.BACK:
                lease.lost.discard(changed.endpoint_id)
            if changed.change is Change.GONE and contemplation_id in here:
                lease.lost.add(changed.endpoint_id)
                self.leave(lease, changed.endpoint_id)
        return tuple(News(holder, tuple(ids), changed) for holder, ids in concerned.items())

    def check(self) -> None:
        """Raises AssertionError if the index by endpoint and the leases disagree. O(bookings)."""
        from_leases = {
            (b.endpoint_id, c, g): b
            for c, lease in self.leases.items()
            for g, b in lease.bookings.items()
        }
        from_index = {
            (e, c, g): b for e, here in self._by_endpoint.items() for (c, g), b in here.items()
        }
        if from_leases != from_index:
            raise AssertionError("bookings and their index disagree")

    def _is_pending(self, booking: Booking, load_at_s: float | None, now: float) -> bool:
        seen = booking.confirmed_at_s is not None and (
            load_at_s is not None and load_at_s > booking.confirmed_at_s
        )
        return not seen and now < booking.made_at_s + self.settle_s

    def _drop(self, lease: Lease, gang_ids: Iterable[str]) -> None:
        for gang_id in list(gang_ids):
            booking = lease.bookings.pop(gang_id, None)
            if booking is None:
                continue
            here = self._by_endpoint[booking.endpoint_id]
            self.touched.add(booking.endpoint_id)
            del here[(lease.contemplation_id, gang_id)]
            if not here:
                del self._by_endpoint[booking.endpoint_id]
