"""Which owners of contemplations live, as far as this process has heard. Pure but for its clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Peer:
    """Another owner, and since when it has been silent by this process's clock."""

    address: str
    since_s: float


class Peers:
    """An owner that dies is known by its silence only, ``hung_s`` long.

    Whoever does not hear its own beat, which comes back the same way, is deaf: silence of the
    others says nothing then.
    """

    def __init__(self, hung_s: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._hung_s, self._monotonic = hung_s, monotonic
        self._peers: dict[str, _Peer] = {}
        self._unknown: dict[str, float] = {}  # owners never heard of, and since when
        self._heard_s = monotonic()  # the own beat

    def heard_own(self) -> None:
        """The own beat came back."""
        now = self._monotonic()
        if now > self._listened_until():
            # It was deaf. What others said meanwhile may come only now.
            for peer in self._peers.values():
                if peer.address:
                    peer.since_s = max(peer.since_s, now)
        self._heard_s = now

    def heard(self, owner: str, address: str) -> None:
        """Another's beat; without an address it said goodbye."""
        self._peers[owner] = _Peer(address, self._monotonic() if address else -math.inf)

    def is_dead(self, owner: str) -> bool:
        """Whether it has been silent for too long; asked of any owner but this process."""
        until = self._listened_until()
        if owner in self._peers:
            return until - self._peers[owner].since_s > self._hung_s
        # What runs and who lives come separately: somebody new may be told of later.
        return until - self._unknown.setdefault(owner, until) > self._hung_s

    def any_lives(self) -> bool:
        """Whether there is another."""
        return any(not self.is_dead(owner) for owner in self._peers)

    def address_of(self, owner: str) -> str:
        """Where it said it is; empty if it did not."""
        return self._peers[owner].address if owner in self._peers else ""

    def _listened_until(self) -> float:
        return min(self._monotonic(), self._heard_s + self._hung_s / 2)
