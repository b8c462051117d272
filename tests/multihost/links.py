"""When a packet between two sites leaves, or that it is dropped. Pure: no socket, no clock.

Times are seconds of any one clock that never goes back. Invariants (test_multihost_links):

1. Packets of one link leave in the order in which they came, none before its delay is over.
2. In any span of time a link lets out no more than its burst and what its rate makes of the span.
3. What waits for a link is never more than its queue; one more packet is dropped.
4. Nothing leaves a site or reaches it while it is cut, nor what was on its way when the cut came.
5. Every packet is counted once: as passed, as dropped for room, or as cut.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

HEADER_BYTES: Final = 20  # of IPv4 without options
_PORTED: Final = (6, 17)  # TCP, UDP
# Servers listen below this; what the kernel gives to clients is above it.
FIRST_CLIENT_PORT: Final = 32768
OTHER: Final = 0

Pair = tuple[str, str]


@dataclass(frozen=True)
class Shape:
    """One direction of the way between two sites."""

    delay_s: float
    bytes_per_s: float
    burst_bytes: int = 16 * 1024
    queue_bytes: int = 256 * 1024  # of what waits, beyond the burst


@dataclass
class Link:
    """A token bucket and a delay behind it. Owned by one ``Wan``."""

    shape: Shape
    _free_at: float = -math.inf  # when all that was taken would have been sent at the plain rate

    def offer(self, now: float, size: int) -> float | None:
        """Returns when a packet arrives at the other side, or None if there is no room for it."""
        shape = self.shape
        idle_since = now - shape.burst_bytes / shape.bytes_per_s
        begins = max(self._free_at, idle_since)
        if (begins - idle_since) * shape.bytes_per_s + size > shape.burst_bytes + shape.queue_bytes:
            return None
        self._free_at = begins + size / shape.bytes_per_s
        return max(now, self._free_at) + shape.delay_s


@dataclass
class Count:
    """What went one way at one port."""

    packets: int = 0
    size: int = 0  # bytes, headers of IP included


@dataclass
class Counts:
    """Of one pair of sites."""

    passed: dict[int, Count] = field(default_factory=dict)  # by the server's port
    num_full: int = 0
    num_cut: int = 0


class Wan:
    """The ways between all sites. A packet is an IPv4 packet as it comes from a TUN device."""

    def __init__(self, shapes: Mapping[Pair, Shape], sites: Mapping[int, str]) -> None:
        """``sites`` names each site by the third number of its addresses."""
        self._links = {pair: Link(shape) for pair, shape in shapes.items()}
        self._sites = dict(sites)
        self._cut: set[str] = set()
        self._number = itertools.count()
        self._waiting: list[tuple[float, int, Pair, bytes]] = []
        self.counts: dict[Pair, Counts] = {pair: Counts() for pair in shapes}

    @property
    def next_at(self) -> float | None:
        """When the next packet leaves."""
        return self._waiting[0][0] if self._waiting else None

    def cut(self, site: str) -> None:
        """Cuts a site off. What is on its way is lost, and nobody is told."""
        self._cut.add(site)

    def heal(self, site: str) -> None:
        """Joins it again."""
        self._sweep()
        self._cut.discard(site)

    def take(self, now: float, source: str, packet: bytes) -> None:
        """Takes what a site sends; what is not addressed to another site is ignored."""
        pair = (source, self._sites.get(_third(packet), ""))
        link = self._links.get(pair)
        if link is None:
            return
        counts = self.counts[pair]
        if self._cut.intersection(pair):
            counts.num_cut += 1
            return
        at = link.offer(now, len(packet))
        if at is None:
            counts.num_full += 1
            return
        heapq.heappush(self._waiting, (at, next(self._number), pair, packet))

    def due(self, now: float) -> Iterator[tuple[str, bytes]]:
        """Yields what has arrived by now, and where."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, pair, packet = heapq.heappop(self._waiting)
            counts = self.counts[pair]
            if self._cut.intersection(pair):
                counts.num_cut += 1
                continue
            count = counts.passed.setdefault(server_port(packet), Count())
            count.packets += 1
            count.size += len(packet)
            yield pair[1], packet

    def _sweep(self) -> None:
        """Drops what was on its way through a cut."""
        lost = [one for one in self._waiting if self._cut.intersection(one[2])]
        for _, _, pair, _ in lost:
            self.counts[pair].num_cut += 1
        self._waiting = [one for one in self._waiting if not self._cut.intersection(one[2])]
        heapq.heapify(self._waiting)


def _third(packet: bytes) -> int:
    """The third number of the address a packet goes to; -1 if it is no IPv4 packet."""
    return packet[18] if len(packet) >= HEADER_BYTES and packet[0] >> 4 == 4 else -1


def server_port(packet: bytes) -> int:
    """The lower port of a TCP or UDP packet, if it can be a server's; else ``OTHER``."""
    begin = 4 * (packet[0] & 15)
    if packet[9] not in _PORTED or len(packet) < begin + 4:
        return OTHER
    one = int.from_bytes(packet[begin : begin + 2], "big")
    two = int.from_bytes(packet[begin + 2 : begin + 4], "big")
    port = min(one, two)
    return port if port < FIRST_CLIENT_PORT else OTHER
