"""The same services as by gRPC, for browsers: Connect and gRPC-Web, by the connectrpc library.

Every method of the public services is served at `POST /<service>/<method>`, by the very functions
gRPC calls. Events pass as the bytes they came in; only Connect's JSON reads them.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Any, Final

from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.doors import Doors
from cogitate.gateway.http import bodies
from cogitate.gateway.http.problems import HttpError, translate
from cogitate.kit import channels
from cogitate.kit.errors import CogitateError, InvalidRequest, Rejected
from connectrpc.code import Code
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2  # type: ignore[import-untyped]
from protobuf.wkt import Any as AnyMessage
from starlette.types import Message as Sent
from starlette.types import Receive, Scope, Send

PREFIX: Final = "/cogitate.v1."
_GRPC: Final = ("application/grpc", "application/grpc+proto", "application/grpc+json")
Behaviour = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Raw:
    """A message of a kind in its binary form, not parsed."""

    data: bytes
    kind: type[Message]


class Rpc:
    """An ASGI application for the paths it names; whose request it is, it asks the doors itself.

    `behaviours` are the servicers' methods by path; those of streams yield messages or their bytes.
    """

    def __init__(
        self,
        config: GatewayConfig,
        doors: Doors,
        services: Iterable[ServiceDescriptor],
        behaviours: Mapping[str, Behaviour],
    ) -> None:
        methods = {f"/{s.full_name}/{m.name}": m for s in services for m in s.methods}
        endpoints: dict[str, Any] = {
            path: _endpoint(m, behaviours[path]) for path, m in methods.items()
        }
        self.paths: Final = tuple(endpoints)
        self._config = config
        self._app = _App(
            service=None,
            endpoints=lambda _: endpoints,
            interceptors=[_Doors(doors, config)],
            read_max_bytes=config.http_max_body_bytes,
            compressions=[_Gzip()],
            codecs=[_Binary(), _Json()],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, in its own protocol from its first byte on."""
        kinds = [v for k, v in scope["headers"] if k == b"content-type"]
        kind = kinds[0].decode("latin-1").partition(";")[0].strip().lower() if kinds else ""
        if kind in _GRPC:
            raise HttpError(
                "gRPC itself is served at the gateway's gRPC port; here are Connect and gRPC-Web",
                reason="UNSUPPORTED_MEDIA_TYPE",
            )
        if not kind.startswith(("application/json", "application/proto", "application/connect+",
                                "application/grpc-web")):  # fmt: skip
            raise HttpError(
                "send application/json, application/proto, application/connect+json, "
                "application/connect+proto or application/grpc-web+proto",
                reason="UNSUPPORTED_MEDIA_TYPE",
            )
        # Requests may be compressed; answers are not: the small messages of a stream gain nothing.
        headers = [pair for pair in scope["headers"] if not pair[0].endswith(b"accept-encoding")]
        await self._app(
            {**scope, "headers": headers},
            _paced(receive, self._config),
            _hurried(send, self._config.write_stall_s),
        )


class _App(ConnectASGIApplication[None]):
    path = "/"


class _Doors:
    """Lets the caller in by the headers alone, before anything of the body is read."""

    def __init__(self, doors: Doors, config: GatewayConfig) -> None:
        self._doors, self._longest_s = doors, config.default_deadline_s

    async def on_start(self, ctx: RequestContext[Any, Any]) -> list[AbstractContextManager[Any]]:
        """Enters for the request's own task, with its deadline."""
        given = ctx.request_headers.getall("authorization")
        await self._doors.prepare(given[0] if given else None)
        limit_s = self._longest_s
        if ctx.timeout_ms is not None:
            limit_s = min(limit_s, max(0.0, ctx.timeout_ms / 1000))
        try:
            entered: list[AbstractContextManager[Any]] = []
            for scope in (
                self._doors.enter(given[0] if len(given) == 1 else None),
                channels.deadline_scope(limit_s),
            ):
                scope.__enter__()
                entered.append(scope)
        except CogitateError as error:
            raise told(error) from None
        return entered

    async def on_end(
        self,
        token: list[AbstractContextManager[Any]],
        ctx: RequestContext[Any, Any],
        error: Exception | None,
        /,
    ) -> None:
        """Leaves again."""
        for scope in reversed(token):
            scope.__exit__(None, None, None)


def told(error: CogitateError) -> ConnectError:
    """Returns the error as Connect tells it, with the same details as gRPC's."""
    _, message, ((_, packed),) = channels.to_status(error)
    details = [
        ErrorDetail(AnyMessage(type_url=one.type_url, value=one.value))
        for one in status_pb2.Status.FromString(packed).details
    ]
    code = {"CANCELLED": "canceled"}.get(error.code, error.code.lower())
    return ConnectError(Code(code), message, details)


def _endpoint(method: MethodDescriptor, behaviour: Behaviour) -> Endpoint[Any, Any]:
    request, response = (
        message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type)
    )
    sides = (method.client_streaming, method.server_streaming)
    made, kind = {
        (False, False): (Endpoint.unary, StreamType.UNARY),
        (True, False): (Endpoint.client_stream, StreamType.CLIENT_STREAM),
        (False, True): (Endpoint.server_stream, StreamType.SERVER_STREAM),
    }[sides]
    info = MethodInfo(
        name=method.name,
        service_name=method.containing_service.full_name,
        input=request,
        output=response,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )

    async def one(request: Any, ctx: Any) -> Any:
        try:
            return await behaviour(request, None)
        except Exception as raised:
            raise _told(raised) from None

    async def many(request: Any, ctx: Any) -> AsyncIterator[Any]:
        try:
            async with aclosing(behaviour(request, None)) as messages:
                async for message in messages:
                    yield Raw(message, response) if isinstance(message, bytes) else message
        except Exception as raised:
            raise _told(raised) from None

    function: Any = many if method.server_streaming else one
    endpoint: Any = made
    served: Endpoint[Any, Any] = endpoint(info, function)
    return served


def _told(raised: Exception) -> ConnectError:
    return raised if isinstance(raised, ConnectError) else told(translate(raised))


class _Gzip(GzipCompression):
    def decompress(
        self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None
    ) -> bytes:
        try:
            return super().decompress(data, read_max_bytes)
        except (OSError, EOFError, zlib.error):
            raise told(InvalidRequest("the body is not valid gzip")) from None


class _Binary:
    def name(self) -> str:
        return "proto"

    def encode(self, message: Raw | Message) -> bytes:
        return message.data if isinstance(message, Raw) else message.SerializeToString()

    def decode(self, data: bytes | bytearray, kind: type[Message]) -> Message:
        try:
            return kind.FromString(bytes(data))
        except (DecodeError, UnicodeDecodeError):
            raise told(InvalidRequest("the request is not a valid message")) from None


class _Json:
    def name(self) -> str:
        return "json"

    def encode(self, message: Raw | Message) -> bytes:
        parsed = message.kind.FromString(message.data) if isinstance(message, Raw) else message
        told = json_format.MessageToDict(parsed)
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes | bytearray, kind: type[Message]) -> Message:
        try:
            # What is not known is refused, as elsewhere over HTTP: a word mistyped is not left out.
            return json_format.Parse(bytes(data), kind())
        except (json_format.ParseError, ValueError, RecursionError):
            raise told(
                InvalidRequest(
                    f"the body is not {kind.DESCRIPTOR.full_name} in proto3 JSON, or has a field "
                    "that is not known"
                )
            ) from None


def _paced(receive: Receive, config: GatewayConfig) -> Receive:
    """Reads the body within the limits of time that every body over HTTP has."""
    began_s, size, whole = asyncio.get_running_loop().time(), 0, False
    timeout_s = config.http_read_timeout_s

    async def paced() -> Sent:
        nonlocal size, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(began_s + bodies.patience_s(timeout_s, size)):
                message = await receive()
        except TimeoutError:
            raise told(bodies.too_slow()) from None
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > config.http_max_body_bytes:
            if not whole:
                await bodies.linger(receive)
            raise told(bodies.too_large(config.http_max_body_bytes))
        return message

    return paced


def _hurried(send: Send, stall_s: float) -> Send:
    async def hurried(message: Sent) -> None:
        try:
            async with asyncio.timeout(stall_s):
                await send(message)
        except TimeoutError:
            raise Rejected(
                "the reader does not keep up with the stream", reason="EVICTED"
            ) from None

    return hurried
