"""The aggregators behind the gateway: one stream for the client, whichever of them runs it.

When an aggregator dies, another takes the contemplation over from the journal; here the stream goes
on at that one, behind the last event that was passed on.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

import grpc
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError, NotOwner, Rejected
from cogitate.v1 import contemplation_service_pb2 as pb2

_CONTEMPLATION: Final = "/cogitate.v1.ContemplationService/"
# How long to wait before all aggregators are asked again, doubled up to the longest.
FIRST_DELAY_S: Final = 0.02
LONGEST_DELAY_S: Final = 0.1

Named = Callable[[CogitateError], CogitateError]


class Aggregators:
    """Owns a channel for each aggregator; they are asked in turn."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        max_message_bytes: int,
        failover_timeout_s: float,
        named: Named,
    ) -> None:
        """``named`` makes the error that a client gets of the last one."""
        self._addresses = list(addresses)
        self._size, self._timeout_s, self._named = max_message_bytes, failover_timeout_s, named
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._turn = 0

    async def close(self) -> None:
        """Closes the channels, and with them every call."""
        for channel in self._channels.values():
            await channel.close(None)

    async def ask(
        self, method: str, request: Any, response: Any, options: Callable[[], dict[str, Any]]
    ) -> Any:
        """Makes a short call at whoever can answer it."""
        search = self._search()
        while True:
            call = self._channel(search.address).unary_unary(
                _CONTEMPLATION + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            try:
                return await call(request, **options())
            except grpc.aio.AioRpcError as raised:
                await search.after(from_rpc_error(raised), keep_on=False)

    async def relay(
        self,
        request: pb2.ContemplateRequest | pb2.AttachRequest,
        timeout_s: float,
        accepted: Callable[[str], None] = lambda id: None,
    ) -> AsyncGenerator[bytes, None]:
        """Yields a contemplation's events as the bytes they came in, to its ending.

        `accepted` is told the id of a new one before its first event is passed on.
        One message is in hand at a time; how many wait behind it is bounded by the channel's
        window. Closing it cancels the call; use it in `aclosing`.
        """
        cursor, search = _Cursor(request), self._search()
        while True:
            call: Any = self._channel(search.address).unary_stream(
                _CONTEMPLATION + cursor.method,
                request_serializer=type(cursor.request).SerializeToString,
                response_deserializer=None,
            )
            events = call(cursor.request, **outgoing(timeout_s))
            try:
                async for raw in events:
                    search.found()
                    was_known = bool(cursor.id)
                    passes = cursor.passes(raw)
                    if not was_known and cursor.id:
                        accepted(cursor.id)
                    if passes:
                        yield raw
                return
            except grpc.aio.AioRpcError as raised:
                error = from_rpc_error(raised)
            finally:
                events.cancel()
            await search.after(error, keep_on=cursor.has_begun)
            cursor.go_on()

    def _search(self) -> _Search:
        self._turn += 1
        start = self._turn % len(self._addresses)
        order = self._addresses[start:] + self._addresses[:start]
        return _Search(order, self._timeout_s, self._named)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address, max_message_bytes=self._size)
        return self._channels[address]


class _Search:
    """Goes from one aggregator to the next until one has the contemplation, or time is over."""

    def __init__(self, addresses: Sequence[str], timeout_s: float, named: Named) -> None:
        self._addresses, self._timeout_s, self._named = list(addresses), timeout_s, named
        self.address = self._addresses[0]
        self._searching = True
        self.found()

    def found(self) -> None:
        """This one has it."""
        if self._searching:
            self._left = [address for address in self._addresses if address != self.address]
            self._searching = self._owned = False
            self._delay_s, self._since = FIRST_DELAY_S, 0.0

    async def after(self, error: CogitateError, *, keep_on: bool) -> None:
        """Moves to the next, or raises. ``keep_on``: the contemplation exists, so wait for it."""
        moved = isinstance(error, NotOwner)
        if not (moved or error.code == "UNAVAILABLE" or isinstance(error, Rejected)):
            raise self._named(error) from None
        now = time.monotonic()
        if not self._searching:
            self._searching, self._since = True, now
        self._owned = self._owned or moved or keep_on
        owner = error.metadata.get("owner", "") if moved else ""
        if owner and owner != self.address and owner not in self._left:
            self._left.insert(0, owner)
        if not self._left:
            if not self._owned or now - self._since > self._timeout_s:
                raise self._named(error) from None
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
            self._left = list(self._addresses)
        elif owner in self._left:
            self._left.remove(owner)
            self._left.insert(0, owner)
        self.address = self._left.pop(0)


class _Cursor:
    """What the client has, and the request that gets it the rest."""

    def __init__(self, request: pb2.ContemplateRequest | pb2.AttachRequest) -> None:
        self.request: pb2.ContemplateRequest | pb2.AttachRequest = request
        self._last = b""
        self._hides_accepted = False
        if isinstance(request, pb2.AttachRequest):
            self.id = request.contemplation_id
            return
        self.id = ""
        # So that a question that may have been accepted can be asked again.
        request.spec.request_id = request.spec.request_id or str(uuid.uuid4())
        excluded = request.filter.excluded_events
        if "accepted" in excluded:
            # The id is in it, and is needed here.
            self._hides_accepted = True
            kept = [name for name in excluded if name != "accepted"]
            del excluded[:]
            excluded.extend(kept)

    @property
    def method(self) -> str:
        """The RPC of the request."""
        return type(self.request).__name__.removesuffix("Request")

    @property
    def has_begun(self) -> bool:
        """Whether an event has come: the contemplation exists."""
        return bool(self._last)

    def passes(self, raw: bytes) -> bool:
        """Remembers an event; says whether the client gets it. Only the first is parsed."""
        self._last = raw
        if self.id:
            return True
        event = pb2.ContemplateResponse.FromString(raw).event
        self.id = event.accepted.contemplation_id
        return not (self._hides_accepted and event.HasField("accepted"))

    def go_on(self) -> None:
        """After a break: what follows the last event."""
        if not (self._last and self.id):
            return  # nothing came: the same again
        self.request = pb2.AttachRequest(
            contemplation_id=self.id,
            # Attach and Contemplate answer in the same bytes.
            after_event_number=pb2.AttachResponse.FromString(self._last).event.event_number,
            filter=self.request.filter,
        )
