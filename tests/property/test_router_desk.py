"""The router's whole state under any sequence of commands, reports, silences and losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.router.core.desk import Desk
from cogitate.router.core.fleet import EndpointChanged, Fleet
from cogitate.router.core.leases import Leases
from cogitate.router.core.types import (
    Change,
    Confirm,
    Constraints,
    Declare,
    Description,
    GangNeed,
    Granted,
    Load,
    Replace,
    State,
    Terms,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

pytestmark = pytest.mark.property

EXPIRY_S = 3.0
ENDPOINTS = st.sampled_from(["a", "b", "c"])
CONTEMPLATIONS = st.sampled_from(["c1", "c2", "c3"])
HOLDERS = st.sampled_from([1, 2])


class RouterMachine(RuleBasedStateMachine):
    """Drives a desk as endpoints and two aggregators would, in any order.

    `said` is what the last news made a lease holder believe of each endpoint.
    """

    @initialize()
    def begin(self) -> None:
        self.desk = Desk(Fleet(EXPIRY_S), Leases(2.0), max_leases=2, max_agents=12)
        self.now = 0.0
        self.streams: dict[str, int] = {}
        self.stream = 100
        self.grants: dict[str, Granted] = {}
        self.attempts: dict[str, int] = {}
        self.said: dict[str, Change] = {}

    def hear(self, changes: tuple[EndpointChanged, ...]) -> None:
        for changed in changes:
            self.said[changed.endpoint_id] = changed.change
            before = {c: set(x.bookings) for c, x in self.desk.leases.leases.items()}
            for news in self.desk.news((changed,)):
                for contemplation_id in news.contemplation_ids:
                    assert self.desk.leases.leases[contemplation_id].holder == news.holder
                    assert contemplation_id in before

    @rule(name=ENDPOINTS, blocks=st.sampled_from([0, 40]))
    def connect(self, name: str, blocks: int) -> None:
        self.stream += 1
        self.streams[name] = self.stream
        what = Description(
            name, "127.0.0.1:1", name, models=("mini",), total_blocks=blocks,
            block_size=16 if blocks else 0, max_sequences=8,
        )  # fmt: skip
        self.hear(self.desk.fleet.describe(self.stream, what, self.now))

    @rule(name=ENDPOINTS, running=st.integers(-1, 9), drains=st.integers(0, 5), old=st.booleans())
    def report(self, name: str, running: int, drains: int, old: bool) -> None:
        stream = self.streams.get(name, 0) - old
        load = Load(running=running, draining=drains == 0)
        self.hear(self.desk.fleet.report(stream, name, load, self.now))

    @rule(name=ENDPOINTS)
    def notice(self, name: str) -> None:
        self.hear(self.desk.fleet.drain(self.streams.get(name, 0), name, 5.0, self.now))

    @rule(name=ENDPOINTS, old=st.booleans())
    def disconnect(self, name: str, old: bool) -> None:
        self.hear(self.desk.fleet.close(self.streams.get(name, 0) - old, name))

    @rule(elapsed=st.sampled_from([0.01, 0.5, 1.0, 2.9, 3.0]), sweep=st.booleans())
    def wait(self, elapsed: float, sweep: bool) -> None:
        self.now += elapsed
        if sweep:
            self.hear(self.desk.fleet.expire(self.now))

    @rule(
        name=CONTEMPLATIONS,
        holder=HOLDERS,
        agents=st.integers(1, 13),
        newer=st.integers(-1, 1),
        epoch=st.integers(0, 2),
        domains=st.integers(0, 3),
        delivered=st.booleans(),
    )
    def declare(
        self, name: str, holder: int, agents: int, newer: int, epoch: int, domains: int,
        delivered: bool,
    ) -> None:  # fmt: skip
        before = self.booked()
        attempt = max(1, self.attempts.get(name, 1) + newer)
        need = GangNeed(name, "mini", tuple(range(agents)), tokens_per_agent=16)
        terms = Terms(Constraints(min_failure_domains=domains))
        command = Declare(name, attempt, (need,), epoch, terms)
        self.answered(self.desk.declare(command, holder, self.now), agents, before, delivered)

    @rule(
        name=CONTEMPLATIONS,
        holder=HOLDERS,
        agents=st.integers(1, 4),
        failed=st.lists(ENDPOINTS, max_size=2),
    )
    def replace(self, name: str, holder: int, agents: int, failed: list[str]) -> None:
        attempt = self.attempts.get(name, 0) + 1
        need = GangNeed(name, "mini", tuple(range(agents)), tokens_per_agent=16)
        failures = tuple((endpoint_id, "UNAVAILABLE") for endpoint_id in failed)
        answer = self.desk.replace(Replace(name, attempt, (need,), failures), holder, self.now)
        self.answered(answer, agents, None, True)
        if isinstance(answer, Granted):
            assert not {g.share.endpoint_id for g in answer.gangs} & set(failed)

    def answered(
        self, answer: object, agents: int, before: dict[str, int] | None, delivered: bool
    ) -> None:
        if not isinstance(answer, Granted):
            # Earlier attempts nobody confirmed may have been voided; nothing was added.
            assert before is None or all(n <= before.get(e, 0) for e, n in self.booked().items())
            return
        placed = [agent for g in answer.gangs for agent in g.share.agent_ids]
        assert sorted(placed) == list(range(agents))
        lease = self.desk.leases.leases[answer.contemplation_id]
        assert all(g.gang_id in lease.bookings for g in answer.gangs)
        for g in answer.gangs:
            entry = self.desk.fleet.entries[g.share.endpoint_id]
            assert self.desk.fleet.state(entry, self.now) is State.READY
        if delivered:
            self.attempts[answer.contemplation_id] = answer.attempt
            self.grants[answer.contemplation_id] = answer
            return
        self.desk.rollback(answer)
        after = self.desk.leases.leases.get(answer.contemplation_id)
        assert after is None or not any(g.gang_id in after.bookings for g in answer.gangs)

    @rule(name=CONTEMPLATIONS, holder=HOLDERS, kept=st.integers(0, 3), failed=ENDPOINTS)
    def confirm(self, name: str, holder: int, kept: int, failed: str) -> None:
        grant = self.grants.get(name)
        if grant is None:
            return
        gangs = tuple(
            (g.gang_id, g.share.endpoint_id, len(g.share.agent_ids)) for g in grant.gangs[:kept]
        )
        command = Confirm(name, grant.attempt, gangs, ((failed, "UNAVAILABLE"),))
        self.desk.confirm(command, holder, self.now)
        lease = self.desk.leases.leases.get(name)
        if lease is not None:
            assert lease.holder == holder
            confirmed = {g for g, b in lease.bookings.items() if b.attempt == grant.attempt}
            assert confirmed == {g for g, _, _ in gangs}

    @rule(name=CONTEMPLATIONS, holder=HOLDERS, ended=st.booleans())
    def release(self, name: str, holder: int, ended: bool) -> None:
        lease = self.desk.leases.leases.get(name)
        released = self.desk.release(name, holder, self.now if ended else None)
        assert released == (lease is not None and lease.holder == holder)

    @rule(holder=HOLDERS)
    def end(self, holder: int) -> None:
        self.desk.end(holder)
        assert all(x.holder != holder for x in self.desk.leases.leases.values())

    def booked(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for lease in self.desk.leases.leases.values():
            for booking in lease.bookings.values():
                totals[booking.endpoint_id] = totals.get(booking.endpoint_id, 0) + booking.agents
        return totals

    @invariant()
    def bookings_balance(self) -> None:
        self.desk.leases.check()
        booked = self.booked()
        for snapshot in self.desk.snapshot(self.now):
            assert snapshot.booked_agents == booked.get(snapshot.endpoint_id, 0)
            assert 0 <= snapshot.pending_agents <= snapshot.booked_agents
            assert 0 <= snapshot.pending_blocks <= snapshot.booked_blocks
            assert snapshot.free_sequences >= 0
            if snapshot.load is not None:
                told, held = snapshot.load.sequences, snapshot.booked_agents
                assert min(told, held) <= snapshot.sequences <= told + snapshot.pending_agents
            assert snapshot.free_blocks >= 0
        assert len(self.desk.leases.leases) <= 2

    @invariant()
    def the_board_is_the_snapshot(self) -> None:
        board = self.desk.board(self.now)
        there = {s.endpoint_id: s for s in board.snapshots}
        for snapshot in self.desk.snapshot(self.now):
            on_board = there.pop(snapshot.endpoint_id)
            # Silence is told by the hour on it; all else is written.
            assert replace(on_board, state=snapshot.state) == snapshot
        assert not there

    @invariant()
    def what_was_said_is_true(self) -> None:
        for name, change in self.said.items():
            assert (change is Change.GONE) == (name not in self.desk.fleet.entries)
        for name, entry in self.desk.fleet.entries.items():
            if self.said[name] is Change.EXPIRED:
                assert self.desk.fleet.state(entry, self.now) is State.STALE
            if self.said[name] is Change.DRAINING:
                assert entry.draining
            if self.now >= entry.reported_at_s + EXPIRY_S:
                assert self.desk.fleet.state(entry, self.now) is State.STALE
            assert entry.load is None or entry.load.running >= 0

    def teardown(self) -> None:
        for holder in (1, 2):
            self.desk.end(holder)
        assert self.desk.leases.leases == {}
        assert all(s.booked_agents == 0 for s in self.desk.snapshot(self.now))


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(max_examples=60, stateful_step_count=40)
