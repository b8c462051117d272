"""The journal in one SQLite file (WAL), which the aggregators of one machine may share.

Survives the death of the process; of power too with ``fsync``. An owner holds a lock on a file of
its own beside the journal: the kernel lets go of it when the process dies, however it dies, so
others see it at once and no clock is compared. An owner that hangs is found by its beat.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from cogitate.aggregator.journal import JournalError, Known, Ownership, Record, Row

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
CREATE TABLE IF NOT EXISTS inputs (
  id TEXT NOT NULL, sequence INTEGER NOT NULL, entry BLOB NOT NULL,
  PRIMARY KEY (id, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (
  id TEXT PRIMARY KEY, address TEXT NOT NULL, beat INTEGER NOT NULL);
"""
# Columns that came later.
_ADDED = {
    "acceptance": "BLOB NOT NULL DEFAULT x''",
    "epoch": "INTEGER NOT NULL DEFAULT 0",
    "owner": "TEXT NOT NULL DEFAULT ''",
}
_UNFINISHED = "CREATE INDEX IF NOT EXISTS unfinished ON contemplations (owner) WHERE ending IS NULL"
# How often owners without a lock file, and beats, are looked at: that takes a query.
THOROUGH_S = 1.0
BUSY_TIMEOUT_S = 1.0

T = TypeVar("T")


class SqliteJournal:
    """Safe to use from several tasks; an empty path keeps everything in memory.

    ``hung_s`` is how long an owner that lives may be silent.
    """

    def __init__(self, path: str, *, fsync: bool = False, hung_s: float = 5.0) -> None:
        """Opens the file. Raises OSError if it cannot be had."""
        self._path, self._hung_s = path, hung_s
        self.owner_id = uuid.uuid4().hex
        self.shared = False
        self._lock_file: TextIO | None = None
        self._beats: dict[str, tuple[int, float]] = {}  # as last seen to change
        self._looked = -THOROUGH_S
        self._mutex = threading.Lock()
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(
            path or ":memory:", check_same_thread=False, timeout=BUSY_TIMEOUT_S
        )
        try:
            self._to_wal()
            self._db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            self._make_tables()
        except sqlite3.Error as error:
            self._db.close()
            raise OSError(f"the journal {path} cannot be used: {error}") from None

    def _to_wal(self) -> None:
        """SQLite does not wait for whoever makes the same change, so it is tried again."""
        ends = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > ends:
                    raise
                time.sleep(0.01)

    def _make_tables(self) -> None:
        """Alone with the file: another aggregator may start at the same moment."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            there = {row[1] for row in self._db.execute("PRAGMA table_info(contemplations)")}
            for name, kind in _ADDED.items():
                if name not in there:
                    self._db.execute(f"ALTER TABLE contemplations ADD COLUMN {name} {kind}")
            self._db.execute(_UNFINISHED)

    async def _do(self, work: Callable[[], T]) -> T:
        """Runs in a thread, alone with the connection, in one transaction."""

        def alone() -> T:
            with self._mutex:
                try:
                    with self._db:
                        return work()
                except sqlite3.Error as error:
                    raise JournalError(f"the journal failed: {error}", retry_after_s=1.0) from error

        return await asyncio.to_thread(alone)

    async def open(self, address: str) -> None:
        def register() -> None:
            self._db.execute("INSERT INTO owners VALUES (?,?,0)", (self.owner_id, address))

        if self._path:
            self._lock_file = await asyncio.to_thread(_locked, self._lock_path(self.owner_id))
        try:
            await self._do(register)
        except JournalError as error:
            raise OSError(str(error)) from None

    async def close(self) -> None:
        def last() -> None:
            self._db.execute("DELETE FROM owners WHERE id=?", (self.owner_id,))

        try:
            await self._do(last)
        except JournalError:
            pass  # whoever claims its contemplations removes the rest of it
        with self._mutex:
            self._db.close()
        if self._lock_file is not None:
            self._lock_path(self.owner_id).unlink(missing_ok=True)
            self._lock_file.close()

    # -- writing ------------------------------------------------------------------------------

    async def accept(self, record: Record) -> None:
        names = "id, tenant, request_id, spec, acceptance, accept_ns, epoch, owner, last_event"

        def write() -> None:
            try:
                self._db.execute(
                    f"INSERT INTO contemplations ({names}) VALUES (?,?,?,?,?,?,?,?,?)",
                    (
                        record.id, record.tenant, record.request_id, record.spec,
                        record.acceptance, record.accept_ns, record.epoch, self.owner_id, 1,
                    ),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise Known(record.id) from error
            self._db.execute("INSERT INTO events VALUES (?,1,?)", (record.id, record.accepted))

        await self._do(write)

    async def append(self, rows: Sequence[Row]) -> frozenset[Ownership]:
        return await self._do(lambda: self._append(rows))

    def _append(self, rows: Sequence[Row]) -> frozenset[Ownership]:
        numbers = dict.fromkeys((row.ownership for row in rows), 0)
        numbers |= {row.ownership: row.events[-1][0] for row in rows if row.events}
        fenced = set()
        for (id_, epoch), number in numbers.items():
            # Takes the write lock, and checks who owns it under the lock.
            changed = self._db.execute(
                "UPDATE contemplations SET last_event=max(last_event, ?) "
                "WHERE id=? AND epoch=? AND owner=? AND ending IS NULL",
                (number, id_, epoch, self.owner_id),
            ).rowcount
            if not changed:
                fenced.add((id_, epoch))
        mine = [row for row in rows if row.ownership not in fenced]
        self._db.executemany(
            "INSERT INTO inputs VALUES (?,?,?)",
            [(row.id, row.sequence, row.entry) for row in mine if row.entry],
        )
        self._db.executemany(
            "INSERT INTO events VALUES (?,?,?)",
            [(row.id, number, event) for row in mine for number, event in row.events],
        )
        self._db.executemany(
            "UPDATE contemplations SET end_ns=?, ending=? WHERE id=?",
            [(row.end_ns, row.events[-1][1], row.id) for row in mine if row.end_ns is not None],
        )
        return frozenset(fenced)

    async def delete(self, ids: Iterable[str]) -> None:
        rows = [(id_,) for id_ in ids]

        def write() -> None:
            for table in ("inputs", "events", "contemplations"):
                self._db.executemany(f"DELETE FROM {table} WHERE id=?", rows)

        if rows:
            await self._do(write)

    # -- owning -------------------------------------------------------------------------------

    async def beat(self) -> None:
        def write() -> None:
            self._db.execute("UPDATE owners SET beat=beat+1 WHERE id=?", (self.owner_id,))

        if self._path:
            await self._do(write)

    async def abandoned(self) -> list[Ownership]:
        """Looks at lock files, which costs less than a thread, and at the tables now and then."""
        if not self._path:
            return []
        others = self._others()
        dead = {owner for owner in others if _is_free(self._lock_path(owner))}
        self.shared = bool(others - dead)
        now = time.monotonic()
        if not dead and now - self._looked < THOROUGH_S:
            return []
        self._looked = now
        return await asyncio.to_thread(self._abandoned, dead, now)

    def _abandoned(self, dead: set[str], now: float) -> list[Ownership]:
        """What the dead, those without a file and those that hang have left."""
        with self._mutex:
            try:
                owners = [row[0] for row in self._db.execute(
                    "SELECT DISTINCT owner FROM contemplations WHERE ending IS NULL"
                )]  # fmt: skip
                beats = dict(self._db.execute("SELECT id, beat FROM owners"))
                # Looked for after the query: an owner has its file before it has anything else.
                unowned = set(owners) - self._others() - {self.owner_id}
                found: list[Ownership] = [
                    row
                    for owner in dead | unowned | self._hung(beats, now)
                    for row in self._db.execute(
                        "SELECT id, epoch FROM contemplations WHERE ending IS NULL AND owner=?",
                        (owner,),
                    )
                ]
                if not found:
                    self._bury(dead)
            except sqlite3.Error as error:
                raise JournalError(f"the journal failed: {error}", retry_after_s=1.0) from error
        return found

    def _hung(self, beats: dict[str, int], now: float) -> set[str]:
        """Owners whose beat has not changed for too long, by this process's own clock."""
        self._beats = {
            owner: (beat, self._beats[owner][1])
            if owner in self._beats and self._beats[owner][0] == beat
            else (beat, now)
            for owner, beat in beats.items()
            if owner != self.owner_id
        }
        return {o for o, (_, since) in self._beats.items() if now - since > self._hung_s}

    def _bury(self, dead: Iterable[str]) -> None:
        """Removes what is left of owners that have nothing any more."""
        with self._db:
            self._db.executemany("DELETE FROM owners WHERE id=?", [(owner,) for owner in dead])
        for owner in dead:
            self._lock_path(owner).unlink(missing_ok=True)

    async def claim(self, id_: str, epoch: int) -> Record | None:
        def write() -> Record | None:
            changed = self._db.execute(
                "UPDATE contemplations SET owner=?, epoch=epoch+1 "
                "WHERE id=? AND epoch=? AND ending IS NULL",
                (self.owner_id, id_, epoch),
            ).rowcount
            return self._records("WHERE id=?", (id_,))[0] if changed else None

        return await self._do(write)

    async def address_of(self, owner: str) -> str:
        def read() -> str:
            found = self._db.execute("SELECT address FROM owners WHERE id=?", (owner,)).fetchone()
            return found[0] if found else ""

        return await self._do(read)

    # -- reading ------------------------------------------------------------------------------

    async def get(self, id_: str) -> Record | None:
        return next(iter(await self._do(lambda: self._records("WHERE id=?", (id_,)))), None)

    async def find_request(self, tenant: str, request_id: str) -> Record | None:
        where = "WHERE tenant=? AND request_id=?"
        found = await self._do(lambda: self._records(where, (tenant, request_id)))
        return next(iter(found), None)

    async def page(self, tenant: str, limit: int, before: tuple[int, str]) -> list[Record]:
        where = (
            "WHERE tenant=? AND (accept_ns, id) < (?,?) ORDER BY accept_ns DESC, id DESC LIMIT ?"
        )
        return await self._do(lambda: self._records(where, (tenant, *before, limit)))

    async def events(self, id_: str, after: int, limit: int) -> list[bytes]:
        query = "SELECT event FROM events WHERE id=? AND number>? ORDER BY number LIMIT ?"
        return await self._do(lambda: self._column(query, (id_, after, limit)))

    async def entries(self, id_: str) -> list[bytes]:
        query = "SELECT entry FROM inputs WHERE id=? ORDER BY sequence"
        return await self._do(lambda: self._column(query, (id_,)))

    async def expired(self, before_ns: int) -> list[str]:
        query = "SELECT id FROM contemplations WHERE end_ns IS NOT NULL AND end_ns<?"
        return await self._do(lambda: self._column(query, (before_ns,)))

    def _column(self, query: str, arguments: tuple[object, ...]) -> list[T]:
        return [row[0] for row in self._db.execute(query, arguments)]

    def _records(self, where: str, arguments: tuple[object, ...]) -> list[Record]:
        first = "(SELECT event FROM events e WHERE e.id=contemplations.id AND e.number=1)"
        query = (
            f"SELECT id, tenant, request_id, spec, acceptance, accept_ns, {first}, epoch, owner, "
            f"last_event, end_ns, ending FROM contemplations {where}"
        )
        return [Record(*row) for row in self._db.execute(query, arguments)]

    def _lock_path(self, owner: str) -> Path:
        return Path(f"{self._path}.owner.{owner}")

    def _others(self) -> set[str]:
        """Owners beside this one that have a file, dead or alive."""
        folder, name = os.path.split(os.path.abspath(self._path))
        prefix = f"{name}.owner."
        found = {entry[len(prefix) :] for entry in os.listdir(folder) if entry.startswith(prefix)}
        return found - {self.owner_id}


def _locked(path: Path) -> TextIO:
    """Makes an owner's file; its lock ends with the process, however that ends."""
    # Renamed into place, so that nobody finds it without its lock.
    partial = path.with_name(f"{path.name}-partial".replace(".owner.", ".new."))
    file = partial.open("w", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    partial.rename(path)
    return file


def _is_free(path: Path) -> bool:
    """Whether nobody holds an owner's file."""
    try:
        with path.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
