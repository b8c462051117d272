"""A folder of certificates: the authority's, and one folder for each service, ready as `tls_dir`.

DIR/ca/ca.crt, ca.key       the authority; whoever has ca.key can be anybody
DIR/SERVICE/tls.crt, tls.key, ca.crt
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cogitate.cli.certificates.authority import (
    Authority,
    Signed,
    is_signed_by,
    lifetime_left,
    uris_and_hosts,
)
from cogitate.kit.access import CLIENTS, SERVICES

LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
KEY: Final = "ca.key"
AUTHORITY_LIFETIME: Final = timedelta(days=365)
# As cert-manager: renewed when a third of the lifetime is left.
RENEW_AT: Final = 1 / 3


@dataclass(frozen=True)
class Plan:
    """What certificates are to hold."""

    folder: Path
    trust_domain: str = "cogitate.local"
    lifetime: timedelta = timedelta(hours=24)
    hosts: Sequence[str] = LOCAL_HOSTS


def keep(plan: Plan, *, renew: bool = False) -> dict[str, bool]:
    """Makes what is missing or soon over, all with `renew`; returns for each name whether it did.

    Raises OSError, and ValueError if the authority's files are not one.
    """
    authority, made = _authority(plan.folder / "ca"), {}
    for name in (*SERVICES, *CLIENTS):
        folder = plan.folder / name
        uri = f"spiffe://{plan.trust_domain}/{name}"
        hosts = (*plan.hosts, name) if name in SERVICES else ()
        fresh = not renew and _is_fresh(folder, authority, uri, hosts)
        if not fresh:
            _make(folder, authority, authority.sign([uri], hosts, plan.lifetime))
        made[name] = not fresh
    return made


def _authority(folder: Path) -> Authority:
    certificate, key = folder / "ca.crt", folder / KEY
    if certificate.exists() and key.exists():
        found = Authority(Signed(certificate.read_bytes(), key.read_bytes()))
        if lifetime_left(found.signed.certificate) > 0:
            return found
    made = Authority.made(AUTHORITY_LIFETIME)
    _folder(folder)
    _write(key, made.signed.key)
    _write(certificate, made.signed.certificate)
    return made


def _is_fresh(folder: Path, authority: Authority, uri: str, hosts: Sequence[str]) -> bool:
    if not all((folder / file).exists() for file in ("tls.crt", "tls.key", "ca.crt")):
        return False
    certificate = (folder / "tls.crt").read_bytes()
    try:
        return (
            lifetime_left(certificate) > RENEW_AT
            and is_signed_by(certificate, authority.signed.certificate)
            and uris_and_hosts(certificate) == ([uri], set(hosts))
        )
    except ValueError:
        return False


def _make(folder: Path, authority: Authority, signed: Signed) -> None:
    _folder(folder)
    _write(folder / "ca.crt", authority.signed.certificate)
    # Whoever reads between these two finds that they do not belong together, and looks again.
    _write(folder / "tls.key", signed.key)
    _write(folder / "tls.crt", signed.certificate)


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)
