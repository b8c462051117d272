"""What a journal is: every input and event of a contemplation in it before anybody sees them.

Several aggregators may share one. Each unfinished contemplation in it has an owner and an epoch;
a claim raises the epoch, and from then on everything an older owner appends is refused (fenced).
Implementations pass ``tests/contract/test_journal.py``: ``sqlite_journal``, ``nats_journal``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cogitate.kit.errors import NoEndpoint


class JournalError(NoEndpoint):
    """The journal cannot be read or written just now. Nothing of a failed write is in it.

    Whoever asks for what is in it is told to ask again, or asks another aggregator.
    """

    reason = "UNAVAILABLE"


class Known(JournalError):
    """Another contemplation has this id, or this request id of its tenant."""


@dataclass(frozen=True, slots=True)
class Record:
    """A contemplation as journalled. All ``bytes`` are serialized messages.

    ``acceptance`` is empty in journals of versions that could not take over.
    """

    id: str
    tenant: str
    request_id: str
    spec: bytes  # ContemplationSpec
    acceptance: bytes  # JournalAcceptance
    accept_ns: int
    accepted: bytes  # the first event
    epoch: int = 1
    owner: str = ""
    last_event: int = 1
    end_ns: int | None = None
    ending: bytes | None = None


# A contemplation and the epoch in which somebody owned it.
Ownership = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One input and the events it emitted, written together or not at all.

    ``sequence`` counts a contemplation's inputs from 1; ``events`` are numbers and messages.
    """

    id: str
    epoch: int
    sequence: int
    entry: bytes  # JournalInput; empty for an ending that nothing caused
    events: Sequence[tuple[int, bytes]] = ()
    end_ns: int | None = None  # set if the last event is an ending

    @property
    def ownership(self) -> Ownership:
        """Under which it is written."""
        return self.id, self.epoch


class Journal(Protocol):
    """Methods that write raise JournalError with nothing written; all may take long."""

    @property
    def shared(self) -> bool:
        """Whether another aggregator lives that could take over: only what is written holds."""
        ...

    async def open(self, address: str) -> None:
        """Makes this process an owner that others reach at ``address``. Raises OSError."""
        ...

    async def close(self) -> None:
        """Gives up the ownership: what is unfinished may be claimed at once."""
        ...

    # -- writing ------------------------------------------------------------------------------

    async def accept(self, record: Record) -> None:
        """Journals a contemplation of this owner with its first event. Raises Known."""
        ...

    async def append(self, rows: Sequence[Row]) -> frozenset[Ownership]:
        """Journals rows in order; returns whose rows were refused: there is a newer owner."""
        ...

    async def delete(self, ids: Iterable[str]) -> None:
        """Removes contemplations with all that is known of them."""
        ...

    # -- owning -------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Says that this owner lives; without it others take its contemplations."""
        ...

    async def abandoned(self) -> list[Ownership]:
        """Unfinished contemplations whose owner is dead, and the epoch in which it died."""
        ...

    async def claim(self, id_: str, epoch: int) -> Record | None:
        """Makes this process the owner if the epoch is still that one; its record, else None."""
        ...

    async def address_of(self, owner: str) -> str:
        """Where an owner is reached; empty if it is not known any more."""
        ...

    # -- reading ------------------------------------------------------------------------------

    async def get(self, id_: str) -> Record | None:
        """One contemplation, or None."""
        ...

    async def find_request(self, tenant: str, request_id: str) -> Record | None:
        """The contemplation of a client's request id, or None."""
        ...

    async def page(self, tenant: str, limit: int, before: tuple[int, str]) -> list[Record]:
        """A tenant's contemplations before a time and id, newest first."""
        ...

    async def events(self, id_: str, after: int, limit: int) -> list[bytes]:
        """Up to ``limit`` events with numbers above ``after``, in order."""
        ...

    async def entries(self, id_: str) -> list[bytes]:
        """A contemplation's inputs (JournalInput), in order."""
        ...

    async def expired(self, before_ns: int) -> list[str]:
        """Contemplations that ended before a time."""
        ...
