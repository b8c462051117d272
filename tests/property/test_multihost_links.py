"""The invariants of the network between sites, whatever is sent and cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.multihost.links import Link, Shape, Wan

pytestmark = pytest.mark.property

SHAPES = st.builds(
    Shape,
    delay_s=st.floats(0, 0.2),
    bytes_per_s=st.floats(100, 1e6),
    burst_bytes=st.integers(1500, 20_000),
    queue_bytes=st.integers(0, 20_000),
)
OFFERS = st.lists(st.tuples(st.floats(0, 0.1), st.integers(20, 1500)), max_size=60)
SITES = {1: "a", 2: "b", 3: "c"}
STEPS = st.lists(
    st.tuples(st.floats(0, 0.1), st.sampled_from(["send", "cut", "heal"]), st.sampled_from("abc"),
              st.sampled_from([1, 2, 3])),
    max_size=60,
)  # fmt: skip


@given(SHAPES, OFFERS)
def test_a_link_keeps_order_delay_rate_and_queue(
    shape: Shape, offers: list[tuple[float, int]]
) -> None:
    link, now = Link(shape), 0.0
    passed: list[tuple[float, float, int]] = []
    for wait_s, size in offers:
        now += wait_s
        at = link.offer(now, size)
        if at is not None:
            assert at >= now + shape.delay_s
            passed.append((now, at - shape.delay_s, size))
        waiting = [s for _, leaves, s in passed if leaves > now + 1e-6]
        assert sum(waiting[1:]) <= shape.queue_bytes + 1e-3  # the first is on its way
    leaves = [leave for _, leave, _ in passed]
    assert leaves == sorted(leaves)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            size = sum(s for _, _, s in passed[first : last + 1])
            allowed = shape.burst_bytes + shape.bytes_per_s * (leaves[last] - leaves[first])
            assert size <= allowed + 1e-3


@given(SHAPES, STEPS)
def test_every_packet_is_counted_once_and_none_passes_a_cut(
    shape: Shape, steps: list[tuple[float, str, str, int]]
) -> None:
    pairs = [(a, b) for a in "abc" for b in "abc" if a != b]
    wan, now, num_sent, num_came = Wan(dict.fromkeys(pairs, shape), SITES), 0.0, 0, 0
    cut: set[str] = set()
    cut_at = dict.fromkeys("abc", -1.0)
    sent_at: list[float] = []
    for wait_s, what, site, to in steps:
        now += wait_s
        for reached, packet in wan.due(now):
            number, source = int.from_bytes(packet[20:22], "big"), chr(packet[22])
            num_came += 1
            assert not cut & {reached, source}
            assert sent_at[number] >= max(cut_at[reached], cut_at[source])
        if what == "cut":
            wan.cut(site)
            cut.add(site)
            cut_at[site] = now
        elif what == "heal":
            wan.heal(site)
            cut.discard(site)
        elif SITES[to] != site:
            header = bytearray(20)
            header[0], header[18] = 0x45, to
            wan.take(now, site, bytes(header) + len(sent_at).to_bytes(2, "big") + site.encode())
            sent_at.append(now)
            num_sent += 1
    num_came += len(list(wan.due(1e9)))
    counts = wan.counts.values()
    assert sum(c.packets for one in counts for c in one.passed.values()) == num_came
    assert num_sent == num_came + sum(one.num_full + one.num_cut for one in counts)
