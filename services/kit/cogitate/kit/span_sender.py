"""Sends finished spans by OTLP, and keeps them while they cannot be sent.

A collector may be at another site, and that site cut off for a while: what was spanned meanwhile is
what one wants to see afterwards. What is kept is tried again whenever there is something new.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from cogitate.kit.trace_store import StoreExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

# A collector that is away must not hold up the end of the process: 2 s and not 10.
TIMEOUT_S: Final = 2
BATCH: Final = 512


class SpanSender(SpanExporter):
    """Called by one thread at a time, as a batch processor does.

    At most ``max_kept`` spans wait, beside those that came last; the oldest are dropped first.
    """

    def __init__(
        self, endpoint: str, *, max_kept: int, make: Callable[[str], SpanExporter] | None = None
    ) -> None:
        self._endpoint, self._make = endpoint, make or otlp
        self._max_kept = max_kept
        self._kept: deque[ReadableSpan] = deque()
        self._exporter: SpanExporter | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends what was kept, then these. Blocks while it does."""
        self._kept.extend(spans)
        while self._kept:
            batch = [self._kept[i] for i in range(min(BATCH, len(self._kept)))]
            if self._send(batch) is not SpanExportResult.SUCCESS:
                self._drop_all_but(self._max_kept)
                return SpanExportResult.FAILURE
            for _ in batch:
                self._kept.popleft()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Tries once more, for ``TIMEOUT_S`` at most unless it goes well."""
        self.export(())
        self._close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Does nothing: what could be sent has been."""
        return True

    def _send(self, batch: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._exporter is None:
            self._exporter = self._make(self._endpoint)
        sent = self._exporter.export(batch)
        if sent is not SpanExportResult.SUCCESS:
            # Its connection may be one that stays silent long after the network is mended.
            self._close()
        return sent

    def _close(self) -> None:
        if self._exporter is not None:
            self._exporter.shutdown()
            self._exporter = None

    def _drop_all_but(self, left: int) -> None:
        if (surplus := len(self._kept) - left) > 0:
            logger.warning("%d spans were dropped: the collector is away for too long", surplus)
            for _ in range(surplus):
                self._kept.popleft()


def provider(service_name: str, endpoint: str, store: str, max_kept: int) -> TracerProvider:
    """What a service's spans are made by: sent to an endpoint, stored in a file, or both."""
    identity = {"service.name": service_name, "service.instance.id": uuid.uuid4().hex}
    made = TracerProvider(resource=Resource.create(identity), shutdown_on_exit=False)
    if endpoint:
        sender = SpanSender(endpoint, max_kept=max_kept)
        made.add_span_processor(BatchSpanProcessor(sender))
    if store:
        exporter = StoreExporter(store)
        made.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    return made


def otlp(endpoint: str) -> SpanExporter:
    """An exporter on a connection of its own."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(
        endpoint=endpoint,
        insecure=not endpoint.startswith("https"),
        timeout=TIMEOUT_S,
        channel_options=(("grpc.use_local_subchannel_pool", 1),),  # type: ignore[arg-type]
    )
