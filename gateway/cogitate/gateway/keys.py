"""API keys: a file of SQLite with their hashes, and who they belong to.

A key is `cog_` and 43 characters that hold 256 random bits, so a plain SHA-256 of it gives nothing
away and needs no salt. Only `create` ever sees one whole.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cogitate.gateway.core.tenants import Grant, check_name
from cogitate.gateway.tokens import REFUSED
from cogitate.kit.errors import InvalidRequest, NotFound, Unauthenticated

PREFIX: Final = "cog_"
_KEY: Final = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS keys (
  id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, tenant TEXT NOT NULL, granted TEXT NOT NULL,
  created_s REAL NOT NULL, expires_s REAL, revoked_s REAL
) STRICT
"""
_COLUMNS: Final = "id, tenant, granted, created_s, expires_s, revoked_s"


@dataclass(frozen=True)
class Key:
    """What is kept of a key; times are Unix seconds."""

    id: str
    grant: Grant
    created_s: float
    expires_s: float | None
    revoked_s: float | None

    def holds(self, now_s: float) -> bool:
        """Whether it opens anything now."""
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)


class KeyStore:
    """The keys of one file. Every look reads the file: a revoked key is shut out at once."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises InvalidRequest if there is no such file and none is to be made."""
        if not create and not path.exists():
            raise InvalidRequest(
                f"there is no file of keys called {path.name}; make one: cogitate keys create "
                "--file FILE --tenant NAME"
            )
        if create and not path.exists():
            path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            if create:
                self._db.execute(_TABLE)
            self._db.execute(f"SELECT hash, {_COLUMNS} FROM keys LIMIT 1")
        except sqlite3.DatabaseError:
            self._db.close()
            raise InvalidRequest(f"{path.name} is not a file of keys") from None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def create(self, grant: Grant, *, expires_s: float | None = None) -> tuple[Key, str]:
        """Makes a key; returns it with its text, which nobody can ask for again."""
        check_name(grant.tenant)
        text = PREFIX + secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(4), grant, time.time(), expires_s, None)
        granted = {
            "models": sorted(grant.models),
            "tools": sorted(grant.tools),
            "providers": sorted(grant.providers),
            "max_contemplation_count": grant.max_contemplation_count,
            "max_requests_per_minute": grant.max_requests_per_minute,
        }
        row = (key.id, _hash(text), grant.tenant, json.dumps(granted), key.created_s, expires_s)
        self._db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        return key, text

    def find(self, text: str) -> Grant:
        """Returns what a key grants. Raises Unauthenticated, the same whatever is wrong."""
        # Hashed in any case, so that the time tells nothing of the form either.
        hashed = _hash(text[:256])
        with closing(
            self._db.execute(f"SELECT hash, {_COLUMNS} FROM keys WHERE hash = ?", (hashed,))
        ) as rows:
            row = rows.fetchone()
        same = row is not None and hmac.compare_digest(row[0], hashed)
        key = _key(row[1:]) if row is not None else None
        if not (same and key and key.holds(time.time()) and _KEY.fullmatch(text)):
            raise Unauthenticated(REFUSED)
        return key.grant

    def revoke(self, key_id: str) -> None:
        """Shuts a key out from now on. Raises NotFound."""
        done = self._db.execute(
            "UPDATE keys SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL",
            (time.time(), key_id),
        )
        if not done.rowcount:
            raise NotFound("there is no key with this id that holds")

    def keys(self) -> Sequence[Key]:
        """All keys, oldest first."""
        with closing(self._db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_s")) as rows:
            return [_key(row) for row in rows]


def _key(row: tuple[str, str, str, float, float | None, float | None]) -> Key:
    id, tenant, granted, created_s, expires_s, revoked_s = row
    told = json.loads(granted)
    grant = Grant(
        tenant=tenant,
        models=frozenset(told["models"]),
        tools=frozenset(told["tools"]),
        providers=frozenset(told["providers"]),
        max_contemplation_count=told["max_contemplation_count"],
        max_requests_per_minute=told["max_requests_per_minute"],
    )
    return Key(id, grant, created_s, expires_s, revoked_s)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
