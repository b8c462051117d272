"""Takes spans of other sites by OTLP/gRPC into the store of spans at home.

    python -m tests.multihost.trace_sink 10.77.1.1:4317 traces.sqlite

The gateway tells a contemplation's trace from one file. Services at home write to it themselves.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from cogitate.kit.trace_store import StoreExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

Attributes = dict[str, Any]


class Sink(pb_grpc.TraceServiceServicer):
    """Writes each batch before it is acknowledged."""

    def __init__(self, path: Path) -> None:
        self._exporter = StoreExporter(path)
        self._lock = threading.Lock()

    def Export(
        self, request: pb.ExportTraceServiceRequest, context: Any
    ) -> pb.ExportTraceServiceResponse:
        spans = list(readable(request))
        with self._lock:
            self._exporter.export(spans)
        return pb.ExportTraceServiceResponse()


def readable(request: pb.ExportTraceServiceRequest) -> Iterable[ReadableSpan]:
    """The spans of a batch as the SDK has them."""
    for of_resource in request.resource_spans:
        resource = Resource(attributes(of_resource.resource.attributes))
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield ReadableSpan(
                    name=span.name,
                    context=_context(span.trace_id, span.span_id),
                    parent=_context(span.trace_id, span.parent_span_id),
                    resource=resource,
                    attributes=attributes(span.attributes),
                    events=[
                        Event(event.name, attributes(event.attributes), event.time_unix_nano)
                        for event in span.events
                    ],
                    kind=SpanKind(max(0, span.kind - 1)),  # 1 is INTERNAL on the wire, and 0 here
                    status=Status(StatusCode(span.status.code)),
                    start_time=span.start_time_unix_nano,
                    end_time=span.end_time_unix_nano,
                )


def attributes(pairs: Iterable[Any]) -> Attributes:
    """Scalars, and arrays of them."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(one) for one in value.array_value.values)
    return getattr(value, kind) if kind else ""


def _context(trace_id: bytes, span_id: bytes) -> SpanContext | None:
    if not span_id:
        return None
    return SpanContext(
        int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=True
    )


def main() -> None:
    address, path = sys.argv[1:]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TraceServiceServicer_to_server(Sink(Path(path)), server)
    server.add_insecure_port(address)
    server.start()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    server.stop(1.0).wait()


if __name__ == "__main__":
    main()
