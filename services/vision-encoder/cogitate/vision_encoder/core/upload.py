"""Takes a file in pieces, within its limit from the first byte on."""

from __future__ import annotations

import hashlib

from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core.image_header import TOO_MANY_BYTES
from cogitate.vision_encoder.core.types import bad_image

MAX_CHUNK_BYTES = 1024 * 1024


class Upload:
    """One file being received. Holds at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._hash = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        """Appends. Raises InvalidRequest if the chunk or what there is now is too large."""
        if len(chunk) > MAX_CHUNK_BYTES:
            raise InvalidRequest(f"a chunk has at most {MAX_CHUNK_BYTES} bytes", field="chunk")
        if len(self._data) + len(chunk) > self._max_bytes:
            raise bad_image(TOO_MANY_BYTES)
        self._data += chunk
        self._hash.update(chunk)

    def finish(self, expected_digest: str) -> tuple[str, bytes]:
        """Returns the digest and the file. Raises InvalidRequest if another was expected."""
        digest = f"sha256:{self._hash.hexdigest()}"
        if expected_digest and digest != expected_digest:
            raise InvalidRequest("the bytes are not those of the digest", field="expected_digest")
        return digest, bytes(self._data)
