"""How busy a server is, told to whoever balances by it (ORCA): in trailers, and as a stream.

Counted here for every service: RPCs running, ended and failed, and the CPU time of the process. A
service that knows better has a method `load_report`, whose fields win. Clients weigh a server by
RPCs a second over its utilisation; running RPCs over the limit are that utilisation where nothing
better is said, which makes the weight the inverse of the time an RPC takes (Little's law).
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from cogitate.kit import metrics
from cogitate.kit.calls import Sizes
from cogitate.kit.config import ServiceConfig
from cogitate.kit.interceptors import long_lived
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr
from cogitate.peers import orca_pb2, orca_service_pb2, orca_service_pb2_grpc
from opentelemetry import trace

TRAILER: Final = "endpoint-load-metrics-bin"
SERVICE_NAME: Final = orca_service_pb2.DESCRIPTOR.services_by_name["OpenRcaService"].full_name
# What the server owes its callers; a caller's own mistakes and leaving are no sign of its state.
_FAILURES: Final = frozenset(
    "UNKNOWN DEADLINE_EXCEEDED RESOURCE_EXHAUSTED ABORTED INTERNAL UNAVAILABLE DATA_LOSS".split()
)
_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
# Rates are averaged over about this time: long enough for a slow server, short for a balancer.
_MEMORY_S: Final = 2.0
_LEAST_INTERVAL_S: Final = 0.05

Read = Callable[[], orca_pb2.OrcaLoadReport]


@dataclass
class Rpc:
    """One that runs; its span is known a moment later."""

    span: trace.Span = trace.INVALID_SPAN


class ServerLoad(orca_service_pb2_grpc.OpenRcaServiceServicer):
    """The load of one server. Belongs to its event loop."""

    def __init__(
        self, config: ServiceConfig, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval_s = config.load_report_interval_s
        self._limit, self._monotonic = config.max_concurrent_rpcs, monotonic
        self._cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._read: Read | None = None
        self._stopped = asyncio.Event()
        self._running, self._ended, self._failed = 0, 0, 0
        self._started: Counter[str] = Counter()
        self._busy_s = 0.0  # RPC seconds
        self._counted_at = self._averaged_at = monotonic()
        self._totals = (0.0, 0.0, 0.0, time.process_time())
        self._rates = (0.0, 0.0, 0.0, 0.0)
        self._made_at, self._made = -math.inf, b""

    def serve(self, server: grpc.aio.Server, service: object) -> tuple[str, ...]:
        """Adds the stream of reports, if there are any; returns the names of services added."""
        self._read = getattr(service, "load_report", None)
        metrics.observe([Metric.RPCS, Metric.RPCS_STARTED], self._read_metrics)
        if not self.interval_s:
            return ()
        orca_service_pb2_grpc.add_OpenRcaServiceServicer_to_server(self, server)
        return (SERVICE_NAME,)

    def stop(self) -> None:
        """Ends the streams of reports, which would hold up the server's end."""
        self._stopped.set()

    @contextmanager
    def rpc(self, method: str, context: Any, is_long: bool, sizes: Sizes) -> Iterator[Rpc]:
        """Counts an RPC, and gives it its trailer. Streams that last are no load by themselves."""
        began, code, rpc = self._monotonic(), "CANCELLED", Rpc()
        self._started[method.lstrip("/")] += 1
        self._count(0 if is_long else 1)
        try:
            yield rpc
            code = "OK"
            if self.interval_s:
                trailers = context.trailing_metadata() or ()
                context.set_trailing_metadata((*trailers, (TRAILER, self.packed())))
        finally:
            if set_code := context.code():  # a member after an abort, else its number
                code = getattr(set_code, "name", "") or _CODES.get(set_code, "UNKNOWN")
            self._count(0 if is_long else -1)
            self._ended += not is_long
            self._failed += not is_long and code in _FAILURES
            attributes = {Attr.GRPC_METHOD: method.lstrip("/"), Attr.GRPC_STATUS: code}
            duration_s = self._monotonic() - began
            metrics.record(Metric.RPC_DURATION, duration_s, attributes, span=rpc.span)
            metrics.record(Metric.RPC_SENT, sizes.sent, attributes)
            metrics.record(Metric.RPC_RECEIVED, sizes.received, attributes)

    def report(self) -> orca_pb2.OrcaLoadReport:
        """The load now."""
        rps, eps, busy, cpu = self._averages()
        report = orca_pb2.OrcaLoadReport(
            cpu_utilization=cpu / self._cpus,
            application_utilization=busy / self._limit,
            rps_fractional=rps,
            eps=eps,
        )
        if self._read is not None:
            report.MergeFrom(self._read())
        return report

    def packed(self) -> bytes:
        """The load as it was at most `load_report_interval_s` ago, for a trailer."""
        now = self._monotonic()
        if now - self._made_at >= self.interval_s:
            self._made_at, self._made = now, self.report().SerializeToString()
        return self._made

    @long_lived
    async def StreamCoreMetrics(
        self, request: orca_service_pb2.OrcaLoadReportRequest, context: Any
    ) -> Any:
        """Reports as often as is asked, not more often than trailers are renewed."""
        asked_s = request.report_interval.seconds + request.report_interval.nanos / 1e9
        interval_s = max(asked_s, self.interval_s, _LEAST_INTERVAL_S)
        while not self._stopped.is_set():
            yield self.report()
            try:
                async with asyncio.timeout(interval_s):
                    await self._stopped.wait()
            except TimeoutError:
                continue

    def _read_metrics(self) -> metrics.Readings:
        started = self._started.copy()  # at once, by the interpreter's lock: this is another thread
        counts = [(count, {Attr.GRPC_METHOD: method}) for method, count in started.items()]
        return {Metric.RPCS: self._running, Metric.RPCS_STARTED: counts}

    def _count(self, more: int) -> None:
        now = self._monotonic()
        self._busy_s += self._running * (now - self._counted_at)
        self._counted_at = now
        self._running += more

    def _averages(self) -> tuple[float, ...]:
        """Ended, failed, running RPCs and CPUs in use, each an exponential average."""
        self._count(0)
        elapsed_s = self._counted_at - self._averaged_at
        if elapsed_s > 0:
            totals = (self._ended, self._failed, self._busy_s, time.process_time())
            newness = -math.expm1(-elapsed_s / _MEMORY_S)
            self._rates = tuple(  # type: ignore[assignment]
                old + newness * ((total - before) / elapsed_s - old)
                for old, total, before in zip(self._rates, totals, self._totals, strict=True)
            )
            self._totals, self._averaged_at = totals, self._counted_at
        return self._rates
