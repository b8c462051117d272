"""Where endpoints may be: a file of addresses, and names in DNS such as of a headless service.

What cannot be read or resolved just now is what it was before; a name that does not exist is none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.resolver

logger = logging.getLogger(__name__)

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_KINDS: Final = ("A", "AAAA")


class MalformedSource(ValueError):
    """A file or a name that cannot be taken; the message says which and why."""


class Sources:
    """Reads them all; keeps what each said last."""

    def __init__(
        self, file: str, names: Sequence[str], *, server: str = "", timeout_s: float = 2.0
    ) -> None:
        """Raises MalformedSource for names that are none."""
        self._file = Path(file) if file else None
        self._names = [split(name) for name in names]
        self._timeout_s = timeout_s
        self._resolver = _resolver(server) if names else None
        self._listed: frozenset[str] = frozenset()
        self._resolved: dict[str, frozenset[str]] = {}

    async def addresses(self) -> frozenset[str]:
        """All addresses as of now, `host:port`."""
        if self._file is not None:
            self._listed = await asyncio.to_thread(self._read, self._file)
        await asyncio.gather(*(self._resolve(host, port) for host, port in self._names))
        return self._listed.union(*self._resolved.values())

    def _read(self, file: Path) -> frozenset[str]:
        try:
            with file.open("rb") as opened:
                content = opened.read(_MAX_FILE_BYTES + 1)
            return frozenset(listed(content))
        except (OSError, MalformedSource) as error:
            why = error if isinstance(error, MalformedSource) else type(error).__name__
            logger.warning("the file of endpoints cannot be taken: %s; the last one holds", why)
            return self._listed

    async def _resolve(self, host: str, port: int) -> None:
        assert self._resolver is not None
        name = f"{host}:{port}"
        found: set[str] = set()
        try:
            for kind in _KINDS:
                found |= await self._ask(host, kind)
        except dns.exception.DNSException as error:
            logger.warning(
                "%s does not resolve: %s; its last addresses hold", name, type(error).__name__
            )
            return
        self._resolved[name] = frozenset(_joined(address, port) for address in found)

    async def _ask(self, host: str, kind: str) -> set[str]:
        assert self._resolver is not None
        try:
            answer = await self._resolver.resolve(
                host, kind, search=True, lifetime=self._timeout_s, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN:
            return set()
        return {str(record.address) for record in answer}


def listed(content: bytes) -> Iterable[str]:
    """The addresses of a file, one a line; what follows # is a comment. Raises MalformedSource."""
    if len(content) > _MAX_FILE_BYTES:
        raise MalformedSource(f"it is larger than {_MAX_FILE_BYTES} bytes")
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if address := line.partition("#")[0].strip():
            try:
                split(address)
            except MalformedSource as error:
                raise MalformedSource(f"line {number}: {error}") from None
            yield address


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`. Raises MalformedSource."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise MalformedSource(f"{address[:80]!r} is not host:port")
    return found[1], int(found[2])


def _joined(host: str, port: int) -> str:
    is_v6 = ipaddress.ip_address(host).version == 6
    return f"[{host}]:{port}" if is_v6 else f"{host}:{port}"


def _resolver(server: str) -> dns.asyncresolver.Resolver:
    """The system's, or one that asks that server. It keeps no answers: they are what is asked for.

    Nor would it keep them well: that a name does not exist is kept for ever unless a server says.
    """
    if not server:
        return dns.asyncresolver.Resolver()
    host, port = split(server)
    made = dns.asyncresolver.Resolver(configure=False)
    made.nameservers, made.port = [host.strip("[]")], port
    return made
