"""Who a caller is: the one place where gRPC and HTTP learn it. Without keys everybody is one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from cogitate.gateway.accounts import Accounts
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core.tenants import Allowances, Grant
from cogitate.gateway.issuer_keys import IssuerKeys
from cogitate.gateway.keys import KeyStore
from cogitate.gateway.tokens import ALGORITHMS, REFUSED, Claims, Tokens
from cogitate.kit import auth
from cogitate.kit.errors import Unauthenticated

_EVERYBODY: Final = Grant(auth.DEFAULT_TENANT)
_GRANT: ContextVar[Grant] = ContextVar("cogitate_grant", default=_EVERYBODY)


def current_grant() -> Grant:
    """Returns what the caller of the running task may."""
    return _GRANT.get()


class Doors:
    """Owns what credentials are checked against, if anything, and what tenants use."""

    def __init__(self, config: GatewayConfig) -> None:
        """Without a file of keys and keys of an issuer everybody is let in. Raises InvalidRequest.

        An issuer's keys at a URL are fetched when the first token comes.
        """
        self.keys = KeyStore(Path(config.api_keys)) if config.api_keys else None
        self.accounts = Accounts(Path(config.api_keys)) if config.api_keys else None
        self._tokens = _tokens(config) if config.jwt_keys else None
        self.allowances = Allowances()

    async def close(self) -> None:
        """Closes the file of keys."""
        if self._tokens is not None:
            await self._tokens.close()
        if self.keys is not None:
            self.keys.close()
        if self.accounts is not None:
            self.accounts.close()

    async def prepare(self, authorization: str | None) -> None:
        """Gets what `enter` may need for this caller and cannot wait for: an issuer's new keys."""
        text = bearer(authorization)
        if self._tokens is not None and text and self._tokens.looks_like_one(text):
            await self._tokens.prepare(text)

    @contextmanager
    def enter(self, authorization: str | None) -> Iterator[Grant]:
        """Lets the caller in, as its tenant; use it in the request's own task.

        `authorization` is the header's value, `Bearer KEY`; call `prepare` before. Raises
        Unauthenticated, and Rejected past the tenant's rate of requests.
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
        if self.keys is None and self._tokens is None:
            return _EVERYBODY
        text = bearer(authorization)
        if not text:
            raise Unauthenticated(
                "a key is needed: send it as `Authorization: Bearer …`, or set COGITATE_API_KEY"
            )
        if self._tokens is not None and self._tokens.looks_like_one(text):
            return self._tokens.find(text)
        if self.keys is None:
            raise Unauthenticated(REFUSED)
        return self.keys.find(text)


def bearer(authorization: str | None) -> str:
    """Returns what a header `Bearer …` holds, or an empty string."""
    kind, _, text = (authorization or "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else ""


def _tokens(config: GatewayConfig) -> Tokens:
    keys = IssuerKeys(
        config.jwt_keys,
        frozenset(config.jwt_algorithms) & ALGORITHMS,
        refresh_s=config.jwt_refresh_s,
        least_interval_s=config.jwt_refresh_min_s,
    )
    claims = Claims(
        config.jwt_issuer,
        config.jwt_audience,
        config.jwt_tenant_claim,
        config.jwt_models_claim,
        config.jwt_tools_claim,
        config.jwt_providers_claim,
        config.jwt_leeway_s,
        config.jwt_max_contemplation_count,
        config.jwt_requests_per_minute,
    )
    return Tokens(keys, claims)
