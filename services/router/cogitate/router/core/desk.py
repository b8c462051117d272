"""The router's front desk: fleet, leases and placement put together, still without I/O.

Admission is one path: project the fleet -> place every gang -> reserve -> answer; the shell sends
the answer and calls `rollback` if it cannot. All of it happens in one call that never awaits, so
the caller cannot have gone away in between.

Invariants, checked by the state machine in tests/property/test_router_desk.py:
1. A grant books exactly the agents it places; a denial books nothing.
2. Answers are given for the attempt that asked; an attempt older than the lease's is refused.
3. After `end` of every holder, and after `release` of every lease, nothing is booked.
4. The board holds what a snapshot says, whatever happened since the last placement.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cogitate.router.core.board import Board
from cogitate.router.core.fleet import EndpointChanged, Entry, Fleet
from cogitate.router.core.leases import Booking, Lease, Leases, News
from cogitate.router.core.placement import PlacementPolicy, place_on
from cogitate.router.core.policies import POLICIES
from cogitate.router.core.prefixes import Prefixes
from cogitate.router.core.types import (
    Confirm,
    Constraints,
    Declare,
    Denied,
    EndpointSnapshot,
    GangNeed,
    Granted,
    GrantedShare,
    Placement,
    Rejection,
    Replace,
    Share,
    Terms,
)

# One that was full may have room later, one that stalled may go on: they are avoided by the answer
# to this failure only.
_PASSING = frozenset({"REJECTED", "EVICTED", "STALLED"})


@dataclass(slots=True)
class Desk:
    """Owns the router's whole state. Belongs to one event loop; no method awaits."""

    fleet: Fleet
    leases: Leases
    policy: PlacementPolicy = field(default_factory=PlacementPolicy)
    max_leases: int = 10_000
    max_agents: int = 1024
    region: str = ""  # where gangs are asked for from that do not say it
    prefixes: Prefixes = field(default_factory=Prefixes)
    agents_placed: int = 0
    _board: Board = field(init=False)
    # When bookings stop to be pending by themselves, and where.
    _settles: list[tuple[float, str]] = field(default_factory=list)
    # When the prompts that were placed on an endpoint are expected to be computed, and when the
    # last of them was placed.
    _prompts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._board = Board(self.policy.model)
        self.fleet.touched.update(self.fleet.entries)

    def board(self, now: float) -> Board:
        """The fleet at `now` as arrays. O(endpoints that changed since the last call).

        Call it when endpoints report, so that a placement does not pay for all of them at once.
        """
        touched = self.fleet.touched | self.leases.touched
        while self._settles and self._settles[0][0] <= now:
            _, settled = heapq.heappop(self._settles)
            if self.leases.has_booked(settled):
                touched.add(settled)
        for endpoint_id in sorted(touched):
            entry = self.fleet.entries.get(endpoint_id)
            if entry is None:
                self._board.remove(endpoint_id)
                self._prompts.pop(endpoint_id, None)
            else:
                self._board.put(self._snapshot(endpoint_id, entry, now))
        self.fleet.touched.clear()
        self.leases.touched.clear()
        return self._board

    def snapshot(self, now: float) -> tuple[EndpointSnapshot, ...]:
        """Returns the fleet at `now`, by endpoint id."""
        return tuple(
            self._snapshot(endpoint_id, entry, now)
            for endpoint_id, entry in sorted(self.fleet.entries.items())
        )

    def _snapshot(self, endpoint_id: str, entry: Entry, now: float) -> EndpointSnapshot:
        booked = self.leases.booked(endpoint_id, entry.load_at_s, now)
        until, placed_s = self._prompts.get(endpoint_id, (0.0, 0.0))
        has_heard = entry.load_at_s is not None and entry.load_at_s > placed_s
        if has_heard and entry.load and not (entry.load.waiting or booked.pending_agents):
            until = 0.0  # it says that nobody waits there
        return EndpointSnapshot(
            description=entry.description,
            state=self.fleet.state(entry, now),
            load=entry.load,
            unknown_because=entry.unknown_because,
            reported_at_s=entry.reported_at_s,
            expires_at_s=entry.reported_at_s + self.fleet.expiry_s,
            incarnation=entry.incarnation,
            booked_agents=booked.agents,
            booked_blocks=booked.blocks,
            pending_agents=booked.pending_agents,
            pending_blocks=booked.pending_blocks,
            left_agents=booked.left_agents,
            left_blocks=booked.left_blocks,
            speed=entry.learner.speed if entry.learner else None,
            prior=entry.prior,
            speed_error=entry.learner.error if entry.learner else None,
            prompts_until_s=until,
        )

    def declare(self, command: Declare, holder: int, now: float) -> Granted | Denied:
        """Places and books a declaration, or denies it; denied, its terms are remembered.

        A newer attempt voids what older ones booked without a confirmation. A lease of another
        holder moves here unless its owner epoch is newer.
        """
        lease = self.leases.leases.get(command.contemplation_id)
        refusal = self._refusal(command, lease)
        if refusal is not None:
            return refusal
        if lease is not None:
            if lease.holder != holder and command.owner_epoch < lease.owner_epoch:
                return _denied(command, "NOT_OWNER", "a newer owner holds this contemplation")
            self.leases.void_unconfirmed(lease, command.attempt)
        elif len(self.leases.leases) >= self.max_leases and not self.leases.drop_empty():
            message = f"this router holds {self.max_leases} leases, the most it may"
            return _denied(command, "REJECTED", message, retryable=True)
        lease = self.leases.hold(command.contemplation_id, holder, command.owner_epoch)
        lease.terms, lease.declared = command.terms, True
        return self._place(command, lease, now)

    def may_run(self, command: Declare, now: float) -> bool:
        """Whether endpoints have what its gangs need and may be used, be there room or not."""
        board = self.board(now)
        needs = (
            dataclasses.replace(g, constraints=command.terms.constraints) for g in command.gangs
        )
        return all((board.group_answers(need) == 0).any() for need in needs)

    def replace(self, command: Replace, holder: int, now: float) -> Granted | Denied:
        """Finds new places for agents, away from every process that failed this contemplation."""
        lease = self.leases.leases.get(command.contemplation_id)
        refusal = self._refusal(command, lease)
        if refusal is not None:
            return refusal
        if lease is None:
            message = "there is no such lease here; declare or confirm it first"
            return _denied(command, "NOT_FOUND", message)
        self.leases.hold(command.contemplation_id, holder)
        self._fail(lease, command.failures)
        avoid = frozenset(endpoint_id for endpoint_id, _ in command.failures)
        return self._place(command, lease, now, avoid)

    def confirm(self, command: Confirm, holder: int, now: float) -> None:
        """Takes in what became of a placement. Makes the lease if this router does not know it.

        What such a lease may use is not known, except where it runs: replacements keep to those
        providers and regions. A confirmation that would exceed `max_leases` is not taken in:
        endpoints report that load.
        """
        known = command.contemplation_id in self.leases.leases
        if not known and len(self.leases.leases) >= self.max_leases:
            return
        lease = self.leases.hold(command.contemplation_id, holder)
        lease.attempt = max(lease.attempt, command.attempt)
        if not lease.declared:
            lease.terms = _guessed(lease.terms, command)
        gangs = {gang_id: (endpoint_id, agents) for gang_id, endpoint_id, agents in command.gangs}
        self.leases.confirm(lease, command.attempt, gangs, now)
        here = {endpoint_id for _, endpoint_id, _ in command.gangs}
        for endpoint_id in sorted(here):
            heapq.heappush(self._settles, (now + self.leases.settle_s, endpoint_id))
        self._fail(lease, [f for f in command.failures if f[0] not in here])

    def release(self, contemplation_id: str, holder: int, ended_s: float | None = None) -> bool:
        """Ends a lease; says whether this holder had it. `ended_s`: its agents have, by then."""
        return self.leases.release(contemplation_id, holder, ended_s)

    def rollback(self, granted: Granted) -> None:
        """Takes back a grant that could not be delivered."""
        lease = self.leases.leases.get(granted.contemplation_id)
        if lease is not None:
            gang_ids = [gang.gang_id for gang in granted.gangs]
            self.leases.rollback(lease, granted.attempt, gang_ids)

    def end(self, holder: int) -> tuple[str, ...]:
        """Ends all leases of a holder."""
        return self.leases.end(holder)

    def news(self, changes: Iterable[EndpointChanged]) -> tuple[News, ...]:
        """Says whom changes concern, in order."""
        return tuple(news for change in changes for news in self.leases.news(change))

    def _refusal(self, command: Declare | Replace, lease: Lease | None) -> Denied | None:
        agents = sum(len(gang.agent_ids) for gang in command.gangs)
        if agents > self.max_agents:
            message = f"{agents} agents exceed the limit of {self.max_agents} in one request"
            return _denied(command, "INVALID_REQUEST", message)
        if lease is not None and command.attempt < lease.attempt:
            message = f"attempt {command.attempt} is older than attempt {lease.attempt}"
            return _denied(command, "INVALID_REQUEST", message)
        if isinstance(command, Declare) and command.terms.policy not in ("", *POLICIES):
            message = f"unknown policy; there is: {', '.join(sorted(POLICIES))}"
            return _denied(command, "INVALID_REQUEST", message)
        return None

    def _fail(self, lease: Lease, failures: Iterable[tuple[str, str]]) -> None:
        for endpoint_id, reason in failures:
            self.leases.leave(lease, endpoint_id)
            entry = self.fleet.entries.get(endpoint_id)
            if entry is not None and reason not in _PASSING:
                lease.failed[endpoint_id] = entry.incarnation

    def _place(
        self,
        command: Declare | Replace,
        lease: Lease,
        now: float,
        avoid: frozenset[str] = frozenset(),
    ) -> Granted | Denied:
        lease.attempt, terms = command.attempt, lease.terms
        policy = terms.policy or self.policy.name
        board = self.board(now)
        failed = self._still_failed(lease) | avoid
        placements: list[tuple[GangNeed, Placement]] = []
        until: dict[str, float] = {}
        for gang in command.gangs:
            need = dataclasses.replace(
                gang,
                constraints=terms.constraints,
                max_cost_micro_usd=terms.max_cost_micro_usd,
                failed=failed,
                avoided=command.avoided,
                probed=command.probed,
                cached_at=self._cached_at(gang.prefix_digest),
                region=gang.region or self.region,
                turn=self.agents_placed,
                asked_at_s=now,
            )
            placement = place_on(need, board, now, policy)
            if not placement.shares:
                return self._denial(command, need, placement)
            placements.append((need, placement))
            for share in placement.shares:
                there = board.snapshots[board.rows[share.endpoint_id]]
                # The gang's prompt is behind those that the endpoint has to compute already.
                until[share.endpoint_id] = max(now, there.prompts_until_s) + share.prefill_s
                if len(command.gangs) > 1:
                    # The next gang sees it; what is on the board is taken back at the next look.
                    board.put(_with_share(there, share, until[share.endpoint_id]))
                    self.leases.touched.add(share.endpoint_id)
        self._prompts.update((where, (until_s, now)) for where, until_s in until.items())
        return self._reserve(lease, placements, policy, now)

    def _reserve(
        self,
        lease: Lease,
        placements: Sequence[tuple[GangNeed, Placement]],
        policy: str,
        now: float,
    ) -> Granted:
        gangs: list[GrantedShare] = []
        for need, placement in placements:
            for share in placement.shares:
                lease.gangs_made += 1
                gang_id = f"{lease.attempt}.{lease.gangs_made}"
                booking = Booking(
                    gang_id=gang_id,
                    attempt=lease.attempt,
                    endpoint_id=share.endpoint_id,
                    agents=len(share.agent_ids),
                    prefix_blocks=share.prefix_blocks,
                    blocks_per_agent=share.blocks_per_agent,
                    made_at_s=now,
                )
                self.leases.reserve(lease, booking)
                heapq.heappush(self._settles, (now + self.leases.settle_s, share.endpoint_id))
                entry = self.fleet.entries[share.endpoint_id]
                self.prefixes.note(need.prefix_digest, share.endpoint_id, entry.incarnation)
                self.agents_placed += len(share.agent_ids)
                gangs.append(GrantedShare(gang_id, share, need, entry.description))
        return Granted(
            contemplation_id=lease.contemplation_id,
            attempt=lease.attempt,
            gangs=tuple(gangs),
            rejected=_unused(placements),
            policy=policy,
        )

    def _cached_at(self, digest: str) -> frozenset[str]:
        """The endpoints that were given a prefix and are still the same process."""
        known, entries = self.prefixes.where(digest), self.fleet.entries
        return frozenset(
            e for e, i in known.items() if e in entries and entries[e].incarnation == i
        )

    def _still_failed(self, lease: Lease) -> frozenset[str]:
        """The endpoints that failed the lease and are still the same process."""
        failed, entries = lease.failed, self.fleet.entries
        return frozenset(
            e for e, i in failed.items() if e in entries and entries[e].incarnation == i
        )

    def _denial(self, command: Declare | Replace, need: GangNeed, placement: Placement) -> Denied:
        reason, retryable = placement.denial_reason, placement.retryable
        message = placement.denial
        if reason == "UNKNOWN_MODEL" and need.model in self.fleet.models_seen:
            # It is known, and whoever served it may come back.
            reason, retryable = "NO_ENDPOINT", True
            message = f"no endpoint serves the model {need.model} just now"
        denied = _denied(command, reason, message, retryable, placement.rejected)
        return dataclasses.replace(denied, is_full=placement.is_full)


def _denied(
    command: Declare | Replace,
    reason: str,
    message: str,
    retryable: bool = False,
    rejected: tuple[Rejection, ...] = (),
) -> Denied:
    return Denied(command.contemplation_id, command.attempt, reason, message, retryable, rejected)


def _guessed(terms: Terms, command: Confirm) -> Terms:
    """Returns terms that allow no more than was used, hence no more than was allowed."""
    constraints = Constraints(
        providers=terms.constraints.providers | command.providers,
        regions=terms.constraints.regions | command.regions,
    )
    return dataclasses.replace(terms, constraints=constraints)


def _with_share(snapshot: EndpointSnapshot, share: Share, until_s: float) -> EndpointSnapshot:
    """Returns the snapshot as it will be once the share is booked."""
    agents = len(share.agent_ids)
    blocks = share.prefix_blocks + agents * share.blocks_per_agent
    return dataclasses.replace(
        snapshot,
        booked_agents=snapshot.booked_agents + agents,
        booked_blocks=snapshot.booked_blocks + blocks,
        pending_agents=snapshot.pending_agents + agents,
        pending_blocks=snapshot.pending_blocks + blocks,
        prompts_until_s=until_s,
    )


def _unused(placements: Sequence[tuple[GangNeed, Placement]]) -> tuple[Rejection, ...]:
    """Returns the endpoints no gang uses, each with the first gang's reason."""
    used = {share.endpoint_id for _, p in placements for share in p.shares}
    first: dict[str, Rejection] = {}
    for _, placement in placements:
        for rejection in placement.rejected:
            first.setdefault(rejection.endpoint_id, rejection)
    return tuple(r for e, r in sorted(first.items()) if e not in used)
