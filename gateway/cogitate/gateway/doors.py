"""Who a caller is: the one place where gRPC and HTTP learn it. Without keys everybody is one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from cogitate.gateway.core.tenants import Allowances, Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit import auth
from cogitate.kit.errors import Unauthenticated

_EVERYBODY: Final = Grant(auth.DEFAULT_TENANT)
_GRANT: ContextVar[Grant] = ContextVar("cogitate_grant", default=_EVERYBODY)


def current_grant() -> Grant:
    """Returns what the caller of the running task may."""
    return _GRANT.get()


class Doors:
    """Owns the keys, if there are any, and what tenants use."""

    def __init__(self, api_keys: str) -> None:
        """``api_keys`` is the file of keys; empty lets everybody in. Raises InvalidRequest."""
        self._keys = KeyStore(Path(api_keys)) if api_keys else None
        self.allowances = Allowances()

    def close(self) -> None:
        """Closes the file of keys."""
        if self._keys is not None:
            self._keys.close()

    @contextmanager
    def enter(self, authorization: str | None) -> Iterator[Grant]:
        """Lets the caller in, as its tenant; use it in the request's own task.

        `authorization` is the header's value, `Bearer KEY`. Raises Unauthenticated, and Rejected
        past the tenant's rate of requests.
        """
        grant = self._grant(authorization)
        self.allowances.take_request(grant, time.monotonic())
        token = _GRANT.set(grant)
        try:
            with auth.tenant_scope(grant.tenant):
                yield grant
        finally:
            _GRANT.reset(token)

    def _grant(self, authorization: str | None) -> Grant:
        if self._keys is None:
            return _EVERYBODY
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key:
            raise Unauthenticated(
                "a key is needed: send it as `Authorization: Bearer …`, or set COGITATE_API_KEY"
            )
        return self._keys.find(key.strip())
