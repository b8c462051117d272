"""Bytes between sites: what crossed in a span of time, and what a plainer mesh would send."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from cogitate.evals.question import Question
from cogitate.kit.telemetry import Attr, Span
from cogitate.kit.trace_store import StoredSpan, TraceStore
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import tool_executor_service_pb2 as tools_pb
from cogitate.v1 import vision_encoder_service_pb2 as vision_pb
from cogitate.v1.tool_executor_service_pb2_grpc import ToolExecutorServiceStub
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub

from tests.bench.report import summary
from tests.multihost.layout import AURORA, BOREALIS, DESK, HOME, TRAFFIC
from tests.multihost.load import Story
from tests.multihost.mesh import Mesh
from tests.multihost.traces import SETTLE_S

Counts = list[dict[str, Any]]
Table = dict[str, dict[str, int]]  # pair of sites, then whose traffic: bytes

UNKNOWN: Final = "other"
# Around a message that is sent alone: IPv4, TCP with time stamps, a frame of HTTP/2, gRPC's prefix;
# and the packet that acknowledges it.
ALONE_BYTES: Final = 20 + 32 + 9 + 5 + 52
# Embeddings of mini's views, of 192 numbers of four bytes: of a whole picture, of a crop.
WHOLE_ROWS: Final = 16
CROP_ROWS: Final = 4
# Where an endpoint had a conversation from, and the method by which it asks another for it.
NAMES: Final = {"opening": "sent_within", "endpoint": "fetched", "here": "kept", "": "missing"}
FETCH: Final = "AgentDecoderService/FetchConversation"
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


def pictures(mesh: Mesh, questions: Sequence[Question]) -> dict[str, Any]:
    """What was asked of each site's vision-encoders, and what of it they fetched from home."""
    files = [len(file) for question in questions for file in question.pictures()]
    found: dict[str, Any] = {"pictures": len(files), "mean_bytes": round(statistics.mean(files))}
    for one in mesh.layout.of("vision-encoder"):
        with grpc.insecure_channel(one.address, [("grpc.enable_http_proxy", 0)]) as channel:
            info: Any = VisionEncoderServiceStub(channel).GetEncoderInfo(
                vision_pb.GetEncoderInfoRequest(), timeout=5
            )
        numbers = {
            "views_asked_of": info.cached_view_count
            + info.encoded_view_count
            + info.fetched_embedding_count,
            "views_encoded": info.encoded_view_count,
            "embeddings_fetched": info.fetched_embedding_count,
            "images_fetched": info.fetched_blob_count,
        }
        of_site = found.setdefault(one.site, dict.fromkeys(numbers, 0))
        found[one.site] = {name: of_site[name] + number for name, number in numbers.items()}
    return found


def crossed_once(found: Mapping[str, Any]) -> bool:
    """Whether nobody but the sites' encoders asked home, and none of them twice for the same.

    Home encodes each view once, so there are as many views as it encoded.
    """
    home = found[HOME]
    sites = [of for site, of in found.items() if site != HOME and isinstance(of, Mapping)]
    once = all(
        of["embeddings_fetched"] <= home["views_encoded"]
        and of["images_fetched"] <= found["pictures"]
        for of in sites
    )
    return once and home["views_asked_of"] == sum(of["embeddings_fetched"] for of in sites)


def conversation_bytes(mesh: Mesh, questions: Sequence[Question]) -> int:
    """Of an opening, the mean size of what is the same for all agents: conversation and tools."""
    [one, *_] = mesh.layout.of("tool-executor")
    with grpc.insecure_channel(one.address, [("grpc.enable_http_proxy", 0)]) as channel:
        listed: Any = ToolExecutorServiceStub(channel).ListTools(
            tools_pb.ListToolsRequest(), timeout=5
        )
    image = common.Part(image=common.ImagePart(digest="sha256:" + "0" * 64))
    sizes = [
        pb.OpenGang(
            conversation=[common.Message(
                role=common.ROLE_USER, parts=[image, common.Part(text=question.text)]
            )],
            tools=listed.tools,
        ).ByteSize()
        for question in questions
    ]  # fmt: skip
    return round(statistics.mean(sizes))


def spread(stories: Sequence[Story]) -> dict[str, int]:
    """How many endpoints of one site a contemplation used: each gets by itself what it needs."""
    most = Counter(
        max(Counter(one.rpartition("-")[0] for one in story.endpoints).values(), default=0)
        for story in stories
    )
    return {f"{count} of a site": number for count, number in sorted(most.items())}


def conversations(store: TraceStore, stories: Sequence[Story]) -> dict[str, Any]:
    """How endpoints had the conversations, by site, from the spans of their gangs.

    ``sent``: from an aggregator at another site, so it crossed; ``sent_within``: from the site's
    own; ``fetched``: from an endpoint of the site; ``kept``: it was there; ``missing``: it did not
    come from where it was to be fetched, and was sent next. ``answered_s``: for how long the
    endpoint that had it was busy with that, or waited for it.
    """
    found: dict[str, Any] = {
        "contemplations": len(stories), "at_two_endpoints_of_a_site": 0, "at_two_of_another": 0,
        "crossed_twice": [],
    }  # fmt: skip
    sites = {site: Counter[str]() for site in (AURORA, BOREALIS)}
    took_s: list[float] = []
    for story in stories:
        spans = _spans(store, story)
        [owner] = {s.attributes[Attr.PROVIDER] for s in spans if s.name == Span.CONTEMPLATION}
        took_s += [(s.end_ns - s.start_ns) / 1e9 for s in spans if s.name == FETCH]
        at: dict[str, set[str]] = {site: set() for site in sites}
        crossed = Counter[str]()
        for span in spans:
            if span.name != Span.GANG:
                continue
            site = span.attributes[Attr.PROVIDER]
            where = span.attributes.get(Attr.CONVERSATION_FROM, "")
            at[site].add(span.attributes[Attr.ENDPOINT_ID])
            is_far = where == "opening" and site != owner
            crossed[site] += is_far
            name = NAMES[where]
            sites[site]["sent" if is_far else name] += 1
        two = [site for site, endpoints in at.items() if len(endpoints) > 1]
        found["at_two_endpoints_of_a_site"] += bool(two)
        found["at_two_of_another"] += any(site != owner for site in two)
        found["crossed_twice"] += [story.id for count in crossed.values() if count > 1]
    found |= {site: dict(sorted(counts.items())) for site, counts in sites.items()}
    return found | {"answered_s": summary(took_s) if took_s else {}}


def _spans(store: TraceStore, story: Story) -> list[StoredSpan]:
    """Of a contemplation, when all its gangs' have come: those of other sites are sent late."""
    ends = time.monotonic() + SETTLE_S
    while True:
        spans = list(store.spans(story.trace_id))
        there = {s.attributes.get(Attr.ENDPOINT_ID) for s in spans if s.name == Span.GANG}
        if there >= set(story.endpoints) or time.monotonic() > ends:
            return spans
        time.sleep(0.2)
