"""Names things by their content: full SHA-256, every part with its length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core.types import View

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(parts: Iterable[bytes]) -> str:
    """Returns the digest of a sequence of byte strings; where one ends counts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return f"sha256:{total.hexdigest()}"


def blob_digest(data: bytes) -> str:
    """Returns the digest of a file: that of its bytes and nothing else."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def embedding_digest(build_digest: str, view: View) -> str:
    """Returns the digest of a view's embedding: of the model build, the blob and the region."""
    box = view.box
    region = b"whole" if box is None else f"{box.x0},{box.y0},{box.x1},{box.y1}".encode()
    return digest_of((build_digest.encode(), view.blob_digest.encode(), region))


def check_digest(digest: str, field: str) -> str:
    """Returns the digest as it is. Raises InvalidRequest unless it is well formed."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest('a digest is "sha256:" and 64 hex digits in lower case', field=field)
    return digest
