"""Keys and certificates: an authority, and what it signs for services."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clocks of other machines may be behind.
SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True)
class Signed:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates; may be anybody's who has its files."""

    def __init__(self, signed: Signed) -> None:
        """Raises ValueError if these are no certificate and key."""
        self.signed = signed
        self._certificate = x509.load_pem_x509_certificate(signed.certificate)
        key = serialization.load_pem_private_key(signed.key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not a key of an elliptic curve")
        self._key = key

    @classmethod
    def made(cls, lifetime: timedelta, *, name: str = "Cogitate development") -> Authority:
        """Makes a new one; it may sign services, and no further authorities."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        now = datetime.now(UTC)
        builder = (
            _builder(issuer, issuer, key.public_key(), now - SKEW, now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        certificate = builder.sign(key, hashes.SHA256())
        return cls(Signed(certificate.public_bytes(serialization.Encoding.PEM), _pem(key)))

    def sign(
        self,
        uris: Sequence[str],
        hosts: Sequence[str],
        lifetime: timedelta,
        *,
        begins: datetime | None = None,
    ) -> Signed:
        """Makes a key and its certificate for servers and clients; valid from now less the skew."""
        key = ec.generate_private_key(ec.SECP256R1())
        begins = begins or datetime.now(UTC) - SKEW
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [_host(host) for host in hosts]
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(
                x509.Name([]), self._certificate.subject, key.public_key(), begins,
                begins + SKEW + lifetime,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )  # fmt: skip
        certificate = builder.sign(self._key, hashes.SHA256())
        return Signed(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def lifetime_left(certificate: bytes) -> float:
    """Returns the share of a certificate's lifetime that is left: 1 new, 0 or less over."""
    parsed = x509.load_pem_x509_certificate(certificate)
    begins, ends = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    return (ends - datetime.now(UTC)) / (ends - begins)


def uris_and_hosts(certificate: bytes) -> tuple[list[str], set[str]]:
    """Returns what a certificate names."""
    parsed = x509.load_pem_x509_certificate(certificate)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    hosts += [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    return names.get_values_for_type(x509.UniformResourceIdentifier), set(hosts)


def is_signed_by(certificate: bytes, authority: bytes) -> bool:
    """Whether an authority's key signed a certificate."""
    parsed = x509.load_pem_x509_certificate(certificate)
    try:
        parsed.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except Exception:  # of several kinds, by what differs
        return False
    return True


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
