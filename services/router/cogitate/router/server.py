"""The RPCs of RouterService: wire to desk and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
from cogitate.kit.errors import CogitateError, InvalidRequest, Rejected
from cogitate.kit.interceptors import long_lived
from cogitate.peers import keda_pb2_grpc
from cogitate.router import wire
from cogitate.router.config import RouterConfig
from cogitate.router.core.types import Description
from cogitate.router.runtime import Holder, Runtime
from cogitate.router.scaling import keda
from cogitate.v1 import router_service_pb2 as router_pb2
from cogitate.v1 import router_service_pb2_grpc as router_grpc

Reports = AsyncIterator[router_pb2.ReportRequest]
Commands = AsyncIterator[router_pb2.LeaseRequest]
LeaseContext = grpc.aio.ServicerContext[router_pb2.LeaseRequest, router_pb2.LeaseResponse]
ReportContext = grpc.aio.ServicerContext[router_pb2.ReportRequest, router_pb2.ReportResponse]
FleetContext = grpc.aio.ServicerContext[router_pb2.GetFleetRequest, router_pb2.GetFleetResponse]


class RouterServicer(router_grpc.RouterServiceServicer):
    """Answers endpoints and aggregators."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @long_lived
    async def Report(self, request_iterator: Reports, context: ReportContext) -> None:  # type: ignore[override]
        """Takes one endpoint's reports until its stream ends; then the endpoint is gone."""
        runtime = self.runtime
        stream = runtime.number()
        described: Description | None = None
        try:
            async with asyncio.timeout(None) as scope:
                with runtime.stream(scope):
                    async for request in request_iterator:
                        first = described is None
                        described = self._report(request, stream, described)
                        if first:
                            interval = wire.duration(runtime.config.report_interval_s)
                            await context.write(router_pb2.ReportResponse(report_interval=interval))
        except TimeoutError:
            raise runtime.ended() from None
        finally:
            if described is not None:
                runtime.apply(runtime.desk.fleet.close(stream, described.endpoint_id))

    def _report(
        self, request: router_pb2.ReportRequest, stream: int, described: Description | None
    ) -> Description:
        runtime = self.runtime
        fleet, now = runtime.desk.fleet, runtime.clock.monotonic()
        which = request.WhichOneof("report")
        if which == "description":
            said = wire.description(request.description)
            if described is not None and said.endpoint_id != described.endpoint_id:
                raise InvalidRequest("an endpoint keeps its id", field="description.endpoint_id")
            if not fleet.can_describe(said.endpoint_id):
                raise Rejected(
                    f"this router knows {fleet.max_endpoints} endpoints, the most it may"
                )
            runtime.apply(fleet.describe(stream, said, now))
            return said
        if described is None:
            raise InvalidRequest("the first report must be a description", field="description")
        if which == "load":
            load = wire.load(request.load)
            learned = runtime.observations(described.endpoint_id)
            runtime.apply(fleet.report(stream, described.endpoint_id, load, now))
            runtime.learned(described.endpoint_id, learned)
        elif which == "drain":
            left = request.drain
            remaining_s = (
                wire.seconds(left.remaining_duration)
                if left.HasField("remaining_duration")
                else None
            )
            runtime.apply(fleet.drain(stream, described.endpoint_id, remaining_s, now))
        return described

    @long_lived
    async def Lease(self, request_iterator: Commands, context: LeaseContext) -> None:  # type: ignore[override]
        """Carries an aggregator's leases; when the stream ends, they end."""
        runtime = self.runtime
        holder: Holder | None = None
        try:
            async with asyncio.timeout(None) as scope:
                with runtime.stream(scope), runtime.holder(scope) as holder:
                    async with asyncio.TaskGroup() as tasks:
                        writer = tasks.create_task(self._write(holder, context))
                        async for request in request_iterator:
                            self._command(request, holder)
                            if holder.outbox.full():
                                await holder.outbox.join()  # answers wait; only news overflow
                        await holder.outbox.join()
                        writer.cancel()
        except TimeoutError:
            raise runtime.ended(holder) from None

    def _command(self, request: router_pb2.LeaseRequest, holder: Holder) -> None:
        try:
            self.runtime.command(request, holder)
        except CogitateError as error:
            which = request.WhichOneof("command")
            command = getattr(request, which) if which else None
            contemplation_id = getattr(command, "contemplation_id", "")
            attempt = getattr(command, "attempt", 0)
            self.runtime.post(holder, wire.invalid(contemplation_id, attempt, error.message))

    async def _write(self, holder: Holder, context: LeaseContext) -> None:
        while True:
            message = await holder.outbox.get()
            try:
                async with asyncio.timeout(self.runtime.config.write_stall_s):
                    await context.write(message)
            except TimeoutError:
                holder.overflowed = True
                raise self.runtime.ended(holder) from None
            except grpc.aio.InternalError:
                return  # the call is over; the handler is about to be cancelled
            holder.outbox.task_done()

    async def GetFleet(
        self, request: router_pb2.GetFleetRequest, context: FleetContext
    ) -> router_pb2.GetFleetResponse:
        """Lists the endpoints as this router sees them."""
        return self.runtime.fleet()


class RouterService:
    """The router's life."""

    def __init__(self, runtime: Runtime, names: Sequence[str]) -> None:
        self.runtime = runtime
        self.names = names

    async def start(self) -> None:
        """Starts the expiry sweep."""
        await self.runtime.start()

    async def drain(self, grace_s: float) -> None:
        """Sends everybody to another router; there is nothing to finish."""
        self.runtime.end_streams()

    async def stop(self) -> None:
        """Stops the sweep."""
        await self.runtime.stop()


async def build(config: RouterConfig, server: grpc.aio.Server) -> RouterService:
    """Registers the servicer; the composition root of the router."""
    runtime = Runtime(config)
    router_grpc.add_RouterServiceServicer_to_server(RouterServicer(runtime), server)
    names = ["cogitate.v1.RouterService"]
    if config.keda_scaler:
        keda_pb2_grpc.add_ExternalScalerServicer_to_server(keda.KedaScaler(runtime), server)
        names.append(keda.SERVICE_NAME)
    return RouterService(runtime, names)
