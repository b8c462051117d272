"""Who signs tokens: keys of every kind, their JWKS, and a server that tells it and counts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://issuer.test", "cogitate"
KINDS = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}
KINDS["EdDSA"] = jwt.algorithms.OKPAlgorithm


@cache
def key(algorithm: str = "ES256", name: str = "one") -> Any:
    """A private key; the same for the same name."""
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def jwk(algorithm: str = "ES256", name: str = "one") -> dict[str, Any]:
    """The public half, called by algorithm and name."""
    told = KINDS[algorithm].to_jwk(key(algorithm, name).public_key(), as_dict=True)
    return {**told, "kid": f"{algorithm}-{name}", "use": "sig"}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys or [jwk(one) for one in KINDS]}).encode()


def public_pem(algorithm: str = "RS256") -> bytes:
    """What an attacker knows of a key."""
    found: bytes = (
        key(algorithm)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return found


def claims(**changed: Any) -> dict[str, Any]:
    """Good claims of the tenant ada; None leaves one out."""
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": int(time.time()) + 600}
    return {name: value for name, value in (told | changed).items() if value is not None}


def token(
    algorithm: str = "ES256",
    name: str = "one",
    *,
    header: dict[str, Any] | None = None,
    **changed: Any,
) -> str:
    """A token; a good one unless told otherwise."""
    head = {"kid": f"{algorithm}-{name}"} if header is None else header
    return jwt.encode(claims(**changed), key(algorithm, name), algorithm, headers=head)


class Told:
    """What the server answers, and how often it did."""

    def __init__(self, body: bytes) -> None:
        self.body, self.count, self.delay_s, self.status, self.url = body, 0, 0.0, 200, ""
        self.location = ""


@contextmanager
def server(body: bytes | None = None) -> Iterator[Told]:
    """Tells a JWKS over HTTP on loopback."""
    told = Told(jwks() if body is None else body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.count += 1
            time.sleep(told.delay_s)
            self.send_response(told.status)
            if told.location:
                self.send_header("location", told.location)
            self.send_header("content-length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: Any) -> None: ...

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{httpd.server_port}/jwks.json"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield told
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
