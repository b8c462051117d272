"""The router as an external processor of Envoy, over real sockets, with scripted endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cogitate.kit import lifecycle, metrics
from cogitate.kit.channels import open_channel
from cogitate.kit.config import ServiceConfig
from cogitate.kit.metric_registry import Metric
from cogitate.peers import ext_proc_pb2 as pb
from cogitate.peers.ext_proc_pb2_grpc import ExternalProcessorStub
from cogitate.router.config import RouterConfig
from cogitate.router.picking.ext_proc import SERVICE_NAME
from cogitate.router.server import build
from cogitate.v1 import router_service_pb2 as router_pb2
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.fakes.endpoint import FakeEndpoint

pytestmark = pytest.mark.contract
SUBSET = "x-gateway-destination-endpoint-subset"


class Proxy:
    """Asks as Envoy does: a stream for each request."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.stub = ExternalProcessorStub(self.channel)
        self.fleet = RouterServiceStub(self.channel)

    async def ask(self, *, subset: object = None, **headers: str) -> pb.ProcessingResponse:
        """One question, with headers alone; the stream must end with the answer."""
        call = self.stub.Process(timeout=20)
        await call.write(question(subset=subset, **headers))
        answer = await call.read()
        assert await call.read() is grpc.aio.EOF
        return answer  # type: ignore[no-any-return]

    async def picked(self, **asked: Any) -> list[str]:
        """The endpoints of an answer, best first."""
        answer = await self.ask(**asked)
        assert not answer.HasField("immediate_response"), answer
        (option,) = answer.request_headers.response.header_mutation.set_headers
        return option.header.raw_value.decode().split(",")

    async def refused(self, **asked: Any) -> tuple[int, str]:
        """Status and sentence of a refusal."""
        said = (await self.ask(content_type="application/grpc", **asked)).immediate_response
        return said.status.code, said.body.decode()

    async def counts(self) -> tuple[int, int]:
        """Leases, and those that wait."""
        fleet = await self.fleet.GetFleet(router_pb2.GetFleetRequest(), timeout=5)
        return fleet.lease_count, fleet.queued_count

    async def until(self, leases: int, waiting: int) -> None:
        async with asyncio.timeout(10):
            while await self.counts() != (leases, waiting):
                await asyncio.sleep(0.01)


def question(*, subset: object = None, **headers: str) -> pb.ProcessingRequest:
    """What Envoy sends first."""
    values = [
        pb.HeaderValue(key=k.replace("_", "-"), raw_value=v.encode()) for k, v in headers.items()
    ]
    asked = pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=pb.HeaderMap(headers=values)),
        protocol_config=pb.ProtocolConfiguration(),
    )
    if subset is not None:
        hint = asked.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        hint.update({SUBSET: subset})
    return asked


@asynccontextmanager
async def router(**knobs: object) -> AsyncIterator[tuple[Proxy, str]]:
    given = {"picker": True, "report_interval_s": 0.05, "drain_grace_s": 2.0, **knobs}
    async with lifecycle.serving(RouterConfig(**given), build, name="router") as running:  # type: ignore[arg-type]
        proxy = Proxy(running.address)
        yield proxy, running.address
        await proxy.channel.close()


async def test_it_is_off_unless_asked_for() -> None:
    async with router(picker=False) as (proxy, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await proxy.ask()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_it_is_on_a_port_of_its_own_too_where_that_is_named(unused_tcp_port: int) -> None:
    own = f"127.0.0.1:{unused_tcp_port}"
    async with router(picker_listen=own) as (_, address), FakeEndpoint("a", address):
        other = Proxy(own)
        assert await other.picked() == ["127.0.0.1:1"]
        health = health_pb2_grpc.HealthStub(other.channel)
        check = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
        await other.channel.close()


async def test_a_pick_counts_until_reports_have_it() -> None:
    async with router(picker_settle_s=0.5) as (proxy, address):
        async with FakeEndpoint("a", address, max_sequence_count=2):
            assert await proxy.picked(x_cogitate_agents="2") == ["127.0.0.1:1"]
            assert await proxy.counts() == (1, 0)
            status, sentence = await proxy.refused()
            assert status == 429 and "there is room for 0 of 1 agents" in sentence
            await proxy.until(0, 0)
            assert await proxy.picked() == ["127.0.0.1:1"]


async def test_fallbacks_are_as_many_as_asked_for_and_as_there_are() -> None:
    for most, told in ((0, 1), (1, 2), (16, 3)):
        async with router(picker_fallback_count=most) as (proxy, address):
            async with (
                FakeEndpoint("a", address, address="10.0.0.1:1") as a,
                FakeEndpoint("b", address, address="10.0.0.2:1"),
                FakeEndpoint("c", address, address="[::1]:1"),
                FakeEndpoint("d", address, address="decoder-d:1"),  # Envoy would not resolve it
            ):
                a.load.running_sequence_count = 60
                await asyncio.sleep(0.2)
                found = await proxy.picked()
                assert len(found) == told and "decoder-d:1" not in found
                assert "10.0.0.1:1" not in found[:2], "it is the most loaded"


async def test_a_subset_binds() -> None:
    async with router() as (proxy, address):
        async with (
            FakeEndpoint("a", address, address="10.0.0.1:1"),
            FakeEndpoint("b", address, address="10.0.0.2:1"),
        ):
            assert await proxy.picked(subset=["10.0.0.2:1", "10.0.0.9:1"]) == ["10.0.0.2:1"]
            assert await proxy.picked(subset="10.0.0.1:1") == ["10.0.0.1:1"]
            for nothing in ([], ["10.0.0.9:1"], ""):
                status, sentence = await proxy.refused(subset=nothing)
                assert status == 503 and "in question reports to this router" in sentence
            status, sentence = await proxy.refused(subset=3)
            assert status == 400 and SUBSET in sentence


async def test_the_model_may_be_left_out_where_there_is_but_one() -> None:
    async with router() as (proxy, address):
        status, sentence = await proxy.refused()
        assert (status, sentence) == (503, "no endpoint reports to this router")
        async with FakeEndpoint("a", address):
            assert await proxy.picked()
            async with FakeEndpoint("b", address, models=["other"]):
                status, sentence = await proxy.refused()
                assert status == 400 and "x-gateway-model-name" in sentence
                assert await proxy.picked(x_gateway_model_name="other")
            status, sentence = await proxy.refused(x_gateway_model_name="third")
            assert status == 404 and "there is: mini" in sentence
            # Who served it may come back.
            status, _ = await proxy.refused(x_gateway_model_name="other")
            assert status == 503


async def test_it_waits_for_room_as_long_as_it_may() -> None:
    async with router(picker_wait_s=10.0, picker_settle_s=1.0) as (proxy, address):
        async with FakeEndpoint("a", address, max_sequence_count=1):
            assert await proxy.picked()
            began = asyncio.get_running_loop().time()
            assert await proxy.picked(), "when the first has settled"
            assert asyncio.get_running_loop().time() - began > 0.3
            waiting = proxy.stub.Process(timeout=20)
            await waiting.write(question())
            await proxy.until(2, 1)  # who waits has an empty lease
            waiting.cancel()  # the client left
            await proxy.until(1, 0)
            await proxy.until(0, 0)
    async with router(picker_wait_s=0.3, picker_settle_s=60.0) as (proxy, address):
        async with FakeEndpoint("a", address, max_sequence_count=1):
            assert await proxy.picked()
            status, sentence = await proxy.refused()
            assert status == 429 and "room for 0" in sentence


async def test_a_router_that_drains_picks_no_more() -> None:
    async with lifecycle.serving(
        RouterConfig(picker=True, picker_wait_s=10.0, drain_grace_s=2.0, picker_settle_s=60.0),
        build,
        name="router",
    ) as running:
        proxy = Proxy(running.address)
        async with FakeEndpoint("a", running.address, max_sequence_count=1):
            assert await proxy.picked()
            waiting = proxy.stub.Process(timeout=20)
            await waiting.write(question())
            await proxy.until(2, 1)
            await running.service.drain(1.0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await proxy.ask()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await proxy.channel.close()


async def test_bodies_come_back_piece_by_piece_where_they_are_sent_here() -> None:
    async with router() as (proxy, address), FakeEndpoint("a", address):
        call = proxy.stub.Process(timeout=20)
        asked = question()
        asked.protocol_config.request_body_mode = pb.FULL_DUPLEX_STREAMED
        await call.write(asked)
        assert (await call.read()).WhichOneof("response") == "request_headers"
        for piece, ends in ((b"one", False), (b"two", True)):
            body = pb.HttpBody(body=piece, end_of_stream=ends)
            await call.write(pb.ProcessingRequest(request_body=body))
            answer = await call.read()
            sent = answer.request_body.response.body_mutation.streamed_response
            assert (sent.body, sent.end_of_stream) == (piece, ends)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_answers_are_a_metric_by_state() -> None:
    reader = InMemoryMetricReader()
    exported = metrics.setup("tester", ServiceConfig(), [reader])
    try:
        async with router(picker_settle_s=60.0) as (proxy, address):
            async with FakeEndpoint("a", address, max_sequence_count=1):
                await proxy.picked()
                await proxy.refused()
                await proxy.refused(x_gateway_model_name="third")
            found = metrics.values(reader)
    finally:
        exported.shutdown()
    counts = {a["cogitate.state"]: p.count for a, p in found[Metric.PICK_DURATION.key]}
    assert counts == {"picked": 1, "rejected": 1, "unknown_model": 1}
