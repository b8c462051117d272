"""A gRPC server whose every method lets in only who has a key, those of tomorrow included."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from cogitate.gateway.doors import Doors


class Guarded:
    """What services register at instead of the server itself."""

    def __init__(self, server: grpc.aio.Server, doors: Doors) -> None:
        self._server, self._doors = server, doors

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Registers handlers, each behind the doors."""
        behind = [_Behind(handler, self._doors) for handler in handlers]
        self._server.add_generic_rpc_handlers(behind)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Left out: grpc.aio does not use them, and they would go past the doors."""


class _Behind(grpc.GenericRpcHandler):
    def __init__(self, inner: grpc.GenericRpcHandler, doors: Doors) -> None:
        self._inner, self._doors = inner, doors

    def service(self, handler_call_details: Any) -> Any:
        handler: Any = self._inner.service(handler_call_details)
        if handler is None:
            return None
        sides = (handler.request_streaming, handler.response_streaming)
        kind = "_".join("stream" if streaming else "unary" for streaming in sides)
        behaviour = getattr(handler, kind)
        wrap = self._stream if handler.response_streaming else self._unary
        rewrap: Callable[..., Any] = getattr(grpc, f"{kind}_rpc_method_handler")
        return rewrap(
            wrap(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _stream(self, behaviour: Any) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._doors.prepare(_authorization(context))
            with self._doors.enter(_authorization(context)):
                async with aclosing(behaviour(request, context)) as messages:
                    async for message in messages:
                        yield message

        return stream

    def _unary(self, behaviour: Any) -> Any:
        async def unary(request: Any, context: Any) -> Any:
            await self._doors.prepare(_authorization(context))
            with self._doors.enter(_authorization(context)):
                return await behaviour(request, context)

        return unary


def _authorization(context: Any) -> str | None:
    found = [v for k, v in context.invocation_metadata() or () if k == "authorization"]
    return str(found[0]) if len(found) == 1 else None
