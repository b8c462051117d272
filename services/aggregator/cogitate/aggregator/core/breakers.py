"""Circuit breakers: which endpoints this aggregator does not use just now, and why.

::

    closed --a stall, or `failures` failures in a row--> open --its time is over--> half-open
       ^                                                  ^ twice as long               |
       +------------ the probe wrote a token              +-------- the probe failed ---+

An agent that ends well clears the count; a token does not: an endpoint that fails in the middle of
each answer would seem well.

An endpoint stalls when a gang there writes nothing for an outlier of its own time between messages:
`factor` times what TCP's retransmission timer would be (Jacobson 1988: mean and mean deviation),
within a floor and a ceiling. Until it has been heard often enough the ceiling holds.

Failures that have one cause count once: a gang opened before the last failure adds nothing. A
half-open endpoint is offered to one question to the router at a time.

Invariants (``tests/property/test_aggregator_breakers.py``):

1. No endpoint is avoided and probed at once; nothing is avoided longer than the longest time.
2. A limit is never under the floor nor over the ceiling.
3. Fewer than `failures` failures never open; an agent that ends well clears whatever there was.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Messages of an endpoint before its own time between them is believed.
ENOUGH = 8
# How much a new time counts for the mean and for the deviation (RFC 6298).
GAIN, DEVIATION_GAIN = 1 / 8, 1 / 4
# Of each kind in one question; a router takes no more.
MAX_NAMED = 256


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """The knobs."""

    factor: float = 2.0
    floor_s: float = 1.0
    ceiling_s: float = 20.0
    failures: int = 3
    open_s: float = 2.0
    most_open_s: float = 30.0


@dataclass(slots=True)
class _Breaker:
    """Of one endpoint. Times are the caller's clock."""

    mean_s: float = 0.0
    deviation_s: float = 0.0
    heard: int = 0
    failures: int = 0  # in a row
    failed_at: float = float("-inf")
    stalled_at: float = float("-inf")
    heard_at: float = float("-inf")  # anything, of any gang
    is_open: bool = False
    open_until: float = 0.0
    open_s: float = 0.0  # how long it was opened for, the last time since an agent ended well
    probed_until: float = 0.0  # somebody tries it; void once this has passed


@dataclass(slots=True)
class Breakers:
    """Owns what is known of endpoints, soft. Bounded: the one heard of first is forgotten."""

    limits: BreakerLimits = field(default_factory=BreakerLimits)
    max_endpoints: int = 10_000
    _known: dict[str, _Breaker] = field(default_factory=dict)

    def limit_s(self, endpoint_id: str) -> float:
        """How long a gang there may be silent."""
        known, limits = self._known.get(endpoint_id), self.limits
        if known is None or known.heard < ENOUGH:
            return limits.ceiling_s
        outlier_s = limits.factor * (known.mean_s + 4 * known.deviation_s)
        return min(limits.ceiling_s, max(limits.floor_s, outlier_s))

    def heard_of(self, endpoint_id: str, now: float) -> None:
        """Something came from there, of whatever gang."""
        self._of(endpoint_id).heard_at = now

    def is_silent(self, endpoint_id: str) -> bool:
        """Whether a gang stalls there and nothing at all has come since.

        Then others there, that have shown no pace of their own yet, need not be waited for either.
        """
        known = self._known.get(endpoint_id)
        return known is not None and known.stalled_at > known.heard_at

    def wrote(self, endpoint_id: str, gap_s: float | None, opened_at: float) -> bool:
        """A gang there wrote, so long after its last message; None: that tells nothing.

        Closes the breaker, unless the gang is from before the failure. Says if it did.
        """
        known = self._of(endpoint_id)
        if gap_s is not None:
            known.heard += 1
            if known.heard == 1:
                known.mean_s, known.deviation_s = gap_s, gap_s / 2
            else:
                off_s = gap_s - known.mean_s
                known.deviation_s += DEVIATION_GAIN * (abs(off_s) - known.deviation_s)
                known.mean_s += GAIN * off_s
        was_open = known.is_open and opened_at >= known.failed_at
        known.is_open = known.is_open and not was_open
        return was_open

    def succeeded(self, endpoint_id: str, opened_at: float) -> None:
        """An agent ended well there."""
        known = self._of(endpoint_id)
        if opened_at >= known.failed_at:
            known.failures, known.open_s, known.is_open = 0, 0.0, False

    def failed(self, endpoint_id: str, opened_at: float, now: float, *, stalled: bool) -> bool:
        """A gang there was lost. Says if that opened the breaker."""
        known, limits = self._of(endpoint_id), self.limits
        known.stalled_at = now if stalled else known.stalled_at
        if opened_at < known.failed_at:
            return False  # the same incident
        known.failures += 1
        known.failed_at = now
        if not (stalled or known.is_open or known.failures >= limits.failures):
            return False
        known.is_open = True
        known.open_s = min(limits.most_open_s, 2 * known.open_s or limits.open_s)
        known.open_until, known.probed_until = now + known.open_s, 0.0
        return True

    def avoided(self, now: float) -> frozenset[str]:
        """The endpoints to leave out: open, or half-open while somebody tries them."""
        found = [
            endpoint_id
            for endpoint_id, known in self._known.items()
            if known.is_open and (now < known.open_until or now < known.probed_until)
        ]
        return frozenset(found[-MAX_NAMED:])

    def probe(self, now: float) -> frozenset[str]:
        """The half-open endpoints, which are the caller's to try.

        They are avoided by others until something is known, or their last time has passed again.
        """
        found = {
            endpoint_id: known
            for endpoint_id, known in self._known.items()
            if known.is_open and now >= max(known.open_until, known.probed_until)
        }
        named = list(found)[-MAX_NAMED:]
        for endpoint_id in named:
            found[endpoint_id].probed_until = now + found[endpoint_id].open_s
        return frozenset(named)

    def unused(self, endpoint_ids: frozenset[str]) -> None:
        """Nobody was placed at these after all: the next may try them."""
        for endpoint_id in endpoint_ids & self._known.keys():
            self._known[endpoint_id].probed_until = 0.0

    def num_open(self) -> int:
        """How many are not closed."""
        return sum(known.is_open for known in self._known.values())

    def _of(self, endpoint_id: str) -> _Breaker:
        known = self._known.get(endpoint_id)
        if known is None:
            if len(self._known) >= self.max_endpoints:
                del self._known[next(iter(self._known))]
            known = self._known[endpoint_id] = _Breaker()
        return known
