"""What tenants spend: budgets, sums a day and a month, and a row for each contemplation.

In the file of keys, so that gateways that share it agree; each change is one transaction. A row is
open from the grant until the contemplation's counters are booked, and booked once, whoever does.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from cogitate.gateway.core import budgets
from cogitate.gateway.core.budgets import PERIODS, Amount, Budget, Use
from cogitate.gateway.core.tenants import check_name
from cogitate.kit.errors import AlreadyExists, InvalidRequest

# How long a gateway may wait for another's transaction.
BUSY_S: Final = 2.0
# How long a booked row is kept, for a question that is sent again.
KEEP_S: Final = 86_400.0
KEEP_PERIODS_S: Final = 400 * 86_400.0

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS budgets (
  tenant TEXT PRIMARY KEY, tokens_per_day INTEGER NOT NULL, tokens_per_month INTEGER NOT NULL,
  micro_usd_per_day INTEGER NOT NULL, micro_usd_per_month INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS spent (
  tenant TEXT NOT NULL, period TEXT NOT NULL, tokens INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
  contemplations INTEGER NOT NULL, PRIMARY KEY (tenant, period)
) STRICT;
CREATE TABLE IF NOT EXISTS contemplations (
  tenant TEXT NOT NULL, request_id TEXT NOT NULL, id TEXT NOT NULL,
  asked_tokens INTEGER NOT NULL, asked_micro_usd INTEGER NOT NULL,
  tokens INTEGER NOT NULL, micro_usd INTEGER NOT NULL,
  begun_s REAL NOT NULL, booked_s REAL, PRIMARY KEY (tenant, request_id)
) STRICT;
CREATE INDEX IF NOT EXISTS open_contemplations ON contemplations (tenant, begun_s)
  WHERE booked_s IS NULL;
"""
_ROW: Final = "tenant, request_id, id, tokens, micro_usd, begun_s"


@dataclass(frozen=True)
class Open:
    """A contemplation that was granted something and is not booked; `id` is empty until known."""

    tenant: str
    request_id: str
    id: str
    granted: Amount
    begun_s: float


class Accounts:
    """The accounts of one file."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Raises InvalidRequest if the file cannot be written."""
        self._now = now
        try:
            self._db = _connected(path)
        except sqlite3.DatabaseError as error:
            raise InvalidRequest(
                f"{path.name} and its folder must be writable, to keep what tenants spend: {error}"
            ) from None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def begin(self, tenant: str, request_id: str, asked: Amount) -> tuple[Amount, bool]:
        """Grants a contemplation its part; returns it, and whether it is new.

        The same request again has the same grant, so that it stays the same question. Raises
        BudgetExceeded and Rejected, and AlreadyExists if it asks for another budget.
        """
        now_s = self._now()
        with self._transaction():
            row = self._one(
                "SELECT tokens, micro_usd, asked_tokens, asked_micro_usd FROM contemplations "
                "WHERE tenant = ? AND request_id = ?",
                (tenant, request_id),
            )
            if row is not None:
                if Amount(*row[2:]) != asked:
                    raise AlreadyExists("the request id was used with another budget")
                return Amount(*row[:2]), False
            uses = {period: self._use(tenant, period, now_s) for period in PERIODS}
            granted = budgets.grant(asked, self.budget(tenant), uses, now_s)
            self._db.execute(
                "INSERT INTO contemplations VALUES (?, ?, '', ?, ?, ?, ?, ?, NULL)",
                (tenant, request_id, *_both(asked), *_both(granted), now_s),
            )
        return granted, True

    def accepted(self, tenant: str, request_id: str, id: str) -> None:
        """Remembers which contemplation it became."""
        self._db.execute(
            "UPDATE contemplations SET id = ? WHERE tenant = ? AND request_id = ?",
            (id, tenant, request_id),
        )

    def release(self, tenant: str, request_id: str) -> None:
        """Gives back what was granted to a contemplation that never came to be."""
        self._db.execute(
            "DELETE FROM contemplations WHERE tenant = ? AND request_id = ? AND booked_s IS NULL",
            (tenant, request_id),
        )

    def book(self, tenant: str, request_id: str, spent: Amount) -> bool:
        """Books what a contemplation spent, in the periods it began in; says if it was the first.

        What it was granted and did not spend is free again.
        """
        with self._transaction():
            row = self._one(
                "UPDATE contemplations SET booked_s = ? WHERE tenant = ? AND request_id = ? "
                "AND booked_s IS NULL RETURNING begun_s",
                (self._now(), tenant, request_id),
            )
            for period in PERIODS if row is not None else ():
                self._db.execute(
                    "INSERT INTO spent VALUES (?1, ?2, ?3, ?4, 1) ON CONFLICT DO UPDATE SET "
                    "tokens = tokens + ?3, micro_usd = micro_usd + ?4, "
                    "contemplations = contemplations + 1",
                    (tenant, budgets.name_of(period, row[0]), *_both(spent)),
                )
        return row is not None

    def open(self, *, older_s: float = 0.0) -> Sequence[Open]:
        """Returns the open rows that began so long ago, oldest first."""
        with closing(
            self._db.execute(
                f"SELECT {_ROW} FROM contemplations WHERE booked_s IS NULL AND begun_s <= ? "
                "ORDER BY begun_s",
                (self._now() - older_s,),
            )
        ) as rows:
            return [_open(row) for row in rows]

    def find_open(self, tenant: str, request_id: str) -> Open | None:
        """Returns a row if it is open."""
        row = self._one(
            f"SELECT {_ROW} FROM contemplations WHERE booked_s IS NULL AND tenant = ? "
            "AND request_id = ?",
            (tenant, request_id),
        )
        return _open(row) if row is not None else None

    def forget_old(self) -> None:
        """Removes what is kept for nothing any more."""
        now_s = self._now()
        self._db.execute("DELETE FROM contemplations WHERE booked_s < ?", (now_s - KEEP_S,))
        oldest = budgets.name_of("month", now_s - KEEP_PERIODS_S)
        self._db.execute("DELETE FROM spent WHERE period < ?", (oldest,))

    def budget(self, tenant: str) -> Budget:
        """Returns what a tenant may spend."""
        row = self._one(
            f"SELECT {', '.join(one.name for one in fields(Budget))} FROM budgets WHERE tenant = ?",
            (tenant,),
        )
        return Budget(*row) if row is not None else Budget()

    def set_budget(self, tenant: str, budget: Budget) -> None:
        """Says what a tenant may spend from now on; what it spent stays spent."""
        check_name(tenant)
        values = list(asdict(budget).values())
        if min(values) < 0 or max(values) > 2**62:
            raise InvalidRequest("a budget must not be negative", field="budget")
        self._db.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?, ?, ?, ?)", (tenant, *values))

    def use(self, tenant: str) -> dict[str, Use]:
        """Returns what a tenant spends in the running day and month."""
        now_s = self._now()
        return {period: self._use(tenant, period, now_s) for period in PERIODS}

    def tenants(self) -> Sequence[str]:
        """Returns the tenants that have a budget or ever asked, by name."""
        with closing(
            self._db.execute(
                "SELECT tenant FROM budgets UNION SELECT tenant FROM spent UNION "
                "SELECT tenant FROM contemplations ORDER BY 1"
            )
        ) as rows:
            return [row[0] for row in rows]

    def _use(self, tenant: str, period: str, now_s: float) -> Use:
        spent = self._one(
            "SELECT tokens, micro_usd, contemplations FROM spent WHERE tenant = ? AND period = ?",
            (tenant, budgets.name_of(period, now_s)),
        ) or (0, 0, 0)
        granted = self._one(
            "SELECT coalesce(sum(tokens), 0), coalesce(sum(micro_usd), 0), count(*) "
            "FROM contemplations WHERE booked_s IS NULL AND tenant = ? AND begun_s >= ?",
            (tenant, budgets.begins_s(period, now_s)),
        ) or (0, 0, 0)
        return Use(Amount(*spent[:2]), Amount(*granted[:2]), spent[2] + granted[2])

    def _one(self, text: str, values: tuple[Any, ...]) -> Any:
        with closing(self._db.execute(text, values)) as rows:
            return rows.fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # At once for writing: what was read must hold until it is acted upon.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    try:
        # A commit costs no fsync: a crash of the process loses nothing, a loss of power may take
        # the last moments.
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_TABLES)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _open(row: tuple[str, str, str, int, int, float]) -> Open:
    return Open(*row[:3], Amount(*row[3:5]), row[5])


def _both(amount: Amount) -> tuple[int, int]:
    return amount.tokens, amount.micro_usd
