"""A router that places by script: evenly over its endpoints, or denying what it is told to deny."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from cogitate.v1 import router_service_pb2 as pb
from cogitate.v1 import router_service_pb2_grpc as pb_grpc

from tests.fakes.serving import FakeServer


class FakeRouter(pb_grpc.RouterServiceServicer, FakeServer):
    """`endpoints` maps ids to addresses. What it was told is kept in `commands`."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        super().__init__()
        self.endpoints = dict(endpoints)
        self.commands: list[pb.LeaseRequest] = []
        self.denials: list[pb.LeaseDenied] = []  # for the next questions
        self.failed: dict[str, set[str]] = {}  # by contemplation; clear it to have them back
        self.delay_s = 0.0
        self.denial_delay_s = 0.0  # what its own denials tell to wait; 0 is for ever
        self.silent = False
        self.avoids = True  # it heeds which endpoints are to be left out
        self.site = ""  # where all endpoints are; empty: each at one of its own
        # Whether endpoints take conversations by reference; None: if they are at one site.
        self.takes_references: bool | None = None
        self.queues = False  # whoever asks waits for ever
        self.released = asyncio.Event()
        self._gangs = 0
        self._streams: set[asyncio.Queue[pb.LeaseResponse]] = set()

    def register(self, server: Any) -> None:
        pb_grpc.add_RouterServiceServicer_to_server(self, server)

    def told(self, kind: str) -> list[Any]:
        """The commands of one kind, in order."""
        return [getattr(c, kind) for c in self.commands if c.WhichOneof("command") == kind]

    def tell(self, endpoint_id: str, state: str, *contemplation_ids: str) -> None:
        """Sends news of an endpoint."""
        news = pb.EndpointNews(
            endpoint_id=endpoint_id, state=state, contemplation_ids=contemplation_ids
        )
        for stream in self._streams:
            stream.put_nowait(pb.LeaseResponse(news=news))

    async def Lease(self, request_iterator: AsyncIterator[pb.LeaseRequest], context: Any) -> None:
        out: asyncio.Queue[pb.LeaseResponse] = asyncio.Queue()
        self._streams.add(out)
        reader = asyncio.create_task(self._read(request_iterator, out))
        try:
            while True:
                await context.write(await out.get())
        finally:
            self._streams.discard(out)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self, requests: AsyncIterator[pb.LeaseRequest], out: asyncio.Queue[pb.LeaseResponse]
    ) -> None:
        async for request in requests:
            self.commands.append(request)
            kind = request.WhichOneof("command")
            if kind == "release":
                self.released.set()
            if kind in ("declare", "replace") and not self.silent:
                await asyncio.sleep(self.delay_s)
                out.put_nowait(self._answer(getattr(request, kind)))

    def _answer(self, asked: Any) -> pb.LeaseResponse:
        if self.queues:
            queued = pb.LeaseQueued(ahead_count=2)
            queued.contemplation_id, queued.attempt = asked.contemplation_id, asked.attempt
            return pb.LeaseResponse(queued=queued)
        failed = self.failed.setdefault(asked.contemplation_id, set())
        failed |= {failure.endpoint_id for failure in getattr(asked, "failures", ())}
        there = {e: a for e, a in self.endpoints.items() if e not in failed}
        avoided = set(asked.avoided_endpoint_ids)
        if self.avoids:
            there = {e: a for e, a in there.items() if e not in avoided} or there
        if self.denials or not there:
            denied = pb.LeaseDenied(reason="NO_ENDPOINT", message="nothing is left")
            if self.denial_delay_s:
                denied.retry_delay.FromMilliseconds(round(self.denial_delay_s * 1000))
            if self.denials:
                denied = self.denials.pop(0)
            denied.contemplation_id, denied.attempt = asked.contemplation_id, asked.attempt
            return pb.LeaseResponse(denied=denied)
        granted = pb.LeaseGranted(
            contemplation_id=asked.contemplation_id, attempt=asked.attempt, policy="fake"
        )
        agent_ids = [agent_id for gang in asked.gangs for agent_id in gang.agent_ids]
        for number, (endpoint_id, address) in enumerate(there.items()):
            share = agent_ids[number :: len(there)]
            if not share:
                continue
            self._gangs += 1
            granted.gangs.add(
                gang_id=f"{asked.attempt}.{self._gangs}",
                endpoint_id=endpoint_id,
                address=address,
                provider=self.site or f"provider-{endpoint_id}",
                region="here" if self.site else "",
                takes_conversation_references=(
                    bool(self.site) if self.takes_references is None else self.takes_references
                ),
                agent_ids=share,
                reason="it is there",
                price_per_hour_micro_usd=3_600_000_000,
            )
        return pb.LeaseResponse(granted=granted)
