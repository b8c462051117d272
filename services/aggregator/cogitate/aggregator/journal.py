"""The journal: every event on disk before it is sent.

One SQLite file in WAL mode; what has gathered while the last commit ran goes into the next one
(group commit). Survives the death of the process; of power too with ``fsync``. One process has the
file at a time: what it finds unfinished has no owner any more.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_SCHEMA = """
CREATE TABLE IF NOT EXISTS contemplations (
  id TEXT PRIMARY KEY, tenant TEXT NOT NULL, request_id TEXT NOT NULL, spec BLOB NOT NULL,
  accept_ns INTEGER NOT NULL, end_ns INTEGER, last_event INTEGER NOT NULL, ending BLOB);
CREATE INDEX IF NOT EXISTS by_tenant ON contemplations (tenant, accept_ns DESC);
CREATE UNIQUE INDEX IF NOT EXISTS by_request ON contemplations (tenant, request_id)
  WHERE request_id != '';
CREATE TABLE IF NOT EXISTS events (
  id TEXT NOT NULL, number INTEGER NOT NULL, event BLOB NOT NULL,
  PRIMARY KEY (id, number)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A contemplation as journalled. ``spec`` and ``ending`` are serialized messages."""

    id: str
    tenant: str
    request_id: str
    spec: bytes
    accept_ns: int
    end_ns: int | None
    last_event: int
    ending: bytes | None
    accepted: bytes  # the first event


# A contemplation's id, its event's number and bytes, and for an ending its time, else None.
Row = tuple[str, int, bytes, int | None]

_COLUMNS = "id, tenant, request_id, spec, accept_ns, end_ns, last_event, ending"


class Journal:
    """Blocking; call it off the event loop. Safe to use from several threads."""

    def __init__(self, path: str, *, fsync: bool = False) -> None:
        """Opens the file, or memory for an empty path. Raises OSError if it cannot be had."""
        self._owner = _own(path) if path else None
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=1.0)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self.close()
            raise OSError(f"the journal {path} cannot be used: {error}") from None

    def accept(self, record: Record) -> None:
        """Journals a contemplation with its first event. Raises sqlite3.IntegrityError if known."""
        with self._lock, self._db:
            self._db.execute(
                f"INSERT INTO contemplations ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)",
                (
                    record.id, record.tenant, record.request_id, record.spec, record.accept_ns,
                    None, 1, None,
                ),
            )  # fmt: skip
            self._db.execute("INSERT INTO events VALUES (?,?,?)", (record.id, 1, record.accepted))

    def append(self, rows: Sequence[Row]) -> None:
        """Journals events in one commit, all or none; an ending marks its contemplation."""
        with self._lock, self._db:
            self._db.executemany(
                "INSERT INTO events VALUES (?,?,?)", [(id_, n, raw) for id_, n, raw, _ in rows]
            )
            self._db.executemany(
                "UPDATE contemplations SET last_event=? WHERE id=?",
                [(number, id_) for id_, number, _, _ in rows],
            )
            self._db.executemany(
                "UPDATE contemplations SET end_ns=?, ending=? WHERE id=?",
                [(end_ns, raw, id_) for id_, _, raw, end_ns in rows if end_ns is not None],
            )

    def get(self, id_: str) -> Record | None:
        """One contemplation, or None."""
        return next(iter(self._records("WHERE id=?", (id_,))), None)

    def find_request(self, tenant: str, request_id: str) -> Record | None:
        """The contemplation of a client's request id, or None."""
        where = "WHERE tenant=? AND request_id=?"
        return next(iter(self._records(where, (tenant, request_id))), None)

    def page(self, tenant: str, limit: int, before: tuple[int, str]) -> list[Record]:
        """A tenant's contemplations before a time and id, newest first."""
        where = (
            "WHERE tenant=? AND (accept_ns, id) < (?,?) ORDER BY accept_ns DESC, id DESC LIMIT ?"
        )
        return self._records(where, (tenant, *before, limit))

    def unfinished(self) -> list[Record]:
        """Contemplations without an ending."""
        return self._records("WHERE ending IS NULL", ())

    def events(self, id_: str, after: int) -> list[bytes]:
        """Events with numbers above ``after``, in order."""
        query = "SELECT event FROM events WHERE id=? AND number>? ORDER BY number"
        with self._lock:
            return [row[0] for row in self._db.execute(query, (id_, after))]

    def delete(self, ids: Iterable[str]) -> None:
        """Removes contemplations and their events."""
        rows = [(id_,) for id_ in ids]
        with self._lock, self._db:
            self._db.executemany("DELETE FROM events WHERE id=?", rows)
            self._db.executemany("DELETE FROM contemplations WHERE id=?", rows)

    def expired(self, before_ns: int) -> list[str]:
        """Contemplations that ended before a time."""
        query = "SELECT id FROM contemplations WHERE end_ns IS NOT NULL AND end_ns<?"
        with self._lock:
            return [row[0] for row in self._db.execute(query, (before_ns,))]

    def close(self) -> None:
        """Closes the file and lets another process have it."""
        with self._lock:
            self._db.close()
        if self._owner is not None:
            self._owner.close()

    def _records(self, where: str, arguments: tuple[object, ...]) -> list[Record]:
        first = "(SELECT event FROM events e WHERE e.id=contemplations.id AND e.number=1)"
        query = f"SELECT {_COLUMNS}, {first} FROM contemplations {where}"
        with self._lock:
            return [Record(*row) for row in self._db.execute(query, arguments)]


def _own(path: str) -> TextIO:
    """Takes the file for this process; the lock ends with it, however it ends."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    owner = Path(f"{path}.lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner.close()
        raise OSError(f"another aggregator uses the journal {path}") from None
    return owner
