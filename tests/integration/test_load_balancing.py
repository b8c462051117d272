"""Stock clients balance by the load our servers tell (ORCA): gRPC's own and Envoy's."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1.agent_decoder_service_pb2_grpc import AgentDecoderServiceStub

from tests.fakes.decode_stream import Stream
from tests.fakes.decoder_nursery import Nursery
from tests.fakes.envoy import Config, pointed_at, running_envoy, shipped
from tests.fakes.pool import QUIET, Pool, gang

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(QUIET) as made:
        yield made


@asynccontextmanager
async def busy_and_idle(folder: Path, nursery: Nursery) -> AsyncIterator[Pool]:
    """Two decoders; one of them writes for as long as this is entered."""
    made = Pool(folder, nursery, ("--load-report-interval-s", "0.05"))
    try:
        for name in ("busy", "idle"):
            await made.add(name, step_s=0.005)
        stream = Stream(made.addresses["busy"])
        await stream.send(open=gang("work", tokens=4000, agents=8))
        await stream.until("admitted")
        reading = asyncio.create_task(_read(stream))
        await asyncio.sleep(1.5)  # until it has been busy for a while
        yield made
        assert not reading.done(), "it has been busy all the time"
        reading.cancel()
        stream.call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await stream.channel.close()
    finally:
        made.end()


async def _read(stream: Stream) -> None:
    while await stream.call.read() is not grpc.aio.EOF:
        pass


async def where(stub: AgentDecoderServiceStub, calls: int) -> Counter[str]:
    """Which endpoints answer so many calls."""
    found: Counter[str] = Counter()
    for _ in range(calls):
        answer = await stub.GetEndpoint(pb.GetEndpointRequest(), timeout=10)
        found[answer.description.endpoint_id] += 1
        await asyncio.sleep(0.005)
    return found


@pytest.mark.parametrize("out_of_band", [False, True], ids=["trailers", "stream"])
async def test_grpcs_own_client_goes_to_the_idle_one(
    tmp_path: Path, nursery: Nursery, out_of_band: bool
) -> None:
    async with busy_and_idle(tmp_path, nursery) as made:
        policy = {
            "enableOobLoadReport": out_of_band,
            "oobReportingPeriod": "0.1s",
            "blackoutPeriod": "0s",
            "weightUpdatePeriod": "0.1s",
        }
        for balancer, by_load in (("round_robin", False), ("weighted_round_robin", True)):
            config = {"loadBalancingConfig": [{balancer: policy if by_load else {}}]}
            options = [("grpc.service_config", json.dumps(config))]
            target = "ipv4:" + ",".join(made.addresses.values())
            async with grpc.aio.insecure_channel(target, options=options) as channel:
                stub = AgentDecoderServiceStub(channel)
                await where(stub, 60)  # until reports have come
                found = await where(stub, 200)
            if by_load:
                assert found["busy"] < found["idle"] / 3, found
            else:
                assert abs(found["busy"] - found["idle"]) <= 2, found


@pytest.mark.parametrize("out_of_band", [False, True], ids=["trailers", "stream"])
async def test_envoy_goes_to_the_idle_one_where_nobody_picks(
    tmp_path: Path, nursery: Nursery, out_of_band: bool
) -> None:
    async with busy_and_idle(tmp_path, nursery) as made:
        # Nobody listens at the picker's address: it fails open to the fallback.
        config = pointed_at(
            shipped(), router=["127.0.0.1:9"], decoders=list(made.addresses.values())
        )
        policy = fallback_of(config)
        policy.update(blackout_period="0.1s", weight_update_period="0.1s")
        policy.update(enable_oob_load_report=out_of_band, oob_reporting_period="0.1s")
        with running_envoy(tmp_path, config) as envoy:
            async with grpc.aio.insecure_channel(envoy.address) as channel:
                stub = AgentDecoderServiceStub(channel)
                await where(stub, 60)
                found = await where(stub, 200)
            streams = envoy.stats("cluster.decoders.lb_orca_oob")
    assert found["busy"] < found["idle"] / 3, found
    reports = streams.get("cluster.decoders.lb_orca_oob.reports_received", 0)
    assert (reports > 0) is out_of_band


def fallback_of(config: Config) -> Config:
    """The policy where no endpoint is picked."""
    (cluster,) = (c for c in config["static_resources"]["clusters"] if c["name"] == "decoders")
    (policy,) = cluster["load_balancing_policy"]["policies"]
    override = policy["typed_extension_config"]["typed_config"]
    (fallback,) = override["fallback_policy"]["policies"]
    found: Config = fallback["typed_extension_config"]["typed_config"]
    return found
