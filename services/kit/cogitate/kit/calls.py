"""What a service's own calls take, by gRPC's names for them (A66).

A channel of the mesh makes one attempt a call, so an attempt is a call. Sizes are counted where
messages become bytes and bytes become messages; the mesh compresses none, so they are what is sent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from cogitate.kit import metrics
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr

# Counted by calls, on event loops; read by the exporter, on its thread.
_started: Counter[tuple[str, str]] = Counter()
_lock: Final = threading.Lock()


@dataclass
class Sizes:
    """Bytes of one call's messages."""

    sent: int = 0
    received: int = 0

    def sending(self, serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
        """A serializer that counts; None leaves messages as they are."""

        def write(message: Any) -> bytes:
            raw: bytes = serialize(message) if serialize else message
            self.sent += len(raw)
            return raw

        return write

    def receiving(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        """The other way round."""

        def read(raw: bytes) -> Any:
            self.received += len(raw)
            return deserialize(raw) if deserialize else raw

        return read


def observe() -> None:
    """Has the calls that begin from now on be collected."""
    with _lock:
        _started.clear()
    metrics.observe([Metric.ATTEMPTS_STARTED], lambda: {Metric.ATTEMPTS_STARTED: _begun()})


def _begun() -> metrics.Reading:
    with _lock:
        return [(count, _attributes(*key)) for key, count in _started.items()]


def _attributes(method: str, target: str) -> dict[Attr, str]:
    return {Attr.GRPC_METHOD: method, Attr.GRPC_TARGET: target}


class MeteredChannel(grpc.aio.Channel):
    """A channel whose calls are counted, and measured when they end."""

    def __init__(self, channel: grpc.aio.Channel, target: str) -> None:
        self._channel, self._target = channel, target

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.__aexit__(kind, error, trace)

    async def close(self, grace: float | None = None) -> None:
        """As of any channel; so is all that follows."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._metered(self._channel.unary_unary, method, *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._metered(self._channel.unary_stream, method, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._metered(self._channel.stream_unary, method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._metered(self._channel.stream_stream, method, *args, **kwargs)

    def _metered(
        self, make: Callable[..., Any], method: str,
        request_serializer: Any = None, response_deserializer: Any = None, **options: Any,
    ) -> Callable[..., Any]:  # fmt: skip
        key = (method.lstrip("/"), self._target)

        def call(*args: Any, **kwargs: Any) -> Any:
            began, sizes = time.monotonic(), Sizes()
            # One callable a call, so that its serializers are this call's own.
            write, read = sizes.sending(request_serializer), sizes.receiving(response_deserializer)
            made = make(method, write, read, **options)(*args, **kwargs)
            with _lock:
                _started[key] += 1
            loop = asyncio.get_running_loop()
            made.add_done_callback(lambda ended: _record(loop, key, ended, began, sizes))
            return made

        return call


def _record(
    loop: asyncio.AbstractEventLoop, key: tuple[str, str], ended: Any, began: float, sizes: Sizes
) -> None:
    attributes = {**_attributes(*key), Attr.GRPC_STATUS: _status(ended)}
    metrics.record(Metric.ATTEMPT_DURATION, time.monotonic() - began, attributes)
    if not loop.is_closed():
        loop.call_soon(_record_sizes, sizes, attributes)  # a single answer is read right after this


def _record_sizes(sizes: Sizes, attributes: dict[Attr, str]) -> None:
    metrics.record(Metric.ATTEMPT_SENT, sizes.sent, attributes)
    metrics.record(Metric.ATTEMPT_RECEIVED, sizes.received, attributes)


def _status(ended: Any) -> str:
    """Returns the name of an ended call's code, which is there without waiting for it."""
    asked = ended.code()
    try:
        asked.send(None)
    except StopIteration as answer:
        return str(answer.value.name)
    asked.close()
    return "UNKNOWN"
