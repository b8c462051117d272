"""What every service did for one contemplation, from the store of spans of this machine.

A trace may be shared: a client that brings a traceparent of its own can name any trace. So what is
told is not the trace but the contemplation's part of it (test_gateway_traces):

1. its spans and what is below them, but for what belongs to another contemplation;
2. above them the servers that handed the question on, up to the gateway's span and no further.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cogitate.kit.telemetry import Attr
from cogitate.kit.trace_store import StoredSpan, TraceStore
from cogitate.v1 import gateway_service_pb2 as pb2
from google.protobuf.timestamp_pb2 import Timestamp

# What tells spans of one name apart. Nothing else of a span leaves the mesh.
TOLD: Final = (
    Attr.AGENT_ID,
    Attr.TOOL_NAME,
    Attr.ENDPOINT_ID,
    Attr.QUORUM,
    Attr.REASON,
)


def read(path: str, trace_id: str, contemplation_id: str, limit: int) -> pb2.GetTraceResponse:
    """Returns the contemplation's spans; blocks while it reads. An empty path is no store."""
    if not path:
        return pb2.GetTraceResponse()
    found = part(TraceStore(Path(path)).spans(trace_id) if trace_id else (), contemplation_id)
    return pb2.GetTraceResponse(
        spans=[_span(one) for one in found[:limit]],
        is_stored=True,
        is_truncated=len(found) > limit,
    )


def part(spans: Sequence[StoredSpan], contemplation_id: str) -> list[StoredSpan]:
    """Returns the spans of the contemplation, in the order given."""
    by_id = {span.span_id: span for span in spans}
    below: dict[str, list[StoredSpan]] = defaultdict(list)
    for span in spans:
        below[span.parent_id].append(span)

    def owner(span: StoredSpan) -> str:
        return str(span.attributes.get(Attr.CONTEMPLATION_ID, contemplation_id))

    tops = [s for s in spans if s.attributes.get(Attr.CONTEMPLATION_ID) == contemplation_id]
    pending = [_door(top, by_id) for top in tops]
    kept: set[str] = set()
    while pending:
        span = pending.pop()
        if span.span_id not in kept and owner(span) == contemplation_id:
            kept.add(span.span_id)
            pending += below[span.span_id]
    return [span for span in spans if span.span_id in kept]


def _door(span: StoredSpan, by_id: Mapping[str, StoredSpan]) -> StoredSpan:
    """Returns the highest span above that is a server's, the gateway's at most."""
    while span.service != "gateway":
        above = by_id.get(span.parent_id)
        if above is None or above.kind != "SERVER" or above.service not in _ON_THE_WAY:
            return span
        span = above
    return span


# Who hands a question on.
_ON_THE_WAY: Final = ("gateway", "aggregator")


def _span(span: StoredSpan) -> pb2.TraceSpan:
    return pb2.TraceSpan(
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        service=span.service,
        name=span.name,
        start_time=_time(span.start_ns),
        end_time=_time(span.end_ns),
        failed=span.status == "ERROR",
        attributes=_told(span.attributes),
        moments=[
            pb2.TraceMoment(
                name=event.name, time=_time(event.time_ns), attributes=_told(event.attributes)
            )
            for event in span.events
        ],
    )


def _told(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(attributes[name]) for name in TOLD if name in attributes}


def _time(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // 10**9, nanos=ns % 10**9)
