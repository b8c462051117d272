"""The keys that sign tenants' tokens: a JWKS from a file or a URL, held and asked for anew."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jwt
from cogitate.kit import tasks
from cogitate.kit.errors import InvalidRequest

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 5.0


class IssuerKeys:
    """Public keys by id. Belongs to one event loop."""

    def __init__(
        self,
        source: str,
        algorithms: frozenset[str],
        *,
        refresh_s: float,
        least_interval_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``source`` is a path or an http(s) URL. Raises InvalidRequest if a file has no keys."""
        self._source, self._algorithms, self._monotonic = source, algorithms, monotonic
        self._refresh_s, self._least_s = refresh_s, least_interval_s
        self._is_url = source.startswith(("http://", "https://"))
        self._keys: dict[str, jwt.PyJWK] = {}
        self._asked_s = -float("inf")
        self._beside = tasks.Supervisor()
        self._asking: asyncio.Task[None] | None = None
        if not self._is_url:
            try:
                self._keys = parse(Path(source).read_bytes(), algorithms)
            except (OSError, ValueError) as error:
                raise InvalidRequest(f"jwt_keys: {error}") from None
            self._asked_s = monotonic()

    def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """Returns a key by its id; without one the only key there is."""
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    async def look_for(self, key_id: str | None) -> None:
        """Asks the source again if the key is not known, or all are old; not more often than so.

        Only who needs the answer waits for it. It is asked beside the request, whose end changes
        nothing; what cannot be had leaves the keys as they are.
        """
        if (self._asking is None or self._asking.done()) and self._is_due(key_id):
            self._asked_s = self._monotonic()
            self._asking = self._beside.spawn(self._ask(), name="issuer's keys")
        if self._asking is not None and self.find(key_id) is None:
            await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Ends what is on its way."""
        await self._beside.stop()

    async def _ask(self) -> None:
        try:
            raw = await asyncio.to_thread(_fetch if self._is_url else _read, self._source)
            self._keys = parse(raw, self._algorithms)
        except (OSError, ValueError) as error:
            logger.warning("the keys of the issuer cannot be had: %s", error)

    def _is_due(self, key_id: str | None) -> bool:
        age_s = self._monotonic() - self._asked_s
        known = self.find(key_id) is not None
        return age_s >= (self._refresh_s if known else self._least_s)


def parse(raw: bytes, algorithms: frozenset[str]) -> dict[str, jwt.PyJWK]:
    """Returns the keys of a JWKS that verify by one of the algorithms. Raises ValueError."""
    try:
        told = json.loads(raw)
        entries: list[Any] = told["keys"]
        found: dict[str, jwt.PyJWK] = {}
        for number, entry in enumerate(entries):
            # A secret among public keys is somebody's mistake, and must never verify.
            secret = entry.get("kty") == "oct" or "d" in entry
            if secret or entry.get("use", "sig") != "sig":
                continue
            try:
                key = jwt.PyJWK(entry)
            except jwt.PyJWTError:
                continue  # of a kind that is not known here
            if key.algorithm_name in algorithms:
                found[key.key_id or f"#{number}"] = key
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError('not a JWKS: expected {"keys": [...]}') from None
    if not found:
        raise ValueError(f"no key for {', '.join(sorted(algorithms))} in the JWKS")
    return found


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # then the redirect is an error


def _fetch(url: str) -> bytes:
    # Without ProxyHandler the environment's proxies hold, as everywhere.
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(url, headers={"accept": "application/json"})
    with opener.open(request, timeout=TIMEOUT_S) as answer:
        raw: bytes = answer.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"the JWKS is larger than {MAX_BYTES} bytes")
    return raw
