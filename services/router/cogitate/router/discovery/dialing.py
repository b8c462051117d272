"""Streams of reports from endpoints that are dialled, each by a task of its own.

An address that is no longer listed is not dialled again, but a stream that is open stays: a service
name drops who is going to end, and that one may have gangs to finish.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc
from cogitate.kit.channels import deadline_scope, from_rpc_error, open_channel
from cogitate.kit.errors import CogitateError
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import stack_of
from cogitate.router import wire
from cogitate.router.config import RouterConfig
from cogitate.router.discovery.sources import Sources
from cogitate.router.reports import ReportStream
from cogitate.router.runtime import Runtime
from cogitate.v1 import endpoint_service_pb2 as pb
from cogitate.v1.endpoint_service_pb2_grpc import EndpointServiceStub

if TYPE_CHECKING:  # the asyncio stub exists in the type stubs only
    from cogitate.v1.endpoint_service_pb2_grpc import EndpointServiceAsyncStub

logger = logging.getLogger(__name__)


class Discovery:
    """Keeps a stream to every address that the sources list."""

    def __init__(self, runtime: Runtime, sources: Sources) -> None:
        self._runtime, self._sources = runtime, sources
        self._config: RouterConfig = runtime.config
        self._listed: frozenset[str] = frozenset()
        self._dialled: dict[str, asyncio.Task[None]] = {}
        self._tasks = Supervisor()

    async def run(self) -> None:
        """Looks at the sources again and again, until cancelled."""
        try:
            while True:
                self._listed = await self._sources.addresses()
                self._dial()
                await self._runtime.clock.sleep(self._config.discovery_interval_s)
        finally:
            await self._tasks.stop()

    def _dial(self) -> None:
        self._dialled = {a: task for a, task in self._dialled.items() if not task.done()}
        missing = sorted(self._listed - set(self._dialled))
        room = self._config.max_endpoint_count - len(self._dialled)
        if len(missing) > room:
            logger.warning(
                "%d addresses of endpoints are over the most it may", len(missing) - room
            )
        for address in missing[: max(0, room)]:
            self._dialled[address] = self._tasks.spawn(self._keep(address), name="dial endpoint")

    async def _keep(self, address: str) -> None:
        """Dials one address until it is not listed."""
        with deadline_scope(None):
            async with open_channel(address) as channel:
                stub = EndpointServiceStub(channel)
                while address in self._listed:
                    await self._watch(address, stub)
                    await self._runtime.clock.sleep(self._config.redial_delay_s)

    async def _watch(self, address: str, stub: EndpointServiceAsyncStub) -> None:
        """One stream, to its end; or to its first message, if the endpoint reports by itself."""
        interval = wire.duration(self._config.report_interval_s)
        reports = ReportStream(self._runtime, dialled=address)
        call = stub.WatchEndpoint(pb.WatchEndpointRequest(report_interval=interval), timeout=None)
        try:
            async for response in call:
                if reports.described is None and self._reports_already(response):
                    return
                reports.take(response.report)
                if not reports.owns:  # it has dialled this router meanwhile, or another is it now
                    return
        except grpc.aio.AioRpcError as error:
            logger.info("endpoint at %s: %s", address, from_rpc_error(error).code)
        except CogitateError as error:
            logger.warning("endpoint at %s: %s", address, error.message)
        except Exception as error:
            logger.error("the reports of %s failed: %s", address, stack_of(error))
        finally:
            call.cancel()
            reports.close()

    def _reports_already(self, response: pb.WatchEndpointResponse) -> bool:
        said = response.report.description
        entry = self._runtime.desk.fleet.entries.get(said.endpoint_id)
        return entry is not None and entry.is_of(said.process_id)
