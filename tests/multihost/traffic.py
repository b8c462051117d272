"""Bytes between sites: what crossed in a span of time, and what a plainer mesh would send."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cogitate.v1 import agent_decoder_service_pb2 as pb

from tests.multihost.layout import DESK, TRAFFIC
from tests.multihost.load import Story

Counts = list[dict[str, Any]]
Table = dict[str, dict[str, int]]  # pair of sites, then whose traffic: bytes

UNKNOWN: Final = "other"
# Around a message that is sent alone: IPv4, TCP with time stamps, a frame of HTTP/2, gRPC's prefix;
# and the packet that acknowledges it.
ALONE_BYTES: Final = 20 + 32 + 9 + 5 + 52
# Embeddings of mini's views, of 192 numbers of four bytes: of a whole picture, of a crop.
WHOLE_ROWS: Final = 16
CROP_ROWS: Final = 4
ROW_BYTES: Final = 192 * 4


def between(before: Counts, after: Counts, what: int = 1) -> Table:
    """Bytes (or, with ``what`` 0, packets) meanwhile; the desk, where the clients are, left out."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sign, counts in ((-1, before), (1, after)):
        for one in counts:
            if DESK in (one["from"], one["to"]):
                continue
            for port, numbers in one["ports"].items():
                name = TRAFFIC.get(int(port), UNKNOWN)
                table[f"{one['from']} to {one['to']}"][name] += sign * numbers[what]
    return {pair: {k: v for k, v in sorted(of.items()) if v} for pair, of in table.items()}


def per_contemplation(busy: Table, idle: Table, ratio: float, num: int) -> Table:
    """What one contemplation added to what an idle mesh sends; ``ratio`` is of their durations."""
    return {
        pair: {
            name: round((size - idle.get(pair, {}).get(name, 0) * ratio) / num)
            for name, size in of.items()
        }
        for pair, of in busy.items()
    }


def sums(table: Table) -> Mapping[str, int]:
    """By service, over all pairs."""
    found: dict[str, int] = defaultdict(int)
    for of in table.values():
        for name, size in of.items():
            found[name] += size
    return dict(sorted(found.items()))


def plainer(stories: Sequence[Story], agents: int) -> dict[str, Any]:
    """What a mesh would send whose agents are requests of their own, all at another site.

    A message for each token of each agent, computed from the very message (one agent's step, one
    token of mean length), and to each agent the embeddings of the picture and of its crops.
    """
    tokens = statistics.mean(story.num_tokens for story in stories)
    zooms = statistics.mean(story.num_zooms for story in stories)
    delta = pb.AgentDelta(
        agent_id=1, attempt=1, token_offset=20, token_ids=[300], text="word", logprobs=[-0.5]
    )
    message = pb.DecodeResponse(step=pb.GangStep(step_offset=20, deltas=[delta])).ByteSize()
    rows = agents * WHOLE_ROWS + zooms * CROP_ROWS
    return {
        "tokens": round(tokens, 1),
        "zooms": round(zooms, 1),
        "bytes_of_a_token": message + ALONE_BYTES,
        "bytes_of_tokens": round(tokens * (message + ALONE_BYTES)),
        "bytes_of_embeddings": round(rows * ROW_BYTES),
    }


def spread(stories: Sequence[Story]) -> dict[str, int]:
    """How many endpoints of one site a contemplation used: each gets by itself what it needs."""
    most = Counter(
        max(Counter(one.rpartition("-")[0] for one in story.endpoints).values(), default=0)
        for story in stories
    )
    return {f"{count} of a site": number for count, number in sorted(most.items())}
