"""When packets between sites leave, and which are dropped."""

from __future__ import annotations

import pytest

from tests.multihost.links import OTHER, Count, Link, Shape, Wan, server_port

pytestmark = pytest.mark.unit

SHAPE = Shape(delay_s=0.5, bytes_per_s=1000.0, burst_bytes=100, queue_bytes=200)
TCP, UDP, ICMP = 6, 17, 1


def packet(to: int, source: int = 40000, target: int = 7102, protocol: int = TCP) -> bytes:
    """Sixty bytes to a site."""
    header = bytearray(20)
    header[0], header[9], header[18] = 0x45, protocol, to
    ports = source.to_bytes(2, "big") + target.to_bytes(2, "big")
    return bytes(header) + ports + bytes(36)


def wan() -> Wan:
    """Without waiting."""
    pairs = {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}
    shape = Shape(delay_s=0.5, bytes_per_s=1e6)
    return Wan(dict.fromkeys(pairs, shape), {1: "a", 2: "b", 3: "c"})


def test_a_burst_leaves_at_once_and_the_rest_at_the_rate() -> None:
    link = Link(SHAPE)
    assert link.offer(10.0, 100) == pytest.approx(10.5)
    assert link.offer(10.0, 50) == pytest.approx(10.55)
    assert link.offer(10.0, 50) == pytest.approx(10.6)
    # What the rate made meanwhile is there again, the burst at most.
    assert link.offer(20.0, 100) == pytest.approx(20.5)
    assert link.offer(20.0, 10) == pytest.approx(20.51)


def test_the_queue_takes_exactly_what_it_may() -> None:
    link = Link(SHAPE)
    assert link.offer(0.0, 100) is not None
    assert link.offer(0.0, 200) is not None
    assert link.offer(0.0, 1) is None
    assert link.offer(0.002, 1) is not None  # two bytes have left


def test_packets_go_where_they_are_addressed() -> None:
    net = wan()
    net.take(0.0, "a", packet(2))
    net.take(0.0, "a", packet(3))
    net.take(0.0, "b", packet(3))  # there is no way from b to c
    net.take(0.0, "a", packet(9))  # nobody is there
    net.take(0.0, "a", b"\x60" + bytes(50))  # IPv6
    assert net.next_at == pytest.approx(0.5)
    assert list(net.due(0.4)) == []
    assert [site for site, _ in net.due(0.6)] == ["b", "c"]
    assert net.next_at is None


def test_a_cut_loses_what_comes_and_what_is_on_its_way() -> None:
    net = wan()
    net.take(0.0, "a", packet(2))
    net.cut("b")
    net.take(0.1, "b", packet(1))
    net.take(0.1, "a", packet(3))
    assert [site for site, _ in net.due(1.0)] == ["c"]
    net.heal("b")
    net.take(2.0, "a", packet(2))
    assert [site for site, _ in net.due(3.0)] == ["b"]
    assert net.counts["a", "b"].num_cut == net.counts["b", "a"].num_cut == 1


def test_what_was_sent_before_a_cut_does_not_come_after_it() -> None:
    net = wan()
    net.take(0.0, "a", packet(2))
    net.cut("b")
    net.heal("b")
    assert list(net.due(9.0)) == []
    assert net.counts["a", "b"].num_cut == 1


def test_bytes_are_counted_by_the_servers_port() -> None:
    net = wan()
    net.take(0.0, "a", packet(2, 40000, 7102))
    net.take(0.0, "a", packet(2, 7102, 50000))
    net.take(0.0, "a", packet(2, 40000, 7103))
    list(net.due(9.0))
    assert net.counts["a", "b"].passed == {7102: Count(2, 120), 7103: Count(1, 60)}


@pytest.mark.parametrize(
    ("made", "port"),
    [
        (packet(2, 40000, 4222), 4222),
        (packet(2, 4222, 40000, UDP), 4222),
        (packet(2, 40000, 50000), OTHER),
        (packet(2, protocol=ICMP), OTHER),
        (packet(2)[:22], OTHER),
    ],
)
def test_the_lower_port_is_the_servers(made: bytes, port: int) -> None:
    assert server_port(made) == port
