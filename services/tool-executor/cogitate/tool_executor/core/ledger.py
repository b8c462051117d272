"""Remembers calls, so that each runs once however often it is asked for.

    begin ──► Start ──► running ──finish──► finished ──► (begin: Replay) … forgotten by age or room
                           │  ▲
                    abandon│  └── begin again: Join
                           ▼
                        unknown

Invariants (tests/property/test_tool_ledger.py):

1. Between `Start` and `finish` or `abandon` no other `Start` is given for the key (test_machine).
2. A key begun with another fingerprint is refused and changes nothing (test_machine).
3. Finished results never exceed their count and byte limits; running calls are not forgotten
   (test_machine).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from cogitate.kit.errors import AlreadyExists, NotOwner
from cogitate.tool_executor.core.types import Execution

# What an entry costs beside its text: keys, digests, objects.
ENTRY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Key:
    """What makes a call the same call."""

    tenant: str
    contemplation_id: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Start:
    """Run it: nobody has."""


@dataclass(frozen=True, slots=True)
class Join:
    """It is running: wait for it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """It ran: this is its result, marked as replayed."""

    execution: Execution


Decision = Start | Join | Replay


@dataclass(slots=True)
class _Finished:
    fingerprint: bytes
    execution: Execution
    num_bytes: int
    expires: float


class Ledger:
    """The calls that run and the results of those that did. Owned by one task; `now` in seconds."""

    def __init__(self, *, max_results: int, max_bytes: int, ttl_s: float) -> None:
        self._max_results = max_results
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._running: dict[Key, bytes] = {}
        # Least recently used first.
        self._finished: OrderedDict[Key, _Finished] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_running(self) -> int:
        """Calls begun and neither finished nor abandoned."""
        return len(self._running)

    @property
    def num_results(self) -> int:
        """Results held."""
        return len(self._finished)

    @property
    def num_bytes(self) -> int:
        """Bytes the results are counted as."""
        return self._num_bytes

    def begin(self, key: Key, fingerprint: bytes, now: float) -> Decision:
        """Says what to do with a call. Raises AlreadyExists if the id is another call's."""
        finished = self._finished.get(key)
        if finished is not None and finished.expires <= now:
            self._forget(key)
            finished = None
        known = finished.fingerprint if finished is not None else self._running.get(key)
        if known is not None and known != fingerprint:
            raise AlreadyExists(
                "the call id was used for a different call in this contemplation",
                metadata={"call_id": key.call_id},
                field="call.call_id",
            )
        if finished is not None:
            self._finished.move_to_end(key)
            return Replay(replace(finished.execution, replayed=True))
        if known is not None:
            return Join()
        self._running[key] = fingerprint
        return Start()

    def finish(self, key: Key, execution: Execution, now: float) -> None:
        """Keeps the result of a running call, at the cost of the least recently used ones."""
        fingerprint = self._running.pop(key)
        outcome = execution.outcome
        num_bytes = ENTRY_BYTES * (1 + len(outcome.images))
        num_bytes += len(outcome.text.encode()) + len(outcome.proved.encode())
        self._finished[key] = _Finished(fingerprint, execution, num_bytes, now + self._ttl_s)
        self._num_bytes += num_bytes
        while len(self._finished) > self._max_results or self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._finished)))

    def abandon(self, key: Key) -> None:
        """Forgets a running call that has no result; it may be begun anew."""
        del self._running[key]

    def expire(self, now: float) -> None:
        """Forgets the results whose time is over. O(results)."""
        for key in [key for key, entry in self._finished.items() if entry.expires <= now]:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        self._num_bytes -= self._finished.pop(key).num_bytes


class EpochFence:
    """Refuses owners of a contemplation that a newer one has replaced; remembers so many."""

    def __init__(self, max_contemplations: int) -> None:
        self._max_contemplations = max_contemplations
        self._newest: OrderedDict[tuple[str, str], int] = OrderedDict()

    def check(self, tenant: str, contemplation_id: str, epoch: int) -> None:
        """Remembers the newest epoch. Raises NotOwner if this one is older."""
        key = (tenant, contemplation_id)
        newest = self._newest.get(key, 0)
        if epoch < newest:
            raise NotOwner(
                f"the contemplation has a newer owner, of epoch {newest}",
                metadata={"owner_epoch": str(newest)},
                field="owner_epoch",
            )
        if epoch > 0:
            self._newest[key] = epoch
            self._newest.move_to_end(key)
            if len(self._newest) > self._max_contemplations:
                self._newest.popitem(last=False)
