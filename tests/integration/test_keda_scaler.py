"""A client that speaks as KEDA does, at a router process: what a pool needs, from zero and back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cogitate.kit.channels import open_channel
from cogitate.peers import keda_pb2 as pb
from cogitate.peers import keda_pb2_grpc as pb_grpc
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb2
from cogitate.v1 import router_service_pb2 as router_pb2
from cogitate.v1 import router_service_pb2_grpc as router_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tests.fakes.endpoint import FakeEndpoint

pytestmark = pytest.mark.integration

NAMES = {"agents": "cogitate-agents", "kv": "cogitate-kv", "wait": "cogitate-wait"}


@asynccontextmanager
async def router(folder: Path, *flags: str) -> AsyncIterator[str]:
    """A router process; yields its address."""
    ready = folder / "ready"
    command = [sys.executable, "-m", "cogitate.router", "--listen", "127.0.0.1:0"]
    command += ["--ready-file", str(ready), "--report-interval-s", "0.05", *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(30):
            while not ready.exists():
                assert process.poll() is None
                await asyncio.sleep(0.02)
        yield ready.read_text().strip()
        process.terminate()
        assert await asyncio.to_thread(process.wait, 15) == 0
    finally:
        process.kill()
        process.wait()


def reference(**metadata: str) -> pb.ScaledObjectRef:
    """As KEDA sends it: with its own keys among the trigger's."""
    everything = {"scalerAddress": "router:7102", "model": "mini", **metadata}
    return pb.ScaledObjectRef(name="pool", namespace="mesh", scalerMetadata=everything)


async def values(stub, **metadata: str) -> dict[str, float]:
    """Reads every metric as KEDA does: the float, or the whole number where that is 0."""
    metadata.setdefault("metrics", "agents,kv,wait")
    found = {}
    for name, key in NAMES.items():
        request = pb.GetMetricsRequest(scaledObjectRef=reference(**metadata), metricName=key)
        (value,) = (await stub.GetMetrics(request, timeout=5)).metricValues
        assert value.metricName == key
        found[name] = value.metricValueFloat or float(value.metricValue)
    return found


async def until(read, wanted) -> None:
    """Reads until it is as wanted; the test's own timeout bounds it."""
    while not wanted(await read()):
        await asyncio.sleep(0.02)


class Leases:
    """Gangs declared over one stream of leases, which stays open while the object is entered."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Leases:
        self._channel = open_channel(self._address)
        self._call = router_grpc.RouterServiceStub(self._channel).Lease()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def declare(self, agents: int, attempt: int = 1, wait_s: int = 0) -> str:
        """Declares a gang; says whether it was granted, queued or denied."""
        gang = router_pb2.GangSpec(model="mini", agent_ids=range(agents), tokens_per_agent=64)
        declared = router_pb2.DeclareGangs(contemplation_id="c", attempt=attempt, gangs=[gang])
        if wait_s:
            declared.max_wait_duration.FromSeconds(wait_s)
        await self._call.write(router_pb2.LeaseRequest(declare=declared))
        answer = await self._call.read()
        self.denied = answer.denied
        return str(answer.WhichOneof("event"))

    async def release(self) -> None:
        release = router_pb2.ReleaseLease(contemplation_id="c")
        await self._call.write(router_pb2.LeaseRequest(release=release))


async def test_a_pool_comes_from_zero_and_goes_back(tmp_path: Path) -> None:
    async with router(tmp_path, "--keda-scaler", "--scaler-interval-s", "0.02") as address:
        async with open_channel(address) as channel, Leases(address) as leases:
            stub = pb_grpc.ExternalScalerStub(channel)
            active = stub.StreamIsActive(reference(), timeout=60)
            specs = stub.StreamMetricSpec(reference(metrics="agents"), timeout=60)
            assert (await active.read()).result is False, "it is told at once"
            (spec,) = (await specs.read()).metricSpecs
            assert (spec.metricName, spec.targetSizeFloat) == ("cogitate-agents", 16)

            # Nobody serves the model: agents wait, and that wakes the pool. What KEDA scales is
            # known, so the aggregator is told to come back.
            assert await leases.declare(agents=20) == "denied"
            assert leases.denied.reason == "NO_ENDPOINT" and leases.denied.HasField("retry_delay")
            assert (await active.read()).result is True
            waiting = await values(stub)
            assert (waiting["agents"], waiting["kv"]) == (20, 0)
            assert waiting["wait"] > 0

            # An endpoint of 10 sequences comes: 20 agents need 20 / (0.8 × 10), so three of them.
            async with FakeEndpoint("a", address, max_sequence_count=10):
                (spec,) = (await specs.read()).metricSpecs
                assert (spec.targetSizeFloat, spec.targetSize) == (8, 8)
                polled = await stub.GetMetricSpec(reference(metrics="agents"), timeout=5)
                assert list(polled.metricSpecs) == [spec], "polled and streamed are the same"
                async with FakeEndpoint("b", address, max_sequence_count=10) as b:
                    assert await leases.declare(agents=20, attempt=2) == "granted"
                    assert (await values(stub))["agents"] == 20, "held now, no longer waiting"
                    b.load = decoder_pb2.EndpointLoad(
                        running_sequence_count=10, waiting_sequence_count=6, free_block_count=1024
                    )
                    await leases.release()
                    # 10 running and 6 waiting at b, of whose blocks a quarter are free.
                    await until(
                        lambda: values(stub), lambda v: (v["agents"], v["kv"]) == (16, 0.75)
                    )
                    assert (await values(stub))["wait"] > 0
                    assert (await values(stub, provider="provider-a"))["agents"] == 0
                    idle = reference(provider="provider-a")
                    assert not (await stub.IsActive(idle, timeout=5)).result
                    assert (await stub.IsActive(reference(), timeout=5)).result
            # Both are gone, and nobody asks: the pool may go back to zero.
            assert (await active.read()).result is False
            active.cancel()
            specs.cancel()


async def test_agents_that_found_no_place_stop_waiting_after_the_window(tmp_path: Path) -> None:
    flags = ("--keda-scaler", "--scaler-interval-s", "0.02", "--scaler-window-s", "0.3")
    async with router(tmp_path, *flags) as address:
        async with open_channel(address) as channel, Leases(address) as leases:
            stub = pb_grpc.ExternalScalerStub(channel)
            assert await leases.declare(agents=2) == "denied"
            active = stub.StreamIsActive(reference(), timeout=60)
            assert (await active.read()).result is True
            assert (await active.read()).result is False
            active.cancel()


async def test_agents_in_the_queue_wait_as_long_as_they_are_there(tmp_path: Path) -> None:
    flags = ("--keda-scaler", "--scaler-window-s", "0.2")
    async with router(tmp_path, *flags) as address:
        async with FakeEndpoint("a", address, max_sequence_count=4) as a, Leases(address) as leases:
            async with open_channel(address) as channel:
                stub = pb_grpc.ExternalScalerStub(channel)
                a.load = decoder_pb2.EndpointLoad(running_sequence_count=3, free_block_count=1024)
                await until(lambda: values(stub), lambda v: v["agents"] == 3)
                assert await leases.declare(agents=2, wait_s=60) == "queued"
                await asyncio.sleep(0.5)  # longer than the window of denials
                assert (await values(stub))["agents"] == 5
                await leases.release()
                await until(lambda: values(stub), lambda v: v["agents"] == 3)


@pytest.mark.parametrize(
    ("metadata", "field", "words"),
    [
        ({"model": ""}, "model", "it names the model"),
        ({"models": "mini"}, "models", "unknown key 'models'; there is: agentsPerEndpoint"),
        ({"metrics": "agents,queue"}, "metrics", "some of agents, kv, wait"),
        ({"metrics": " , "}, "metrics", "some of agents, kv, wait"),
        ({"kvTarget": "0"}, "kvTarget", "a number above 0"),
        ({"agentsPerEndpoint": "many"}, "agentsPerEndpoint", "a number above 0"),
        ({"waitTargetSeconds": "inf"}, "waitTargetSeconds", "a number above 0"),
        ({"provider": "p" * 257}, "provider", "longer than 256"),
    ],
)
async def test_metadata_is_refused_by_a_sentence(
    shared_router: str, metadata: dict[str, str], field: str, words: str
) -> None:
    async with open_channel(shared_router) as channel:
        stub = pb_grpc.ExternalScalerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMetricSpec(reference(**metadata), timeout=5)
        stream = stub.StreamMetricSpec(reference(**metadata), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await stream.read()
    for error in (caught.value, streamed.value):
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert words in str(error.details())
        status = rpc_status.from_call(error)
        assert status is not None
        violations = error_details_pb2.BadRequest()
        assert any(detail.Unpack(violations) for detail in status.details)
        assert violations.field_violations[0].field == f"scalerMetadata.{field}"


@pytest.fixture
async def shared_router(tmp_path: Path) -> AsyncIterator[str]:
    async with router(tmp_path, "--keda-scaler") as address:
        yield address


async def test_an_unknown_metric_is_refused_and_its_targets_are_taken(shared_router: str) -> None:
    async with open_channel(shared_router) as channel:
        stub = pb_grpc.ExternalScalerStub(channel)
        request = pb.GetMetricsRequest(scaledObjectRef=reference(), metricName="s0-queue")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMetrics(request, timeout=5)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "cogitate-agents, cogitate-kv, cogitate-wait" in str(caught.value.details())
        asked = reference(
            metrics="wait,agents", agentsPerEndpoint="2.5", waitTargetSeconds="0.5", kvTarget="0.7"
        )
        specs = (await stub.GetMetricSpec(asked, timeout=5)).metricSpecs
        targets = [(s.metricName, s.targetSizeFloat, s.targetSize) for s in specs]
        assert targets == [("cogitate-wait", 0.5, 1), ("cogitate-agents", 2.5, 3)]
        every = await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=asked), timeout=5)
        assert [v.metricName for v in every.metricValues] == ["cogitate-wait", "cogitate-agents"]
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="externalscaler.ExternalScaler")
        assert (await health.Check(asked, timeout=5)).status == 1


async def test_without_the_knob_there_is_no_scaler(tmp_path: Path) -> None:
    async with router(tmp_path) as address, open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.ExternalScalerStub(channel).IsActive(reference(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
