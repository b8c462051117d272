"""The gateway over real sockets, before a scripted aggregator and fakes of its other neighbours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.server import Gateway
from cogitate.kit.config import ServiceConfig
from cogitate.kit.lifecycle import serving
from cogitate.v1 import (
    agent_decoder_service_pb2,
    common_pb2,
    contemplation_service_pb2_grpc,
    gateway_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import FakeAggregator, Script, Step, Wait
from tests.fakes.vision import FakeVision

LOOPBACK = "127.0.0.1:0"


class FakeRouter(router_service_pb2_grpc.RouterServiceServicer):
    """Tells of two endpoints, one of them draining."""

    names = ("cogitate.v1.RouterService",)

    def __init__(self, server: Any) -> None:
        router_service_pb2_grpc.add_RouterServiceServicer_to_server(self, server)

    async def start(self) -> None: ...

    async def drain(self, grace_s: float) -> None: ...

    async def stop(self) -> None: ...

    async def GetFleet(
        self, request: router_service_pb2.GetFleetRequest, context: Any
    ) -> router_service_pb2.GetFleetResponse:
        answer = router_service_pb2.GetFleetResponse(lease_count=3)
        for name, state in (("a", "READY"), ("b", "DRAINING")):
            endpoint = answer.endpoints.add(state=state)
            endpoint.description.endpoint_id = name
            endpoint.description.models.append("mini")
            endpoint.description.max_sequence_count = 32
            endpoint.description.capabilities.append(agent_decoder_service_pb2.CAPABILITY_VISION)
        return answer


@dataclass
class Mesh:
    """The gateway and what stands behind it."""

    address: str
    aggregator: FakeAggregator
    vision: FakeVision
    contemplation: contemplation_service_pb2_grpc.ContemplationServiceAsyncStub
    gateway: gateway_service_pb2_grpc.GatewayServiceAsyncStub
    service: Gateway
    http: str  # host:port, if `http_listen` was given


def happy(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Two events and a verdict."""
    event = pb2.ContemplationEvent
    return (
        event(accepted=pb2.Accepted(model="mini", agent_count=1)),
        event(round_started=pb2.RoundStarted(round_number=1)),
        event(verdict=common_pb2.Verdict(answer="42.")),
    )


def endless(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Goes on for ever."""
    steps: list[Step] = [pb2.ContemplationEvent(accepted=pb2.Accepted())]
    for _ in range(2000):
        steps += [Wait(0.005), pb2.ContemplationEvent(round_started=pb2.RoundStarted())]
    return steps


@asynccontextmanager
async def mesh(script: Script = happy, **knobs: Any) -> AsyncIterator[Mesh]:
    """Runs everything in this loop; knobs are of the gateway."""
    async with AsyncExitStack() as stack:
        config = replace(ServiceConfig(), listen=LOOPBACK, drain_grace_s=0.2)
        fakes: dict[str, Any] = {}

        async def up(build: Any) -> str:
            async def built(_: ServiceConfig, server: grpc.aio.Server) -> Any:
                service = build(server)
                fakes[type(service).__name__] = service
                return service

            return (await stack.enter_async_context(serving(config, built))).address

        given = {
            "aggregator_address": await up(lambda server: FakeAggregator(server, script)),
            "vision_encoder_address": await up(FakeVision),
            "router_address": await up(FakeRouter),
        } | knobs
        given = {"listen": LOOPBACK, "drain_grace_s": 0.2} | given
        gateway = replace(GatewayConfig(), **given)

        async def build(config: GatewayConfig, server: grpc.aio.Server) -> Gateway:
            return Gateway(config, server)

        running = await stack.enter_async_context(serving(gateway, build))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.address))
        yield Mesh(
            running.address,
            fakes["FakeAggregator"],
            fakes["FakeVision"],
            contemplation_service_pb2_grpc.ContemplationServiceStub(channel),
            gateway_service_pb2_grpc.GatewayServiceStub(channel),
            running.service,  # type: ignore[arg-type]  # built above
            http=getattr(running.service, "http_address", ""),
        )
