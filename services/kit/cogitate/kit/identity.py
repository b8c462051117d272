"""Who this process is to the rest of the mesh: its certificate, read anew when its files change.

The folder `tls_dir` is laid out as cert-manager does (`tls.crt`, `tls.key`, `ca.crt`) or as the
SPIFFE helper does (`svid.pem`, `svid_key.pem`, `svid_bundle.pem`). The name is the one URI in the
certificate's subject alternative names, `spiffe://TRUST_DOMAIN/SERVICE`. Files that do not belong
together, as while they are being written, change nothing: what was read before holds on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc

logger = logging.getLogger(__name__)

# The certificate with those that signed it, its key, and whom to trust.
LAYOUTS: Final = (
    ("tls.crt", "tls.key", "ca.crt"),
    ("svid.pem", "svid_key.pem", "svid_bundle.pem"),
)
# Files are looked at that often at most, when a connection or a call is made.
LOOK_S: Final = 1.0
_NAME: Final = re.compile(r"spiffe://([a-z0-9._-]{1,255})/([A-Za-z0-9._-]{1,64})")


@dataclass(frozen=True)
class Papers:
    """What the files hold, as PEM, and what they say."""

    chain: bytes
    key: bytes
    roots: bytes
    trust_domain: str
    service: str
    expires: datetime


class Identity:
    """The papers of one process. May be used by any thread: handshakes run in the transport's."""

    def __init__(
        self,
        folder: Path,
        *,
        server_name: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``server_name`` is expected of servers instead of the host. Raises OSError."""
        self.server_name = server_name
        self._folder, self._monotonic = folder, monotonic
        self._lock = threading.Lock()
        self._seen = _stamp(folder)
        self._papers = read(folder)
        self._looked_s = monotonic()
        self._complaint = ""

    def papers(self) -> Papers:
        """Returns the newest papers that are whole; the same object while nothing changed."""
        with self._lock:
            now_s = self._monotonic()
            if now_s - self._looked_s >= LOOK_S:
                self._looked_s = now_s
                self._look()
            return self._papers

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials that ask for a certificate; each handshake uses the newest papers."""
        shown = self.papers()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            newest = self.papers()
            if newest is shown:
                return None
            shown = newest
            return _server_side(newest)

        return grpc.dynamic_ssl_server_credentials(
            _server_side(shown),
            renewed,  # type: ignore[arg-type]  # None says that nothing changed
            require_client_authentication=True,
        )

    def _look(self) -> None:
        try:
            stamp = _stamp(self._folder)
            if stamp == self._seen:
                return
            self._papers = read(self._folder)
        except OSError as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                logger.warning("the certificate is not renewed: %s", error)
            return
        self._seen, self._complaint = stamp, ""
        logger.info("the certificate was renewed; it expires at %s", self._papers.expires)


def read(folder: Path) -> Papers:
    """Reads and checks a folder. Raises OSError saying what is wrong with which file."""
    # Only who asks for TLS pays for it.
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    chain_file, key_file, roots_file = _files(folder)
    chain, key, roots = (file.read_bytes() for file in (chain_file, key_file, roots_file))
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
        public_key = serialization.load_pem_private_key(key, password=None).public_key()
        x509.load_pem_x509_certificates(roots)
    except (ValueError, TypeError):
        raise OSError(f"{folder} holds no certificate, key and roots in PEM") from None
    if certificate.public_key() != public_key:
        raise OSError(f"{key_file} is not the key of {chain_file}")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= (now := datetime.now(UTC)) < ends:
        raise OSError(f"{chain_file} is valid from {begins} to {ends}; it is {now} here")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        found = []
    parsed = parse(found[0]) if len(found) == 1 else None
    if parsed is None:
        raise OSError(f"{chain_file} needs one URI of the form spiffe://TRUST_DOMAIN/SERVICE")
    return Papers(chain, key, roots, *parsed, ends)


def parse(uri: str) -> tuple[str, str] | None:
    """Returns trust domain and service of a name, or None."""
    match = _NAME.fullmatch(uri)
    return (match[1], match[2]) if match else None


def _files(folder: Path) -> tuple[Path, Path, Path]:
    for chain, key, roots in LAYOUTS:
        if (folder / chain).exists():
            return folder / chain, folder / key, folder / roots
    raise OSError(f"{folder} holds neither {' nor '.join(', '.join(one) for one in LAYOUTS)}")


def _stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    stats = [file.stat() for file in _files(folder)]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def _server_side(papers: Papers) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(papers.key, papers.chain)], papers.roots)


# -- of the service that runs ----------------------------------------------------------------------

_IDENTITY: ContextVar[Identity | None] = ContextVar("cogitate_identity", default=None)


def current() -> Identity | None:
    """Returns the identity of the service that the running task belongs to; None is plaintext."""
    return _IDENTITY.get()


@contextmanager
def acting(identity: Identity | None) -> Iterator[Identity | None]:
    """Makes an identity the current one; tasks started inside inherit it."""
    before = _IDENTITY.get()
    _IDENTITY.set(identity)
    try:
        yield identity
    finally:
        # Not by a token: a fixture may be left in another context than it was entered in.
        _IDENTITY.set(before)
