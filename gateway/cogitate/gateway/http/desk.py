"""Contemplations for the HTTP side: begun, gone on with, looked up."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from cogitate.gateway.front import Front
from cogitate.gateway.http.openai.asking import Results
from cogitate.kit import tasks
from cogitate.kit.errors import InvalidRequest, NotFound
from cogitate.v1 import contemplation_service_pb2 as pb2

ENDINGS: Final = frozenset({"verdict", "failed", "cancelled"})
Events = AsyncGenerator[pb2.ContemplationEvent, None]


class Desk:
    """Owns which contemplations end with their streams, and cancellations on their way."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._beside = tasks.Supervisor()
        self._held: set[str] = set()

    async def close(self) -> None:
        """Ends what is on its way."""
        await self._beside.stop()

    async def begin(self, request: pb2.ContemplateRequest) -> Events:
        """Yields the events of a new contemplation; use it in `aclosing`.

        One that may wait for the client's tools runs on when the stream ends, so that their results
        find it: if `keep` was called. Else it is cancelled here, however the stream ended.
        """
        spec = request.spec
        hold = bool(spec.client_tools) and spec.on_disconnect != pb2.ON_DISCONNECT_CONTINUE
        if hold:
            spec.on_disconnect = pb2.ON_DISCONNECT_CONTINUE
        id, ended = "", False
        try:
            async with aclosing(self._front.contemplate(request)) as raws:
                async for raw in raws:
                    event = pb2.ContemplateResponse.FromString(raw).event
                    if hold and event.HasField("accepted"):
                        id = event.accepted.contemplation_id
                        self._held.add(id)
                    ended = event.WhichOneof("event") in ENDINGS
                    yield event
        finally:
            if id in self._held and not ended:
                self._beside.spawn(self.cancel(id), name="cancel")
            self._held.discard(id)

    def keep(self, contemplation_id: str) -> None:
        """The client knows what this one waits for: its stream may end."""
        self._held.discard(contemplation_id)

    async def go_on(self, results: Results) -> Events:
        """Hands in what tools returned, then yields all events of the contemplation again."""
        for result in results.results:
            request = pb2.SubmitToolResultRequest(
                contemplation_id=results.contemplation_id, result=result
            )
            try:
                await self._front.ask("SubmitToolResult", request)
            except NotFound:
                raise InvalidRequest(
                    "the contemplation that waited for these results is over; end with a user "
                    "message to ask anew",
                    reason="NOT_WAITING",
                ) from None
        async with aclosing(self.again(results.contemplation_id)) as events:
            async for event in events:
                yield event

    async def again(self, contemplation_id: str) -> Events:
        """Yields all events of a contemplation, those it has and those to come."""
        request = pb2.AttachRequest(contemplation_id=contemplation_id)
        async with aclosing(self._front.attach(request)) as raws:
            async for raw in raws:
                yield pb2.AttachResponse.FromString(raw).event

    async def get(self, contemplation_id: str) -> pb2.GetContemplationResponse:
        """Returns what is known of a contemplation."""
        request = pb2.GetContemplationRequest(contemplation_id=contemplation_id)
        found: pb2.GetContemplationResponse = await self._front.ask("GetContemplation", request)
        return found

    async def cancel(self, contemplation_id: str) -> None:
        """Stops it."""
        request = pb2.CancelContemplationRequest(contemplation_id=contemplation_id)
        await self._front.ask("CancelContemplation", request)

    def forget(self, contemplation_id: str) -> None:
        """Deletes it beside whatever goes on."""
        self._beside.spawn(self.delete(contemplation_id), name="delete")

    async def delete(self, contemplation_id: str) -> None:
        """Forgets it."""
        request = pb2.DeleteContemplationRequest(contemplation_id=contemplation_id)
        await self._front.ask("DeleteContemplation", request)
