"""What happens around every RPC a service answers: limits, identity, a span, errors.

One class wraps all four kinds of handlers, async generators and users of context.read/write alike.
grpc.aio runs each as one task, so the scopes opened here hold for all the handler awaits.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from cogitate.kit import auth, channels, telemetry
from cogitate.kit.access import Check
from cogitate.kit.calls import Sizes
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import (
    CogitateError,
    DeadlineExceeded,
    InvalidRequest,
    NoEndpoint,
    Rejected,
)
from cogitate.kit.telemetry import Attr
from google.protobuf.message import DecodeError
from opentelemetry import trace

if TYPE_CHECKING:
    from cogitate.kit.orca import Rpc, ServerLoad

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
Handler = Callable[[Any, Any], Any]
Metadata = Sequence[tuple[str, str | bytes]]
Ready = Callable[[], bool]

# Probes and tools must work whatever state the service is in, and are no news in a trace.
_EXEMPT: Final = ("/grpc.health.", "/grpc.reflection.")
_LONG_LIVED: Final = "__cogitate_long_lived__"
# A stalled peer makes the abort itself wait.
_ABORT_TIMEOUT_S: Final = 1.0


def server_interceptors(
    config: ServiceConfig, load: ServerLoad, ready: Ready, allow: Check
) -> list[grpc.aio.ServerInterceptor]:
    """Returns the interceptors of a server; RPCs are refused until `ready()`, or by `allow`."""
    return [_Boundary(config, load, ready, allow)]


def long_lived(method: F) -> F:
    """Marks a servicer's method as one without a deadline of its own, such as a report stream.

    A deadline the client sends still holds.
    """
    setattr(method, _LONG_LIVED, True)
    return method


class _Boundary(grpc.aio.ServerInterceptor):
    """Wraps handlers; keeps nothing between RPCs."""

    def __init__(self, config: ServiceConfig, load: ServerLoad, ready: Ready, allow: Check) -> None:
        self._config, self._load, self._ready, self._allow = config, load, ready, allow

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler wrapped, or as it is for health and reflection."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_EXEMPT):
            return handler
        return self._wrap(handler, method, tuple(handler_call_details.invocation_metadata or ()))

    def _wrap(
        self, handler: Any, method: str, metadata: Metadata
    ) -> grpc.RpcMethodHandler[Any, Any]:
        sides = (handler.request_streaming, handler.response_streaming)
        kind = "_".join("stream" if streaming else "unary" for streaming in sides)
        behaviour: Handler = getattr(handler, kind)
        sizes = Sizes()
        decode = sizes.receiving(_decoder(handler.request_deserializer))
        encode = sizes.sending(handler.response_serializer)

        async def call(request: Any, context: Any) -> Any:
            # A single message is decoded, and encoded, here and not by grpc.aio, which would send
            # the text of an error in either to the peer.
            if not handler.request_streaming:
                request = decode(request)
            result = behaviour(request, context)
            if handler.response_streaming:
                return await self._stream(result, context)
            response = await result
            return b"" if response is None and context.code() else encode(response)

        async def wrapped(request: Any, context: Any) -> Any:
            with self._load.rpc(method, context, hasattr(behaviour, _LONG_LIVED), sizes) as rpc:
                return await self._guard(call, request, context, method, metadata, behaviour, rpc)

        rewrap: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        return rewrap(  # type: ignore[no-any-return]
            wrapped,
            request_deserializer=decode if handler.request_streaming else None,
            response_serializer=encode if handler.response_streaming else None,
        )

    async def _stream(self, result: Any, context: Any) -> None:
        if inspect.isawaitable(result):
            await result  # writes by itself
            return
        # grpc.aio leaves a cancelled generator, with all it holds, to the garbage collector.
        async with aclosing(result) as messages:
            async for message in messages:
                try:
                    async with asyncio.timeout(self._config.write_stall_s):
                        await context.write(message)
                except TimeoutError:
                    raise Rejected(
                        "the reader does not keep up with the stream", reason="EVICTED"
                    ) from None

    async def _guard(
        self, call: Handler, request: Any, context: Any,
        method: str, metadata: Metadata, behaviour: Handler, rpc: Rpc,
    ) -> Any:  # fmt: skip
        given_s: float | None = context.time_remaining()
        limit_s = self._limit_s(given_s, behaviour)
        with _server_span(method, metadata) as rpc.span:
            try:
                self._allow(context, method)
                self._admit(metadata)
                with ExitStack() as scopes:
                    tenant = dict(metadata).get(auth.TENANT_METADATA_KEY, auth.DEFAULT_TENANT)
                    scopes.enter_context(auth.tenant_scope(str(tenant)))
                    scopes.enter_context(channels.deadline_scope(limit_s))
                    imposed_s = None if limit_s == given_s else limit_s  # its own gRPC imposes
                    return await _limited(call(request, context), imposed_s)
            except (Exception, asyncio.CancelledError) as raised:
                cause = _cause(raised)
                if _is_transports_own(cause):
                    raise cause from None
                error = _translate(cause, method)
                telemetry.fail(rpc.span, error)
        # Outside of the handler's own `finally`s: it holds nothing any more.
        return await _abort(context, error)

    def _limit_s(self, given_s: float | None, behaviour: Handler) -> float | None:
        if getattr(behaviour, _LONG_LIVED, False):
            return given_s
        longest = self._config.default_deadline_s
        return longest if given_s is None else min(given_s, longest)

    def _admit(self, metadata: Metadata) -> None:
        if not self._ready():
            raise NoEndpoint("the service is starting", reason="UNAVAILABLE")
        # The transport's own limit holds only once the peer has acknowledged the settings; a first
        # flight of 4 MB got through. 32 per entry is HTTP/2's accounting.
        size = sum(len(key) + len(value) + 32 for key, value in metadata)
        if size > self._config.max_metadata_bytes:
            raise Rejected("the metadata is too large")


async def _limited(work: Awaitable[Any], limit_s: float | None) -> Any:
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded("the deadline of the request passed") from None
        raise


@contextmanager
def _server_span(method: str, metadata: Metadata) -> Iterator[trace.Span]:
    with telemetry.remote_context(metadata):
        service, _, name = method.lstrip("/").rpartition("/")
        attributes = {Attr.RPC_SYSTEM: "grpc", Attr.RPC_SERVICE: service, Attr.RPC_METHOD: name}
        short = f"{service.rpartition('.')[2]}/{name}"
        with telemetry.span(short, attributes, kind=trace.SpanKind.SERVER) as span:
            yield span


def _decoder(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def decode(raw: bytes) -> Any:
        try:
            return deserialize(raw) if deserialize else raw
        except (DecodeError, UnicodeDecodeError):
            raise InvalidRequest("the request is not a valid message") from None

    return decode


def _cause(raised: BaseException) -> BaseException:
    """Returns the one exception an ExceptionGroup stands for.

    An abort that was already made beats everything; then the first member that is no cancellation,
    since a TaskGroup lists its members in the order they failed and later ones are mostly its
    consequences; then whatever there is.
    """
    if not isinstance(raised, BaseExceptionGroup):
        return raised
    members = [_cause(member) for member in raised.exceptions]
    for member in members:
        if isinstance(member, grpc.aio.AbortError):
            return member
    failures = [m for m in members if not isinstance(m, asyncio.CancelledError)]
    return (failures or members)[0]


def _is_transports_own(error: BaseException) -> bool:
    if isinstance(error, asyncio.CancelledError):
        # Nobody cancelled this task: the handler awaited something that was. Left alone, grpc.aio
        # would never answer and the client would hang to its deadline.
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    # An abort, or a write to a call that is over. The other two are bugs and carry text.
    if type(error).__name__ == "ExecuteBatchError":  # the peer left while it was written to
        return True
    bugs = (grpc.aio.UsageError, grpc.aio.InternalError)
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, bugs)


def _translate(error: BaseException, method: str) -> CogitateError:
    if isinstance(error, CogitateError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return channels.from_rpc_error(error)
    id = uuid.uuid4().hex[:12]
    logger.error("incident %s in %s: %s", id, method, telemetry.stack_of(error))
    return CogitateError(f"internal error (incident {id})", metadata={"incident": id})


async def _abort(context: Any, error: CogitateError) -> None:
    code, message, trailers = channels.to_status(error)
    try:
        async with asyncio.timeout(_ABORT_TIMEOUT_S):
            await context.abort(code, message, trailers)
    except TimeoutError:
        # The status is queued behind what the peer does not read. grpc.aio knows of the abort and
        # ends the task when this returns; the call ends with its deadline or the keepalive.
        logger.warning("a stalled peer did not take its status")
