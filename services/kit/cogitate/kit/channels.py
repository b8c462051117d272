"""Calls between services: transport limits, the deadline that travels, errors come back as ours.

grpc.aio forwards neither deadlines nor trace context, and its documented keepalive knobs find a
frozen peer only after a minute. So every call in the mesh is made as
`stub.Encode(request, **outgoing())` on a channel of `open_channel`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypedDict, TypeVar

import grpc
from cogitate.kit import auth, metrics, renewing, telemetry
from cogitate.kit.calls import MeteredChannel
from cogitate.kit.config import MIB, ServiceConfig
from cogitate.kit.errors import CogitateError, DeadlineExceeded, from_wire
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

ERROR_DOMAIN: Final = "cogitate"
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
# Trailers share the peer's 8 KiB of metadata; a message travels in them up to three times, once
# percent-encoded and twice in base64.
_MESSAGE_BYTES: Final = 512
_VALUE_BYTES: Final = 128
_METADATA_COUNT: Final = 16

Option = tuple[str, Any]
StreamCall = TypeVar("StreamCall", bound=grpc.aio.Call)

# A frozen peer is found in keepalive_time + ping_timeout = 2.25 s at most, on either side.
# grpc.http2.ping_timeout_ms is the knob that decides: without it both of the others are ignored
# in favour of its default, 60 s. Pings are answered by the core's own threads, so a busy event
# loop does not look frozen.
_KEEPALIVE: Final[tuple[Option, ...]] = (
    ("grpc.keepalive_time_ms", 750),
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.http2.ping_timeout_ms", 1500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

# A server answers pings faster than one in 5 min with GOAWAY unless it is told otherwise here. The
# similar option with `recv` in its name is silently ignored.
SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.so_reuseport", 0),  # a second process on the port is a mistake, not a replica
)

CHANNEL_OPTIONS: Final[tuple[Option, ...]] = (
    *_KEEPALIVE,
    ("grpc.enable_retries", 0),  # retries live at one layer, the router
    ("grpc.enable_http_proxy", 0),  # the mesh is never reached through http_proxy
    ("grpc.service_config_disable_resolution", 1),
    # The defaults wait 20 s for a handshake and up to 2 min between attempts. Until the next one
    # every call fails at once: a service that is back stays unused for so long.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 250),
)

# The reader decides how far the writer may run ahead. A small fixed window stops a writer of 40 B
# events after about 2 000 of them; the default lets it write 85 000.
_STREAM_WINDOW: Final[tuple[Option, ...]] = (
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
)

_DEADLINE: ContextVar[float | None] = ContextVar("cogitate_deadline", default=None)


class MissingDeadline(RuntimeError):
    """A call was to be made without any limit: a programming error, never a caller's fault."""


class CallOptions(TypedDict):
    """The keyword arguments of a stub's call."""

    timeout: float
    metadata: tuple[tuple[str, str], ...]


def server_options(config: ServiceConfig) -> list[Option]:
    """Returns the options of a server; limits on sizes and streams come from `config`."""
    return [
        *SERVER_OPTIONS,
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", config.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", 2 * config.max_metadata_bytes),
        ("grpc.max_concurrent_streams", config.max_connection_rpcs or config.max_concurrent_rpcs),
    ]


def open_channel(
    address: str, *, max_message_bytes: int = 64 * MIB, bulk: bool = False
) -> grpc.aio.Channel:
    """Opens a channel inside the mesh; it connects on the first call, and must be closed.

    `bulk` gives up the small window of event streams for throughput: for blobs and embeddings,
    whose size is bounded by the message limit anyhow.
    """
    options = [
        *CHANNEL_OPTIONS,
        *(() if bulk else _STREAM_WINDOW),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]
    channel = renewing.open_channel(address, options)
    return MeteredChannel(channel, address) if metrics.enabled() else channel


@contextmanager
def deadline_scope(timeout_s: float | None) -> Iterator[None]:
    """Limits every call made inside to `timeout_s` from now; a scope outside still binds.

    None lifts the limit: only for work that outlives the request it was started by.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    outer = _DEADLINE.get()
    if deadline is not None and outer is not None:
        deadline = min(deadline, outer)
    token = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def remaining_s() -> float | None:
    """Returns the seconds left, 0 when they are over, None when there is no deadline."""
    deadline = _DEADLINE.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def outgoing(
    timeout_s: float | None = None,
    *,
    margin_s: float = 0.02,
    metadata: Sequence[tuple[str, str]] = (),
) -> CallOptions:
    """Returns the keyword arguments of an outgoing call: deadline, trace context, tenant.

    The timeout is the smaller of `timeout_s` and what is left less `margin_s`, which is kept for
    the answer's way back. The call ends by it exactly; the peer sees it rounded up by 3 % at most.
    Raises MissingDeadline if neither is known, DeadlineExceeded if the time is over.
    """
    left = remaining_s()
    limits = [] if left is None else [left - margin_s]
    if timeout_s is not None:
        limits.append(timeout_s)
    if not limits:
        raise MissingDeadline("an outgoing call needs a timeout or a deadline scope")
    if min(limits) <= 0:
        raise DeadlineExceeded("the deadline passed before the call was made")
    carried = [*metadata, *telemetry.trace_metadata()]
    carried.append((auth.TENANT_METADATA_KEY, auth.current_tenant()))
    return {"timeout": min(limits), "metadata": tuple(carried)}


@contextmanager
def cancelling(call: StreamCall) -> Iterator[StreamCall]:
    """Cancels a streaming call when its block is left, however it is left.

    Leaving an `async for` is not enough: the server would go on producing until the channel closes.
    """
    try:
        yield call
    finally:
        call.cancel()


def to_status(error: CogitateError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Returns an error as code, message and trailers, cut to what surely fits into the trailers."""
    message = _cut(error.message, _MESSAGE_BYTES)
    metadata = list(error.metadata.items())[:_METADATA_COUNT]
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=ERROR_DOMAIN,
            metadata={key: _cut(value, _VALUE_BYTES) for key, value in metadata},
        )
    ]
    if error.retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo())
        details[-1].retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
    if error.field is not None:
        violation = {"field": _cut(error.field, _VALUE_BYTES), "description": message}
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    code = grpc.StatusCode[error.code]
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return code, message, ((STATUS_DETAILS_KEY, status.SerializeToString()),)


def _cut(text: str, size_bytes: int) -> str:
    return text.encode(errors="replace")[:size_bytes].decode(errors="ignore")


def from_rpc_error(error: grpc.aio.AioRpcError) -> CogitateError:
    """Returns the error the peer raised, as far as it said so.

    Text is taken over only from a peer that speaks this domain; any other text may hold anything
    and is replaced.
    """
    code = error.code().name
    try:
        status = _details(error)
        info = _find(status, error_details_pb2.ErrorInfo)
        retry = _find(status, error_details_pb2.RetryInfo)
        bad_request = _find(status, error_details_pb2.BadRequest)
    except DecodeError:
        status = None
    if status is None or info is None or info.domain != ERROR_DOMAIN:
        # A call of ours that we cancel raises CancelledError: this is a server that shuts down.
        code = "UNAVAILABLE" if code == "CANCELLED" else code
        return from_wire(code, "", f"the call failed: {code}")
    violations = bad_request.field_violations if bad_request is not None else ()
    return from_wire(
        code,
        info.reason,
        status.message,
        metadata=dict(info.metadata),
        retry_after_s=None if retry is None else retry.retry_delay.ToMilliseconds() / 1000,
        field=violations[0].field if violations else None,
    )


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    packed = dict(error.trailing_metadata() or ()).get(STATUS_DETAILS_KEY)
    return status_pb2.Status.FromString(packed) if isinstance(packed, bytes) else None


def _find(status: status_pb2.Status | None, kind: type[Any]) -> Any:
    for detail in status.details if status is not None else ():
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            return message if detail.Unpack(message) else None
    return None
