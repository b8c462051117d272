"""The gRPC servicer and how the service is put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from typing import Any

import grpc
from cogitate.aggregator import wire
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.event_log import is_ending
from cogitate.aggregator.journal import Record
from cogitate.aggregator.runtime import Runtime
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import contemplation_service_pb2_grpc as pb_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ContemplationService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


class NotWaiting(CogitateError):
    """The contemplation is not in a state in which this can be done."""

    code = "FAILED_PRECONDITION"
    reason = "INVALID_REQUEST"


class ContemplationServicer(pb_grpc.ContemplationServiceServicer):
    """wire → runtime → wire."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def Contemplate(
        self, request: pb.ContemplateRequest, context: Context
    ) -> AsyncIterator[pb.ContemplateResponse]:
        log, runner = await self._runtime.accept(request.spec)
        excluded = frozenset(request.filter.excluded_events)
        with runner.listening() if runner is not None else nullcontext():
            async for event in log.read(0):
                if shown(event, excluded):
                    yield pb.ContemplateResponse(event=event)

    async def Attach(
        self, request: pb.AttachRequest, context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        excluded = frozenset(request.filter.excluded_events)
        events = await self._runtime.attach(request.contemplation_id, request.after_event_number)
        with self._runtime.listening(request.contemplation_id):
            async for event in events:
                if shown(event, excluded):
                    yield pb.AttachResponse(event=event)

    async def GetContemplation(
        self, request: pb.GetContemplationRequest, context: Context
    ) -> pb.GetContemplationResponse:
        record = await self._runtime.record_of(request.contemplation_id)
        response = pb.GetContemplationResponse(
            summary=self._summary(record), spec=wire.to_asked(record)
        )
        if record.ending is not None:
            response.ending.CopyFrom(wire.to_journalled(record.ending))
        return response

    async def ListContemplations(
        self, request: pb.ListContemplationsRequest, context: Context
    ) -> pb.ListContemplationsResponse:
        size = request.page_size or DEFAULT_PAGE_SIZE
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise InvalidRequest(f"page_size must be from 1 to {MAX_PAGE_SIZE}", field="page_size")
        records, token = await self._runtime.page(size, request.page_token)
        return pb.ListContemplationsResponse(
            contemplations=[self._summary(record) for record in records], next_page_token=token
        )

    async def CancelContemplation(
        self, request: pb.CancelContemplationRequest, context: Context
    ) -> pb.CancelContemplationResponse:
        record = await self._runtime.record_of(request.contemplation_id)
        if (runner := self._runtime.runner_of(record.id)) is not None:
            runner.put(m.CancelRequested("REQUESTED"))
        else:
            await self._runtime.log_of(record.id)  # only its owner can
        return pb.CancelContemplationResponse(summary=self._summary(record))

    async def DeleteContemplation(
        self, request: pb.DeleteContemplationRequest, context: Context
    ) -> pb.DeleteContemplationResponse:
        record = await self._runtime.record_of(request.contemplation_id)
        if record.ending is None:
            raise NotWaiting("the contemplation is running; cancel it first")
        await self._runtime.forget(record.id)
        return pb.DeleteContemplationResponse()

    async def SubmitToolResult(
        self, request: pb.SubmitToolResultRequest, context: Context
    ) -> pb.SubmitToolResultResponse:
        record = await self._runtime.record_of(request.contemplation_id)
        runner = self._runtime.runner_of(record.id)
        if runner is None:
            await self._runtime.log_of(record.id)  # only its owner can
        if runner is None or not runner.awaits_client(request.result.call_id):
            raise NotWaiting("no agent waits for this call")
        runner.tool_returned(request.result.call_id, request.result)
        return pb.SubmitToolResultResponse()

    async def SteerContemplation(
        self, request: pb.SteerContemplationRequest, context: Context
    ) -> pb.SteerContemplationResponse:
        await self._runtime.record_of(request.contemplation_id)
        raise NotWaiting(
            "no engine of this fleet can pause its agents for a message; ask a new question"
        )

    def _summary(self, record: Record) -> pb.ContemplationSummary:
        runner = self._runtime.runner_of(record.id)
        waits = runner is not None and runner.machine.awaits_client
        return wire.to_summary(record, awaits_client=waits)


def shown(event: pb.ContemplationEvent, excluded: frozenset[str]) -> bool:
    """Whether a client that filters events gets this one; endings are never left out."""
    return is_ending(event) or event.WhichOneof("event") not in excluded


class Aggregator:
    """The running service."""

    names: Sequence[str] = (SERVICE_NAME,)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def start(self) -> None:
        await self._runtime.start()

    async def drain(self, grace_s: float) -> None:
        """Takes no new contemplations, waits for those that run, and ends them while it can."""
        runtime = self._runtime
        runtime.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, grace_s - runtime.ending_s)):
                await runtime.wait_idle()
        runtime.shut_down()
        await runtime.wait_idle()

    async def stop(self) -> None:
        await self._runtime.stop()


async def build(config: AggregatorConfig, server: grpc.aio.Server) -> Aggregator:
    """Puts the service together."""
    runtime = Runtime(config)
    add: Any = pb_grpc.add_ContemplationServiceServicer_to_server
    add(ContemplationServicer(runtime), server)
    return Aggregator(runtime)
