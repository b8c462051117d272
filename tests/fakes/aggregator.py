"""An aggregator that plays a script: events, pauses, broken connections."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
from cogitate.kit.errors import AlreadyExists, CogitateError, NotFound, OutOfRange
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import contemplation_service_pb2_grpc as pb2_grpc

NAME = "cogitate.v1.ContemplationService"


@dataclass(frozen=True)
class Wait:
    """Lets time pass between two events."""

    delay_s: float


@dataclass(frozen=True)
class Break:
    """Ends the stream with a status, once; the script goes on when somebody attaches."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Raise:
    """Refuses the contemplation before it is accepted."""

    error: CogitateError


@dataclass(frozen=True)
class AwaitResult:
    """Waits for the result of a client's tool."""

    call_id: str


Step = pb2.ContemplationEvent | Wait | Break | Raise | AwaitResult
Script = Callable[[pb2.ContemplateRequest], Sequence[Step]]


@dataclass
class Played:
    """One contemplation as far as it was played."""

    id: str
    request: pb2.ContemplateRequest
    steps: list[Step]
    position: int = 0
    events: list[pb2.ContemplationEvent] = field(default_factory=list)
    results: dict[str, common_pb2.ToolResult] = field(default_factory=dict)


class FakeAggregator(pb2_grpc.ContemplationServiceServicer):
    """Plays `script` for every question; remembers requests, cancellations and attaches."""

    names = (NAME,)

    def __init__(self, server: Any, script: Script) -> None:
        self.script = script
        self.requests: list[pb2.ContemplateRequest] = []
        self.attaches: list[int] = []
        self.played: dict[str, Played] = {}
        self.by_request_id: dict[str, Played] = {}
        self.cancelled = asyncio.Event()
        self.cancellations: list[str] = []
        self.deleted: list[str] = []
        self._returned = asyncio.Condition()
        self.sent = 0
        self.deadlines_s: list[float] = []
        self.metadata: list[dict[str, str]] = []
        pb2_grpc.add_ContemplationServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Does nothing."""

    async def drain(self, grace_s: float) -> None:
        """Does nothing."""

    async def stop(self) -> None:
        """Does nothing."""

    async def Contemplate(
        self, request: pb2.ContemplateRequest, context: Any
    ) -> AsyncIterator[pb2.ContemplateResponse]:
        self.requests.append(request)
        self.deadlines_s.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        played = self.by_request_id.get(request.spec.request_id)
        if played is not None and played.request.spec != request.spec:
            raise AlreadyExists("the request id was used with another request")
        if played is None:
            played = Played(str(uuid.uuid4()), request, list(self.script(request)))
            self.played[played.id] = played
            if request.spec.request_id:
                self.by_request_id[request.spec.request_id] = played
        async with aclosing(self._play(played, 0, context)) as events:
            async for event in events:
                yield pb2.ContemplateResponse(event=event)

    async def Attach(
        self, request: pb2.AttachRequest, context: Any
    ) -> AsyncIterator[pb2.AttachResponse]:
        self.attaches.append(request.after_event_number)
        played = self.played.get(request.contemplation_id)
        if played is None:
            raise NotFound("there is no such contemplation")
        if request.after_event_number > len(played.events):
            raise OutOfRange("the event number is beyond the last event")
        async with aclosing(self._play(played, request.after_event_number, context)) as events:
            async for event in events:
                yield pb2.AttachResponse(event=event)

    async def GetContemplation(
        self, request: pb2.GetContemplationRequest, context: Any
    ) -> pb2.GetContemplationResponse:
        summary = self._summary(request.contemplation_id)
        played = self.played[request.contemplation_id]
        ended = summary.state != pb2.ContemplationSummary.STATE_RUNNING
        return pb2.GetContemplationResponse(
            summary=summary,
            spec=played.request.spec,
            ending=played.events[-1] if ended else None,
        )

    async def ListContemplations(
        self, request: pb2.ListContemplationsRequest, context: Any
    ) -> pb2.ListContemplationsResponse:
        return pb2.ListContemplationsResponse(
            contemplations=[self._summary(id) for id in reversed(self.played)]
        )

    async def CancelContemplation(
        self, request: pb2.CancelContemplationRequest, context: Any
    ) -> pb2.CancelContemplationResponse:
        self.cancelled.set()
        self.cancellations.append(request.contemplation_id)
        summary = self._summary(request.contemplation_id)
        if summary.state == pb2.ContemplationSummary.STATE_RUNNING:
            played = self.played[request.contemplation_id]
            played.steps[played.position :] = [
                pb2.ContemplationEvent(cancelled=pb2.ContemplationCancelled(reason="REQUESTED"))
            ]
            summary.last_event_number += 1
        return pb2.CancelContemplationResponse(summary=summary)

    async def DeleteContemplation(
        self, request: pb2.DeleteContemplationRequest, context: Any
    ) -> pb2.DeleteContemplationResponse:
        self._summary(request.contemplation_id)
        del self.played[request.contemplation_id]
        self.deleted.append(request.contemplation_id)
        return pb2.DeleteContemplationResponse()

    async def SubmitToolResult(
        self, request: pb2.SubmitToolResultRequest, context: Any
    ) -> pb2.SubmitToolResultResponse:
        self._summary(request.contemplation_id)
        played = self.played[request.contemplation_id]
        played.results[request.result.call_id] = request.result
        async with self._returned:
            self._returned.notify_all()
        return pb2.SubmitToolResultResponse()

    async def _play(
        self, played: Played, after: int, context: Any
    ) -> AsyncGenerator[pb2.ContemplationEvent, None]:
        try:
            for event in played.events[after:]:
                yield event
            while played.position < len(played.steps):
                step = played.steps[played.position]
                played.position += 1
                match step:
                    case Wait():
                        await asyncio.sleep(step.delay_s)
                    case Raise():
                        raise step.error
                    case AwaitResult(call_id):
                        played.position -= 1  # whoever attaches waits, too
                        async with self._returned:
                            await self._returned.wait_for(lambda: call_id in played.results)
                        played.position += 1
                    case Break():
                        await context.abort(step.code, "the connection broke")
                    case _:
                        event = pb2.ContemplationEvent()
                        event.CopyFrom(step)
                        event.event_number = event.first_event_number = len(played.events) + 1
                        event.event_time.GetCurrentTime()
                        if event.HasField("accepted"):
                            event.accepted.contemplation_id = played.id
                        played.events.append(event)
                        self.sent += 1
                        yield event
        except (asyncio.CancelledError, GeneratorExit):
            # Cancelled while it waits, or closed while what it yielded is being written.
            self.cancelled.set()
            raise

    def _summary(self, id: str) -> pb2.ContemplationSummary:
        if id not in self.played:
            raise NotFound("there is no such contemplation")
        events = self.played[id].events
        ending = events[-1].WhichOneof("event") if events else ""
        states = pb2.ContemplationSummary
        state = {
            "verdict": states.STATE_COMPLETED,
            "failed": states.STATE_FAILED,
            "cancelled": states.STATE_CANCELLED,
        }.get(ending or "", states.STATE_RUNNING)
        return pb2.ContemplationSummary(
            contemplation_id=id, state=state, last_event_number=len(events)
        )
