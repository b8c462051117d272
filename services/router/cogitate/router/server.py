"""The RPCs of RouterService: wire to desk and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
from cogitate.kit import listening
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.kit.interceptors import long_lived
from cogitate.kit.tasks import Supervisor
from cogitate.peers import ext_proc_pb2_grpc, keda_pb2_grpc
from cogitate.router import wire
from cogitate.router.config import RouterConfig
from cogitate.router.discovery.dialing import Discovery
from cogitate.router.discovery.sources import MalformedSource, Sources
from cogitate.router.holders import LeaseStream
from cogitate.router.picking import ext_proc
from cogitate.router.picking.picker import Picker
from cogitate.router.reports import ReportStream
from cogitate.router.runtime import Runtime
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
        reports = ReportStream(runtime)
        try:
            async with asyncio.timeout(None) as scope:
                with runtime.stream(scope):
                    async for request in request_iterator:
                        first = reports.described is None
                        reports.take(request)
                        if first:
                            interval = wire.duration(runtime.config.report_interval_s)
                            await context.write(router_pb2.ReportResponse(report_interval=interval))
        except TimeoutError:
            raise runtime.ended() from None
        finally:
            reports.close()

    @long_lived
    async def Lease(self, request_iterator: Commands, context: LeaseContext) -> None:  # type: ignore[override]
        """Carries an aggregator's leases; when the stream ends, they end."""
        runtime = self.runtime
        holder: LeaseStream | None = None
        try:
            async with asyncio.timeout(None) as scope:
                with runtime.stream(scope), runtime.lease_stream(scope) as holder:
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

    def _command(self, request: router_pb2.LeaseRequest, holder: LeaseStream) -> None:
        try:
            self.runtime.command(request, holder)
        except CogitateError as error:
            which = request.WhichOneof("command")
            command = getattr(request, which) if which else None
            contemplation_id = getattr(command, "contemplation_id", "")
            attempt = getattr(command, "attempt", 0)
            holder.post(wire.invalid(contemplation_id, attempt, error.message))

    async def _write(self, holder: LeaseStream, context: LeaseContext) -> None:
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

    def __init__(
        self, runtime: Runtime, names: Sequence[str], *helpers: Picker | Discovery
    ) -> None:
        self.runtime = runtime
        self.names = names
        self._helpers = helpers
        self._tasks = Supervisor()

    async def start(self) -> None:
        """Starts the expiry sweep and what goes on beside the RPCs."""
        await self.runtime.start()
        for helper in self._helpers:
            self._tasks.spawn(helper.run(), name=type(helper).__name__.lower())

    async def drain(self, grace_s: float) -> None:
        """Sends everybody to another router; there is nothing to finish."""
        self.runtime.end_streams()

    async def stop(self) -> None:
        """Stops all of it."""
        await self._tasks.stop()
        await self.runtime.stop()


async def build(config: RouterConfig, server: grpc.aio.Server) -> RouterService:
    """Registers the servicer; the composition root of the router."""
    runtime = Runtime(config)
    router_grpc.add_RouterServiceServicer_to_server(RouterServicer(runtime), server)
    names = ["cogitate.v1.RouterService"]
    if config.keda_scaler:
        keda_pb2_grpc.add_ExternalScalerServicer_to_server(keda.KedaScaler(runtime), server)
        names.append(keda.SERVICE_NAME)
    helpers: list[Picker | Discovery] = []
    if config.endpoints_file or config.endpoint_names:
        helpers.append(Discovery(runtime, sources_of(config)))
    if config.picker:
        helpers.append(picker := Picker(runtime))
        processor = ext_proc.ExternalProcessor(runtime, picker)
        ext_proc_pb2_grpc.add_ExternalProcessorServicer_to_server(processor, server)
        names.append(ext_proc.SERVICE_NAME)
        if config.picker_listen:
            listening.bind(server, config.picker_listen)
    return RouterService(runtime, names, *helpers)


def sources_of(config: RouterConfig) -> Sources:
    """What lists endpoints to dial. Raises InvalidRequest naming the knob."""
    try:
        return Sources(
            config.endpoints_file,
            config.endpoint_names,
            server=config.dns_server,
            timeout_s=config.dns_timeout_s,
        )
    except MalformedSource as error:
        knobs = "endpoint_names or dns_server"
        raise InvalidRequest(f"{knobs}: {error}", field="endpoint_names") from None
