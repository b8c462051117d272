"""Traces: which spans and attributes exist, and how a service opens them.

Names come from the registries below and from nowhere else. Prompts, outputs, tool arguments and
texts of exceptions never become attributes. Without an exporter nothing is recorded: `span` then
costs a function call, and an incoming trace context is still handed on.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cogitate.kit.config import ServiceConfig
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping["Attr", str | bool | int | float]
Metadata = Iterable[tuple[str, str | bytes]]


class Span(StrEnum):
    """Every span and event there is; RPC spans beside them are named <Service>/<Method>."""

    CONTEMPLATION = "contemplate"
    LEASE = "lease"
    PLACE = "place"
    ENCODE = "encode"
    GANG = "gang"
    AGENT = "invoke_agent"
    PREFILL = "prefill"
    DECODE = "decode"
    TOOL = "execute_tool"
    BALLOT = "ballot"  # these are events on the span of a contemplation
    KILL = "kill"
    VERDICT = "verdict"
    QUEUED = "queued"  # on that of a placement


class Attr(StrEnum):
    """Every attribute there is; OpenTelemetry's own names where it has one."""

    OPERATION = "gen_ai.operation.name"
    MODEL = "gen_ai.request.model"
    AGENT_ID = "gen_ai.agent.id"
    TOOL_NAME = "gen_ai.tool.name"
    TOOL_CALL_ID = "gen_ai.tool.call.id"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    RPC_SYSTEM = "rpc.system"
    RPC_SERVICE = "rpc.service"
    RPC_METHOD = "rpc.method"
    CONTEMPLATION_ID = "cogitate.contemplation_id"
    GANG_ID = "cogitate.gang_id"
    ENDPOINT_ID = "cogitate.endpoint_id"
    PROVIDER = "cogitate.provider"
    ATTEMPT = "cogitate.attempt"
    AGENT_COUNT = "cogitate.agent_count"
    QUORUM = "cogitate.quorum"
    STRATEGY = "cogitate.strategy"
    CACHED_TOKENS = "cogitate.cached_tokens"
    BLOB_DIGEST = "cogitate.blob_digest"
    REASON = "cogitate.reason"
    WINNER_COUNT = "cogitate.winner_count"
    STEP_COUNT = "cogitate.step_count"
    STATE = "cogitate.state"
    FATE = "cogitate.fate"
    CONVERSATION_FROM = "cogitate.conversation_from"
    ERROR_TYPE = "error.type"
    PROVIDER_NAME = "gen_ai.provider.name"
    GRPC_METHOD, GRPC_TARGET, GRPC_STATUS = "grpc.method", "grpc.target", "grpc.status"


_PROPAGATOR: Final = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
_CARRIED: Final = frozenset(_PROPAGATOR.fields)
_DISABLED: Final = trace.NoOpTracer()
# The last one records; more than one only where tests run several services in one process.
_active: list[Telemetry] = []


class Telemetry:
    """The exporters of one service."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self.tracer = provider.get_tracer("cogitate") if provider else _DISABLED

    def shutdown(self) -> None:
        """Sends what is queued and stops. Blocks for seconds at most; may be called twice."""
        if self in _active and self._provider is not None:
            _active.remove(self)
            self._provider.shutdown()


def setup(service_name: str, config: ServiceConfig) -> Telemetry:
    """Starts exporting spans as `config` says; does nothing when it names no destination."""
    endpoint = config.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    telemetry = Telemetry(_provider(service_name, endpoint, config))
    if telemetry.tracer is not _DISABLED:
        _active.append(telemetry)
    return telemetry


def _provider(name: str, endpoint: str, config: ServiceConfig) -> TracerProvider | None:
    if not endpoint and not config.trace_store:
        return None
    from cogitate.kit.span_sender import provider

    return provider(name, endpoint, config.trace_store, config.otlp_kept_span_count)


def tracer() -> trace.Tracer:
    """Returns the tracer in use; one that records nothing when there is no exporter."""
    return _active[-1].tracer if _active else _DISABLED


def start_span(
    name: str,
    attributes: Attributes | None = None,
    *,
    parent: trace.Span | str | None = None,
    parent_metadata: Metadata | None = None,
    start_time: int | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> trace.Span:
    """Starts a span that the caller ends by `.end()`; it is not made current.

    The parent is `parent` (a span or a traceparent), else what `parent_metadata` carries, else the
    current span. `start_time`: nanoseconds since the Unix epoch.
    """
    carried = (("traceparent", parent),) if isinstance(parent, str) else parent_metadata
    context = None if carried is None else span_from(carried)
    if isinstance(parent, trace.Span):
        context = trace.set_span_in_context(parent, Context())
    values: Any = attributes  # the SDK's type knows no StrEnum keys
    return tracer().start_span(name, context, kind, values, start_time=start_time)


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[trace.Span]:
    """Runs the body in a span of its own; an exception marks it as failed, by type only."""
    if not _active and parent is None:
        yield trace.get_current_span()
        return
    opened = start_span(name, attributes, parent=parent, kind=kind)
    try:
        with use(opened):
            yield opened
    except BaseException as error:
        fail(opened, error)
        raise
    finally:
        opened.end()


@contextmanager
def use(opened: trace.Span) -> Iterator[trace.Span]:
    """Makes a span current, for children and outgoing calls, without ending it."""
    with trace.use_span(opened, record_exception=False, set_status_on_exception=False):
        yield opened


@contextmanager
def remote_context(metadata: Metadata) -> Iterator[None]:
    """Makes the trace context and baggage an RPC brought current."""
    token = otel_context.attach(span_from(metadata))
    try:
        yield
    finally:
        otel_context.detach(token)


def event(name: str, attributes: Attributes | None = None, *, on: trace.Span | None = None) -> None:
    """Adds an event to `on`, or to the current span."""
    (on or trace.get_current_span()).add_event(name, attributes)  # type: ignore[arg-type]


def fail(opened: trace.Span, error: BaseException) -> None:
    """Marks a span as failed; the reason or the type is recorded, never the text."""
    reason = str(getattr(error, "reason", type(error).__name__))
    opened.set_attribute(Attr.REASON, reason)
    opened.set_status(StatusCode.ERROR, reason)


def span_from(metadata: Metadata) -> Context:
    """Returns the context that an RPC's metadata carries; garbage in it is ignored."""
    carrier = {k: v for k, v in metadata if k in _CARRIED and isinstance(v, str)}
    return _PROPAGATOR.extract(carrier, context=Context())


def trace_metadata(context: Context | None = None) -> list[tuple[str, str]]:
    """Returns the current trace context and baggage as metadata of a call; empty when none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=context)
    return list(carrier.items())


def current_traceparent() -> str:
    """Returns the W3C traceparent of the current span, or an empty string."""
    return traceparent_of(trace.get_current_span())


def asking_traceparent() -> str:
    """Returns the W3C traceparent of whoever called this service, else of the current span."""
    current = trace.get_current_span()
    return _traceparent(getattr(current, "parent", None) or current.get_span_context())


def traceparent_of(opened: trace.Span) -> str:
    """Returns the W3C traceparent that makes another span a child of this one."""
    return _traceparent(opened.get_span_context())


def _traceparent(ids: trace.SpanContext) -> str:
    # By hand: every agent of a gang gets one, and the propagator takes ten times as long.
    made = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"
    return made if ids.is_valid else ""


def stack_of(error: BaseException) -> str:
    """Returns an exception's type and stack on one line, without any value it holds."""
    frames = traceback.extract_tb(error.__traceback__)
    places = (f"{os.path.basename(f.filename)}:{f.lineno}:{f.name}" for f in frames)
    return f"{type(error).__name__} at {' > '.join(places)}"
