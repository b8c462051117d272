"""Metrics: how a service fills the instruments of the registry, and where they go.

Hot paths bump plain numbers of their own, and `observe` reads them once a collection, on the
exporter's thread. Without an exporter there are no instruments and every call returns at once.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cogitate.kit.config import ServiceConfig
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr, Attributes, stack_of
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader

logger = logging.getLogger(__name__)

# A number, or one for each set of attributes.
Reading = float | Sequence[tuple[float, Attributes]]
Readings = Mapping[Metric, Reading]

# The last one is filled; more than one only where tests run several services in one process.
_active: list[Metrics] = []


class Metrics:
    """The instruments and exporters of one service."""

    def __init__(
        self, provider: MeterProvider | None, scrapes: Callable[[], None] = lambda: None
    ) -> None:
        self._provider, self._end_scrapes = provider, scrapes
        self._meter: Any = provider.get_meter("cogitate") if provider else None
        self._histograms: dict[Metric, Any] = {}

    def record(
        self, metric: Metric, value: float, attributes: Attributes | None, span: trace.Span | None
    ) -> None:
        """Adds one value to a histogram, and its span as an exemplar if that is sampled."""
        if metric not in self._histograms:
            self._histograms[metric] = self._meter.create_histogram(
                metric.key,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=list(metric.bounds),
            )
        context = trace.set_span_in_context(span) if span is not None else None
        self._histograms[metric].record(value, attributes, context)

    def observe(self, metrics: Sequence[Metric], read: Callable[[], Readings]) -> None:
        """Has counters and gauges read when they are collected."""
        latest: Readings = {}

        def callback(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
            def collect(options: CallbackOptions) -> Iterable[Observation]:
                nonlocal latest
                # Instruments are collected in order: all show the same moment.
                if metric is metrics[0]:
                    latest = _guarded(read)
                return _observations(latest.get(metric, ()))

            return collect

        for metric in metrics:
            make = getattr(self._meter, f"create_observable_{metric.kind}")
            make(metric.key, [callback(metric)], metric.unit, metric.description)

    def shutdown(self) -> None:
        """Sends what there is and stops. Blocks for seconds at most; may be called twice."""
        if self in _active and self._provider is not None:
            _active.remove(self)
            self._end_scrapes()
            self._provider.shutdown(timeout_millis=4000)


def setup(
    service_name: str, config: ServiceConfig, readers: Sequence[MetricReader] = ()
) -> Metrics:
    """Starts exporting metrics where spans go by OTLP, and for Prometheus to scrape; neither is
    on unless the configuration says where.

    `readers` are further ones, such as an in-memory reader whose `values` can be asked for.
    """
    endpoint = config.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    endpoint = endpoint if config.metrics_interval_s else ""
    if not endpoint and not readers and not config.prometheus_listen:
        return Metrics(None)
    from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
    from opentelemetry.sdk.resources import Resource

    all_readers = [*readers, *([_otlp(endpoint, config.metrics_interval_s)] if endpoint else [])]
    end_scrapes: Callable[[], None] = lambda: None  # noqa: E731
    if config.prometheus_listen:
        reader, end_scrapes = _prometheus(config.prometheus_listen)
        all_readers.append(reader)
    identity = {"service.name": service_name, "service.instance.id": uuid.uuid4().hex}
    provider = MeterProvider(
        all_readers,
        Resource.create(identity),
        exemplar_filter=TraceBasedExemplarFilter(),
        shutdown_on_exit=False,
    )
    _active.append(Metrics(provider, end_scrapes))
    return _active[-1]


def _otlp(endpoint: str, interval_s: float) -> MetricReader:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    # As for spans: a backend that is away must not hold up the end of the process.
    plain = not endpoint.startswith("https")
    exporter = OTLPMetricExporter(endpoint=endpoint, insecure=plain, timeout=2)
    return PeriodicExportingMetricReader(exporter, interval_s * 1000)


def _prometheus(listen: str) -> tuple[MetricReader, Callable[[], None]]:
    """Serves the text that Prometheus reads, on threads of its own. Raises OSError."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import CollectorRegistry, start_http_server

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise OSError(f"prometheus_listen cannot be {listen}: not host:port")
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError:
        raise OSError(f"prometheus_listen: cannot listen on {listen}; is it in use?") from None
    logger.info("metrics for Prometheus at http://%s:%d/metrics", host, server.server_port)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join(2)

    return reader, end


def enabled() -> bool:
    """Whether anybody collects."""
    return bool(_active)


def record(
    metric: Metric,
    value: float,
    attributes: Attributes | None = None,
    *,
    span: trace.Span | None = None,
) -> None:
    """Adds one value to a histogram. Its exemplar is `span`, else the current one."""
    if _active:
        _active[-1].record(metric, value, attributes, span)


def observe(metrics: Sequence[Metric], read: Callable[[], Readings]) -> None:
    """Has `read` called once a collection, on another thread, for the counters and gauges named.

    A metric that `read` leaves out has no value then. If it raises none has, and that is logged.
    """
    if _active:
        _active[-1].observe(metrics, read)


def values(reader: Any) -> dict[str, list[tuple[dict[str, Any], Any]]]:
    """Collects from an in-memory reader: by name, attributes and number or histogram."""
    data = reader.get_metrics_data()
    found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for resource in data.resource_metrics if data else ():
        for metric in (m for scope in resource.scope_metrics for m in scope.metrics):
            found[metric.name] = [
                (dict(point.attributes or {}), getattr(point, "value", point))
                for point in metric.data.data_points
            ]
    return found


def states(**counts: float) -> Reading:
    """A reading of one number a state."""
    return [(count, {Attr.STATE: state}) for state, count in counts.items()]


def _guarded(read: Callable[[], Readings]) -> Readings:
    try:
        return read()
    except Exception as error:
        logger.error("metrics could not be read: %s", stack_of(error))
        return {}


def _observations(reading: Reading) -> list[Observation]:
    if isinstance(reading, int | float):
        return [Observation(reading)]
    return [
        Observation(value, {str(key): what for key, what in attributes.items()})
        for value, attributes in reading
    ]
