"""Certificates of every kind, good and bad, in folders as services are given them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cogitate.cli.certificates.authority import Authority, Signed
from cogitate.kit import identity

DOMAIN = "mesh.test"
HOUR = timedelta(hours=1)


@cache
def authority(name: str = "tests") -> Authority:
    """An authority that lasts as long as the tests do."""
    return Authority.made(HOUR * 24, name=name)


def signed(
    service: str = "router",
    *,
    domain: str = DOMAIN,
    by: Authority | None = None,
    uris: Sequence[str] | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    begins: datetime | None = None,
    lifetime: timedelta = HOUR,
) -> Signed:
    """A certificate; a good one unless told otherwise."""
    named = [f"spiffe://{domain}/{service}"] if uris is None else uris
    return (by or authority()).sign(named, hosts, lifetime, begins=begins)


def over() -> Signed:
    """One that has expired."""
    return signed(begins=datetime.now(UTC) - 2 * HOUR, lifetime=HOUR / 2)


def early() -> Signed:
    """One that is not valid yet."""
    return signed(begins=datetime.now(UTC) + HOUR)


def write(
    folder: Path,
    made: Signed,
    *,
    roots: bytes | None = None,
    layout: tuple[str, str, str] = identity.LAYOUTS[0],
) -> Path:
    """Writes the files of a service, and returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = (made.certificate, made.key, roots or authority().signed.certificate)
    for name, content in zip(layout, contents, strict=True):
        partial = folder / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)
    return folder
