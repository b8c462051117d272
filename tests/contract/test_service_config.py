"""The published service config with a stock gRPC client: retries, health, round robin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import gateway_service_pb2, gateway_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

pytestmark = pytest.mark.contract

CONFIG = Path(__file__).parents[2] / "protos" / "service_config.json"
SERVICE = "cogitate.v1.ContemplationService"
STATUS = health_pb2.HealthCheckResponse
DESCRIPTORS = {
    one.full_name: one
    for one in (
        pb2.DESCRIPTOR.services_by_name["ContemplationService"],
        gateway_service_pb2.DESCRIPTOR.services_by_name["GatewayService"],
    )
}


class Replica(gateway_service_pb2_grpc.GatewayServiceServicer):
    """Fails as often as it is told before it answers."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.attempts = failures, 0
        self.health = health.aio.HealthServicer()

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return gateway_service_pb2.GetServerInfoResponse(version=str(id(self)))

    async def Ask(self, request: Any, context: Any) -> Any:
        self.attempts += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


@asynccontextmanager
async def client(*replicas: Replica) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        ports = []
        for replica in replicas:
            server = grpc.aio.server()
            gateway_service_pb2_grpc.add_GatewayServiceServicer_to_server(replica, server)
            health_pb2_grpc.add_HealthServicer_to_server(replica.health, server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await replica.health.set(SERVICE, STATUS.SERVING)
            await server.start()
            stack.push_async_callback(server.stop, None)
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        options = [("grpc.service_config", CONFIG.read_text()), ("grpc.enable_http_proxy", 0)]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(address, options=options)
        )
        await channel.channel_ready()
        yield gateway_service_pb2_grpc.GatewayServiceStub(channel)


async def answers(stub: Any, count: int) -> Counter[str]:
    request = gateway_service_pb2.GetServerInfoRequest()
    return Counter([(await stub.GetServerInfo(request, timeout=5)).version for _ in range(count)])


def test_it_names_methods_that_may_be_tried_twice() -> None:
    (policy,) = json.loads(CONFIG.read_text())["methodConfig"]
    for name in policy["name"]:
        assert name["method"] in DESCRIPTORS[name["service"]].methods_by_name
    # What starts work, sends it, or cannot be told again is left to the caller.
    named = {one["method"] for one in policy["name"]}
    assert not named & {"Contemplate", "Ask", "SteerContemplation", "SubmitToolResult"}


async def test_calls_go_round_and_leave_out_who_is_not_serving() -> None:
    one, other = Replica(), Replica()
    async with client(one, other) as stub:
        for _ in range(50):  # until both are connected
            seen = await answers(stub, 10)
            if len(seen) == 2:
                break
        assert min(seen.values()) >= 3  # a connection that comes late begins the round anew
        await one.health.set(SERVICE, STATUS.NOT_SERVING)
        for _ in range(50):
            seen = await answers(stub, 10)
            if len(seen) == 1:
                break
        assert seen == {str(id(other)): 10}


@pytest.mark.parametrize(("failures", "succeeds"), [(3, True), (4, False)])
async def test_reading_is_tried_four_times(failures: int, succeeds: bool) -> None:
    replica = Replica(failures)
    async with client(replica) as stub:
        if succeeds:
            await answers(stub, 1)
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await answers(stub, 1)
    assert replica.attempts == 4


async def test_a_question_is_not_asked_twice() -> None:
    replica = Replica()
    async with client(replica) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Ask(gateway_service_pb2.AskRequest(), timeout=5)
    assert replica.attempts == 1
