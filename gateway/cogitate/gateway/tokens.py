"""JWTs as credentials: who signed one, for whom it is, and what its bearer may."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cogitate.gateway.core.tenants import NAME as TENANT
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.issuer_keys import IssuerKeys
from cogitate.kit.errors import InvalidRequest, Unauthenticated

MAX_TOKEN_BYTES: Final = 8 * 1024
# Never "none", and no HMAC: a public key must not serve as a secret.
ALGORITHMS: Final = frozenset({"RS256", "ES256", "EdDSA"})
REFUSED: Final = "there is no such key, or it holds no more; send one as `Authorization: Bearer …`"

_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_NAMES: Final = 256


@dataclass(frozen=True)
class Claims:
    """What is asked of a token; the last three are names of claims, empty where none narrows."""

    issuer: str
    audience: str
    tenant: str = "sub"
    models: str = ""
    tools: str = ""
    providers: str = ""
    leeway_s: float = 30.0
    max_contemplation_count: int = 0
    max_requests_per_minute: int = 0


class Tokens:
    """Turns tokens into grants. Everything that is wrong with one is told the same."""

    def __init__(self, keys: IssuerKeys, claims: Claims) -> None:
        """Raises InvalidRequest without issuer or audience."""
        if not (claims.issuer and claims.audience and claims.tenant):
            raise InvalidRequest("jwt_keys needs jwt_issuer, jwt_audience and jwt_tenant_claim")
        self._keys, self._claims = keys, claims

    @staticmethod
    def looks_like_one(text: str) -> bool:
        """Whether a bearer is meant as a token and not as a key."""
        return text.count(".") == 2

    async def prepare(self, text: str) -> None:
        """Fetches the issuer's keys if this token needs it and it was not done just now."""
        header = _header(text)
        if header is not None:
            await self._keys.look_for(_key_id(header))

    async def close(self) -> None:
        """Ends what is on its way."""
        await self._keys.close()

    def find(self, text: str) -> Grant:
        """Returns what a token grants. Raises Unauthenticated."""
        header = _header(text)
        key = self._keys.find(_key_id(header)) if header is not None else None
        if key is None:
            raise Unauthenticated(REFUSED)
        asked = self._claims
        try:
            # The algorithm is the key's, whatever the token says.
            told = jwt.decode(
                text,
                key,
                algorithms=[key.algorithm_name],
                issuer=asked.issuer,
                audience=asked.audience,
                leeway=asked.leeway_s,
                options={"require": ["exp", "iss", "aud", asked.tenant]},
            )
            return self._grant(told)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthenticated(REFUSED) from None

    def _grant(self, told: Mapping[str, Any]) -> Grant:
        asked, tenant = self._claims, told[self._claims.tenant]
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise ValueError("the tenant's name is malformed")
        return Grant(
            tenant,
            models=_names(told, asked.models),
            tools=_names(told, asked.tools),
            providers=_names(told, asked.providers),
            max_contemplation_count=asked.max_contemplation_count,
            max_requests_per_minute=asked.max_requests_per_minute,
        )


def _header(text: str) -> Mapping[str, Any] | None:
    """Returns the header, which nobody vouches for yet; None if this can be no token."""
    if len(text) > MAX_TOKEN_BYTES or not _FORM.fullmatch(text):
        return None
    try:
        return jwt.get_unverified_header(text)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None


def _key_id(header: Mapping[str, Any]) -> str | None:
    key_id = header.get("kid")
    return key_id if key_id is None or isinstance(key_id, str) else ""


def _names(told: Mapping[str, Any], claim: str) -> frozenset[str]:
    """Returns the names a claim narrows to; a claim that is not there narrows nothing."""
    if not claim or claim not in told:
        return frozenset()
    value = told[claim]
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list) or not 0 < len(names) <= _MAX_NAMES:
        raise ValueError("a claim must list names")  # an empty list is nothing, not everything
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError("a claim must list names")
    return frozenset(names)
