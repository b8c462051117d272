"""The router's queue: who is served when, and that nobody is forgotten."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from cogitate.router.core.admission import MAX_SERVED, Admission
from cogitate.router.core.desk import Desk
from cogitate.router.core.fleet import Fleet
from cogitate.router.core.leases import Leases
from cogitate.router.core.queue import Queue, Waiting, line_of
from cogitate.router.core.types import (
    Constraints,
    Declare,
    Denied,
    Description,
    GangNeed,
    Granted,
    Load,
    Queued,
    Terms,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

pytestmark = pytest.mark.property

TENANTS = st.sampled_from(["t1", "t2", "t3"])
PLACES = 8


def declaration(
    name: str, agents: int = 1, tenant: str = "t1", wait_s: float = 10.0, **fields: object
) -> Declare:
    """One gang of `agents`, of a cost of 10 positions each."""
    terms = fields.pop("terms", Terms())
    need = GangNeed(name, "mini", tuple(range(agents)), tokens_per_agent=10)
    return Declare(
        name, 1, (need,), terms=terms, tenant=tenant, max_wait_s=wait_s, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def waiting(name: str, agents: int = 1, tenant: str = "t1", at: float = 0.0, **fields) -> Waiting:
    return Waiting(declaration(name, agents, tenant, **fields), 1, at)


def admission(places: int = PLACES, max_count: int = 100, quantum: float = 10.0) -> Admission:
    """A desk of one endpoint with so many places."""
    desk = Desk(Fleet(1e9), Leases(2.0))
    what = Description("a", "127.0.0.1:1", models=("mini",), max_sequences=places)
    desk.fleet.describe(1, what, 0.0)
    desk.fleet.report(1, "a", Load(), 0.0)
    return Admission(desk, Queue(max_count, quantum))


class QueueMachine(RuleBasedStateMachine):
    """Declarations of three tenants in front of one endpoint, by two aggregators."""

    @initialize(max_count=st.integers(1, 6))
    def begin(self, max_count: int) -> None:
        self.admission = admission(max_count=max_count)
        self.now = 0.0
        self.count = 0
        self.inside: dict[str, tuple[int, Declare]] = {}
        self.running: dict[str, int] = {}
        self.told: Counter[str] = Counter()

    @rule(
        agents=st.integers(1, PLACES), tenant=TENANTS, priority=st.integers(0, 1),
        holder=st.integers(1, 2), wait_s=st.sampled_from([0.0, 0.5, 5.0]),
        region=st.sampled_from(["", "elsewhere"]),
    )  # fmt: skip
    def declare(
        self, agents: int, tenant: str, priority: int, holder: int, wait_s: float, region: str
    ) -> None:
        self.count += 1
        terms = Terms(Constraints(regions=frozenset({region}) if region else frozenset()))
        command = declaration(
            f"c{self.count}", agents, tenant, wait_s, priority=priority, terms=terms
        )
        answer = self.admission.declare(command, holder, self.now)
        if isinstance(answer, Queued):
            assert wait_s
            self.inside[command.contemplation_id] = (holder, command)
        elif isinstance(answer, Granted):
            self.running[command.contemplation_id] = holder
        self.drop_evicted()

    def drop_evicted(self) -> None:
        for item in self.admission.gave_way:
            self.inside.pop(item.command.contemplation_id, None)

    @rule(elapsed=st.sampled_from([0.0, 0.1, 1.0]))
    def serve(self, elapsed: float) -> None:
        self.now += elapsed
        more = True
        order: list[Declare] = []
        while more:
            answers, more = self.admission.serve(self.now)
            assert len(answers) <= MAX_SERVED or not more
            for item, answer in answers:
                name = item.command.contemplation_id
                self.told[name] += 1
                self.inside.pop(name, None)
                if isinstance(answer, Granted):
                    self.running[name] = item.holder
                    order.append(item.command)
                else:
                    assert answer.waited_s is not None
        for i, first in enumerate(order):
            for later in order[i + 1 :]:
                same = (line_of(first), first.priority, first.tenant)
                if same == (line_of(later), later.priority, later.tenant):
                    assert int(first.contemplation_id[1:]) < int(later.contemplation_id[1:])

    @rule(which=st.integers(0, 5))
    def release(self, which: int) -> None:
        names = sorted(self.running) + sorted(self.inside)
        if names:
            name = names[which % len(names)]
            holder = self.running.pop(name, None) or self.inside.pop(name)[0]
            self.admission.release(name, holder, self.now)

    @rule(holder=st.integers(1, 2))
    def end(self, holder: int) -> None:
        self.admission.end(holder, self.now)
        self.running = {c: h for c, h in self.running.items() if h != holder}
        self.inside = {c: i for c, i in self.inside.items() if i[0] != holder}

    @invariant()
    def nobody_is_forgotten_or_told_twice(self) -> None:
        queue = self.admission.queue
        assert {c for c in self.inside if queue.get(c)} == set(self.inside)
        assert len(queue) == len(self.inside) <= queue.max_count
        assert all(count == 1 for count in self.told.values())
        assert queue.next_end_s() == min(
            (queue.end_s(queue.get(c)) for c in self.inside), default=math.inf  # type: ignore[union-attr]
        )  # fmt: skip

    @invariant()
    def costs_add_up(self) -> None:
        for line in self.admission.queue._lines.values():
            for band in line.bands.values():
                for flow in band.flows.values():
                    assert flow.waiting
                    assert flow.cost == sum(item.cost for item in flow.waiting)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40)


@given(sizes=st.lists(st.integers(1, 16), min_size=2, max_size=5), quantum=st.integers(1, 400))
def test_tenants_that_always_wait_get_the_same(sizes: list[int], quantum: int) -> None:
    """To the largest declaration and a quantum: the bound of Shreedhar and Varghese."""
    queue = Queue(10_000, float(quantum))
    for i in range(40):
        for tenant, agents in enumerate(sizes):
            queue.add(waiting(f"{tenant}.{i}", agents, f"t{tenant}"), 0.0)
    served: Counter[str] = Counter()
    while min(len(f.waiting) for b in _bands(queue) for f in b.flows.values()) > 1:
        head = next(iter(queue.heads()))
        assert next(iter(queue.heads())) is head  # to look changes nothing
        served[head.command.tenant] += int(head.cost)
        queue.take(head, 0.0)
        bound = 10 * max(sizes) + quantum
        assert max(served.values()) - min(served[f"t{t}"] for t in range(len(sizes))) <= 2 * bound


def _bands(queue: Queue):
    return [band for line in queue._lines.values() for band in line.bands.values()]


def test_a_large_gang_is_not_starved_by_small_ones() -> None:
    one = admission(quantum=100.0)
    assert isinstance(one.declare(declaration("busy", 4), 1, 0.0), Granted)
    assert isinstance(one.declare(declaration("large", 8, "t2"), 1, 0.1), Queued)
    # There is room for it, but it was not its turn.
    small = one.declare(declaration("small", 1, "t3"), 1, 0.2)
    assert small == Queued("small", 1, 1, None)
    assert one.serve(0.3) == ([], False)
    one.release("busy", 1, 0.4)
    answers, _ = one.serve(0.4)
    assert [item.command.contemplation_id for item, _ in answers] == ["large"]


def test_higher_priorities_go_first_and_are_not_queued_behind_lower_ones() -> None:
    one = admission()
    one.declare(declaration("busy", 4), 1, 0.0)
    one.declare(declaration("large", 8), 1, 0.1)
    assert isinstance(one.declare(declaration("urgent", 2, priority=5), 1, 0.2), Granted)
    one.declare(declaration("urgent too", 8, priority=5), 1, 0.3)
    one.release("busy", 1, 0.4)
    one.release("urgent", 1, 0.4)
    answers, _ = one.serve(0.5)
    assert [item.command.contemplation_id for item, _ in answers] == ["urgent too"]


def test_what_has_run_already_does_not_queue() -> None:
    one = admission()
    one.declare(declaration("busy", 4), 1, 0.0)
    one.declare(declaration("large", 8), 1, 0.1)
    assert isinstance(one.declare(declaration("moves", 2, wait_s=0.0), 1, 0.2), Granted)
    assert isinstance(one.declare(declaration("no room", 3, wait_s=0.0), 1, 0.3), Denied)


def test_what_can_never_run_is_told_at_once_and_does_not_wait() -> None:
    one = admission()
    one.declare(declaration("busy", 8), 1, 0.0)
    one.declare(declaration("waits", 8), 1, 0.1)
    need = GangNeed("blind", "mini", (0,), capabilities=frozenset({"VISION"}))
    answer = one.declare(Declare("blind", 1, (need,), max_wait_s=10.0), 1, 0.2)
    assert isinstance(answer, Denied)
    assert not answer.retryable
    assert "VISION" in answer.message


def test_a_wait_that_is_too_long_is_refused_at_once_with_its_length() -> None:
    one = admission(places=1)
    one.declare(declaration("c0", 1), 1, 0.0)
    one.declare(declaration("c1", 1), 1, 0.0)
    one.declare(declaration("c2", 1), 1, 0.0)
    for i in (1, 2):  # one every two seconds
        one.release(f"c{i - 1}", 1, 2.0 * i)
        one.serve(2.0 * i)
        one.declare(declaration(f"c{i + 2}", 1), 1, 2.0 * i)
    assert len(one.queue) == 2
    refused = one.declare(declaration("late", 1, wait_s=3.0), 1, 4.0)
    assert isinstance(refused, Denied)
    assert (refused.reason, refused.retryable, refused.waited_s) == ("REJECTED", True, 0.0)
    # 20 positions are ahead of its 10, and one of 10 leaves every two seconds.
    assert refused.retry_after_s == pytest.approx(6.0, rel=0.25)
    assert isinstance(one.declare(declaration("patient", 1, wait_s=8.0), 1, 4.0), Queued)


def test_what_would_not_be_done_by_its_deadline_is_refused_or_leaves() -> None:
    one = admission(places=1)
    one.declare(declaration("c0"), 1, 0.0)
    one.declare(declaration("c1"), 1, 0.0)
    one.release("c0", 1, 4.0)  # such run for four seconds
    one.serve(4.0)
    refused = one.declare(declaration("short", remaining_s=3.0), 1, 4.0)
    assert isinstance(refused, Denied)
    assert (refused.reason, refused.waited_s) == ("REJECTED", 0.0)
    assert isinstance(one.declare(declaration("long", remaining_s=5.5), 1, 4.0), Denied)
    assert isinstance(one.declare(declaration("longer", remaining_s=8.0), 1, 4.0), Queued)
    assert one.queue.next_end_s() == 8.0
    one.desk.fleet.report(1, "a", Load(running=1), 6.0)  # as booked
    assert one.serve(7.9) == ([], False)
    [(item, answer)], _ = one.serve(8.0)
    assert item.command.contemplation_id == "longer"
    assert isinstance(answer, Denied)
    assert answer.waited_s == 4.0


def test_another_tenant_waits_only_for_its_turn() -> None:
    queue = Queue(1000, 10.0)
    for i in range(50):
        queue.add(waiting(f"hog{i}", 1, "hog"), 0.0)
    for i in range(20):
        queue.take(next(iter(queue.heads())), float(i + 1))
    mine, theirs = waiting("mine", 1, "me", 20.0), waiting("theirs", 1, "hog", 20.0)
    assert queue.expected_s(theirs, 20.0) == pytest.approx(31.0, rel=0.05)
    assert queue.expected_s(mine, 20.0) == pytest.approx(2.0, rel=0.05)


def test_who_has_most_in_a_full_queue_gives_way() -> None:
    one = admission(places=1, max_count=3)
    one.declare(declaration("busy", 1), 1, 0.0)
    for i in range(3):
        one.declare(declaration(f"hog{i}", 1, "hog"), 1, 0.1 * i)
    too_many = one.declare(declaration("hog3", 1, "hog"), 1, 0.4)
    assert isinstance(too_many, Denied)
    assert too_many.reason == "REJECTED"
    assert isinstance(one.declare(declaration("mine", 1, "me"), 1, 0.5), Queued)
    [(item, answer)], _ = one.serve(0.5)
    assert item.command.contemplation_id == "hog2"  # the newest of theirs
    assert isinstance(answer, Denied)
    assert (answer.reason, answer.retryable) == ("EVICTED", True)


def test_who_gave_way_and_left_is_not_told() -> None:
    one = admission(max_count=1)
    one.declare(declaration("busy", 8), 1, 0.0)
    one.declare(declaration("large", 8, "hog"), 1, 0.1)
    one.declare(declaration("small", 1, "me"), 2, 0.2)
    assert one.waiting_of(1) == ["large"]
    assert not one.release("large", 2, 0.3)  # it is another's
    assert one.release("large", 1, 0.3)
    assert one.serve(0.4) == ([], False)
    # Asked again, it has one answer.
    one.declare(declaration("large", 8, "hog"), 1, 0.5)
    one.end(1, 0.6)
    assert one.waiting_of(1) == []
    assert one.waiting_of(2) == ["small"]


def test_who_waited_as_long_as_it_may_is_told_why() -> None:
    one = admission()
    one.declare(declaration("busy", 8), 1, 0.0)
    one.declare(declaration("head", 8, wait_s=1.0), 1, 0.0)
    one.declare(declaration("next", 8, wait_s=1.0), 1, 0.0)
    assert one.queue.next_end_s() == 1.0
    assert one.serve(0.99) == ([], False)
    answers, _ = one.serve(1.0)
    told = {item.command.contemplation_id: answer for item, answer in answers}
    head, after = told["head"], told["next"]
    assert isinstance(head, Denied)
    assert isinstance(after, Denied)
    assert "room for 0 of 8 agents" in head.message
    assert head.reason == after.reason == "EVICTED"
    assert head.waited_s == after.waited_s == 1.0
    assert len(one.queue) == 0


def test_without_a_queue_a_denial_is_as_it_was() -> None:
    one = admission(max_count=0)
    one.declare(declaration("busy", 8), 1, 0.0)
    denied = one.declare(declaration("late", 1), 1, 0.0)
    assert isinstance(denied, Denied)
    assert (denied.reason, denied.retryable, denied.waited_s) == ("NO_ENDPOINT", True, None)


def test_lines_do_not_wait_for_each_other() -> None:
    one = admission()
    elsewhere = Description("b", "127.0.0.1:2", region="far", models=("mini",), max_sequences=8)
    one.desk.fleet.describe(2, elsewhere, 0.0)
    one.desk.fleet.report(2, "b", Load(), 0.0)
    far = Terms(Constraints(regions=frozenset({"far"})))
    one.declare(declaration("busy", 8, terms=far), 1, 0.0)
    assert isinstance(one.declare(declaration("waits", 8, terms=far), 1, 0.0), Queued)
    assert isinstance(one.declare(declaration("here", 8), 1, 0.0), Granted)
