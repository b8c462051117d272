"""Names of full blocks by what they hold and what came before: the key of the prefix cache.

A block's name covers its tenant, every position before it and its own, so equal names mean equal
KV. Tenants never share a name, and so never see each other's timing (DESIGN, invariant 10).

Source: hash-chained blocks as in vLLM's automatic prefix caching.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cogitate.agent_decoder.core.sequence import Position


def block_names(prefix: Sequence[Position], block_size: int, salt: str) -> list[bytes]:
    """Names the full blocks of a prefix, first to last; each is a SHA-256 digest. O(positions)."""
    names: list[bytes] = []
    name = hashlib.sha256(salt.encode()).digest()
    for start in range(0, len(prefix) - block_size + 1, block_size):
        made_of = hashlib.sha256(name)
        for position in prefix[start : start + block_size]:
            made_of.update(position.token_id.to_bytes(8, "little", signed=True))
            if position.embedding is not None:
                # Length and a mark, so that no token can be mistaken for a row of an image.
                row = position.embedding.tobytes()
                made_of.update(b"\x01" + len(row).to_bytes(8, "little") + row)
        name = made_of.digest()
        names.append(name)
    return names
