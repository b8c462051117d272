"""A span store in one SQLite file, so that traces can be looked at where no backend runs.

All services of a machine append to the same file (WAL, one short transaction a batch); the reader
needs the standard library only. The store is bounded: past `max_spans` the traces that were
written to longest ago go, whole.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
else:
    SpanExporter = object  # the exporter is used by its methods; reading must not need the SDK

logger = logging.getLogger(__name__)

CONTEMPLATION_ID: Final = "cogitate.contemplation_id"
_BUSY_TIMEOUT_S: Final = 5.0
_PRUNE_EVERY_SPANS: Final = 1000
_PRUNE_TO: Final = 0.9  # of the bound, so that pruning is rare

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    row INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL,
    service TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, status TEXT NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    attributes TEXT NOT NULL, events TEXT NOT NULL, contemplation_id TEXT,
    UNIQUE (trace_id, span_id)
);
CREATE INDEX IF NOT EXISTS spans_by_contemplation
    ON spans (contemplation_id) WHERE contemplation_id IS NOT NULL;
"""
_INSERT = "INSERT OR IGNORE INTO spans VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?)"
_HAS_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'spans'"
_COLUMNS = (
    "trace_id, span_id, parent_id, service, name, kind, status, start_ns, end_ns, "
    "attributes, events"
)


@dataclass(frozen=True)
class StoredEvent:
    """A moment in a span."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class StoredSpan:
    """One finished span. Ids are lower-case hex, `parent_id` is empty at the root."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    status: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: tuple[StoredEvent, ...]


@dataclass(frozen=True)
class StoredTrace:
    """What a list of traces shows of one; `name` is of its earliest span."""

    trace_id: str
    name: str
    start_ns: int
    end_ns: int
    span_count: int
    contemplation_id: str


class TraceStore:
    """Reads a store that others may be writing to; a missing file reads as an empty store."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def traces(self, limit: int = 50) -> list[StoredTrace]:
        """Returns the traces that started last, newest first."""
        query = (
            "SELECT trace_id, (SELECT name FROM spans t WHERE t.trace_id = s.trace_id "
            "ORDER BY start_ns, end_ns DESC LIMIT 1), MIN(start_ns), MAX(end_ns), COUNT(*), "
            "COALESCE(MIN(contemplation_id), '') FROM spans s GROUP BY trace_id "
            "ORDER BY MIN(start_ns) DESC, trace_id LIMIT ?"
        )
        return [StoredTrace(*row) for row in self._query(query, limit)]

    def spans(self, trace_id: str) -> list[StoredSpan]:
        """Returns the spans of a trace by start, the outer of two that started together first."""
        query = (
            f"SELECT {_COLUMNS} FROM spans WHERE trace_id = ? "
            "ORDER BY start_ns, end_ns DESC, span_id"
        )
        return [_stored_span(row) for row in self._query(query, trace_id)]

    def find(self, contemplation_id: str) -> str | None:
        """Returns the trace of a contemplation: the latest, if a takeover began another."""
        query = (
            "SELECT trace_id FROM spans WHERE contemplation_id = ? "
            "ORDER BY start_ns DESC, trace_id LIMIT 1"
        )
        rows = self._query(query, contemplation_id)
        return str(rows[0][0]) if rows else None

    def wait_until_quiet(self, quiet_s: float = 1.0, within_s: float = 5.0) -> None:
        """Returns when nothing was written for `quiet_s`, so that traces are whole, or gives up.

        Services write twice a second, and a busy mesh never stops: hence the second bound.
        """
        ends = time.monotonic() + within_s
        newest, since = -1, time.monotonic()
        while time.monotonic() < min(ends, since + quiet_s):
            (row,) = self._query("SELECT COALESCE(MAX(row), ?) FROM spans", 0) or [(0,)]
            if row[0] != newest:
                newest, since = row[0], time.monotonic()
            time.sleep(0.1)

    def _query(self, query: str, argument: str | int) -> list[Any]:
        if not self._path.exists():
            return []
        with closing(_connect(self._path)) as connection:
            if not connection.execute(_HAS_TABLE).fetchone():
                return []  # the writer has made the file and not yet the table
            return connection.execute(query, (argument,)).fetchall()


class StoreExporter(SpanExporter):
    """Appends finished spans; called by one thread at a time, as a batch processor does.

    A store that cannot be written loses spans and never harms the service.
    """

    def __init__(self, path: str | Path, *, max_spans: int = 200_000) -> None:
        self._path = Path(path)
        self._max_spans = max_spans
        self._until_prune = 0
        self._connection: sqlite3.Connection | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes one batch in one transaction. Blocks while another process writes."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            connection = self._connection = self._connection or _open_for_writing(self._path)
            with connection:
                connection.executemany(_INSERT, [_row(span) for span in spans])
            self._until_prune -= len(spans)
            if self._until_prune <= 0:
                self._until_prune = min(_PRUNE_EVERY_SPANS, self._max_spans)
                _prune(connection, self._max_spans)
        except (sqlite3.Error, OSError) as error:
            logger.warning("spans were not stored: %s", type(error).__name__)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Does nothing: every batch is committed as it comes."""
        return True


def _stored_span(row: Any) -> StoredSpan:
    events = tuple(StoredEvent(*event) for event in json.loads(row[10]))
    values = [*row[:9], json.loads(row[9]), events]
    return StoredSpan(*values)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)


def _open_for_writing(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        connection = _connect(path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last spans
            connection.executescript(_SCHEMA)
            return connection
        except sqlite3.Error as error:
            connection.close()
            if "locked" not in str(error) or time.monotonic() >= ends:
                raise
            time.sleep(0.01)  # turning a new file to WAL fails at once, whatever the timeout


def _row(span: ReadableSpan) -> tuple[Any, ...]:
    context, parent = span.get_span_context(), span.parent
    attributes = dict(span.attributes or {})
    events = [(e.name, e.timestamp, dict(e.attributes or {})) for e in span.events]
    return (
        f"{context.trace_id:032x}" if context else "",
        f"{context.span_id:016x}" if context else "",
        f"{parent.span_id:016x}" if parent else "",
        str(span.resource.attributes.get("service.name", "")),
        span.name,
        span.kind.name,
        span.status.status_code.name,
        span.start_time or 0,
        span.end_time or 0,
        json.dumps(attributes),
        json.dumps(events),
        attributes.get(CONTEMPLATION_ID),
    )


def _prune(connection: sqlite3.Connection, max_spans: int) -> None:
    with connection:
        # Taken before counting, or two processes would each delete for the other as well.
        connection.execute("BEGIN IMMEDIATE")
        (count,) = connection.execute("SELECT COUNT(*) FROM spans").fetchone()
        if count <= max_spans:
            return
        surplus = count - int(max_spans * _PRUNE_TO)
        oldest = connection.execute(
            "SELECT trace_id, COUNT(*) FROM spans GROUP BY trace_id ORDER BY MAX(row)"
        )
        doomed = []
        for trace_id, span_count in oldest:
            if surplus <= 0:
                break
            doomed.append((trace_id,))
            surplus -= span_count
        connection.executemany("DELETE FROM spans WHERE trace_id = ?", doomed)
