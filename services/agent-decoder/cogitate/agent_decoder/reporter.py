"""Tells every router what this endpoint is and what it does, for as long as it lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc
from cogitate.kit.channels import deadline_scope, open_channel
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import router_service_pb2 as pb
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:  # the asyncio stub exists in the type stubs only
    from cogitate.v1.router_service_pb2_grpc import RouterServiceAsyncStub

log = logging.getLogger(__name__)

# Until a router says how often it wants to hear.
DEFAULT_INTERVAL_S = 0.5
RECONNECT_S = 0.5


class Reporter:
    """One report stream to one router; reconnects until it is cancelled."""

    def __init__(
        self,
        address: str,
        description: decoder_pb.EndpointDescription,
        load: Callable[[], decoder_pb.EndpointLoad],
    ) -> None:
        self._address, self._description, self._load = address, description, load
        self._interval_s = DEFAULT_INTERVAL_S
        self._drain = asyncio.Event()
        self._drain_remaining_s = 0.0

    def drain(self, remaining_s: float) -> None:
        """Announces the endpoint's end at once."""
        self._drain_remaining_s = remaining_s
        self._drain.set()

    async def run(self) -> None:
        """Reports until cancelled."""
        with deadline_scope(None):
            async with open_channel(self._address) as channel:
                stub = RouterServiceStub(channel)
                while True:
                    await self._report(stub)
                    await asyncio.sleep(RECONNECT_S)

    async def _report(self, stub: RouterServiceAsyncStub) -> None:
        # A report stream lives as long as the endpoint: keepalive finds a dead router, no deadline.
        call = stub.Report(self._reports(), timeout=None)
        try:
            async for response in call:
                if response.HasField("report_interval"):
                    self._interval_s = max(0.05, response.report_interval.ToNanoseconds() / 1e9)
        except grpc.aio.AioRpcError as error:
            log.info("router %s: %s; reporting again soon", self._address, error.code().name)
        finally:
            call.cancel()

    async def _reports(self) -> AsyncIterator[pb.ReportRequest]:
        yield pb.ReportRequest(description=self._description)
        announced = False
        while True:
            yield pb.ReportRequest(load=self._load())
            if self._drain.is_set() and not announced:
                announced = True
                notice = pb.DrainNotice(reason="DRAIN")
                notice.remaining_duration.FromNanoseconds(int(self._drain_remaining_s * 1e9))
                yield pb.ReportRequest(drain=notice)
            try:
                async with asyncio.timeout(self._interval_s):
                    await (asyncio.sleep(3600) if announced else self._drain.wait())
            except TimeoutError:
                continue
