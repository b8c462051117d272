"""The real Envoy between gateways and aggregators: by load, in the own zone while it lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cogitate.kit.config import ServiceConfig
from cogitate.kit.lifecycle import serving
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.fakes import certificates
from tests.fakes.aggregator import Break, FakeAggregator, Step, Wait
from tests.fakes.envoy import (
    CONFIGS,
    Config,
    Envoy,
    at,
    cluster_of,
    envoy_binary,
    running_envoy_beside,
)
from tests.fakes.front import happy, mesh

pytestmark = pytest.mark.integration
SLOW_S, FAST_S = 0.2, 0.02


@pytest.fixture(autouse=True)
def envoy() -> None:
    envoy_binary()  # skips


class Aggregator:
    """A scripted one under the kit's own server, whose load it tells; `end` stops it."""

    def __init__(self, script: Any = happy, **knobs: Any) -> None:
        self._script, self._stack, self.address = script, AsyncExitStack(), ""
        self._knobs = knobs
        self.fake: Any = None

    async def start(self) -> None:
        async def build(_: ServiceConfig, server: grpc.aio.Server) -> FakeAggregator:
            self.fake = FakeAggregator(server, self._script)
            return self.fake

        config = replace(
            ServiceConfig(), listen="127.0.0.1:0", drain_grace_s=0.1, load_report_interval_s=0.05,
            **self._knobs,
        )  # fmt: skip
        running = await self._stack.enter_async_context(serving(config, build))
        self.address = running.address

    async def end(self) -> None:
        await self._stack.aclose()

    @property
    def asked(self) -> int:
        return len(self.fake.requests)


@asynccontextmanager
async def zones(
    folder: Path, own: Sequence[Any], other: Sequence[Any], by_load: bool = True
) -> AsyncIterator[Envoy]:
    """Envoy before aggregators in two zones."""
    async with AsyncExitStack() as stack:
        for one in (*own, *other):
            await one.start()
            stack.push_async_callback(one.end)
        config = pointed(own, other)
        if not by_load:
            cluster_of(config, "aggregators").pop("load_balancing_policy")
        yield await stack.enter_async_context(running_envoy_beside(folder, config))


def pointed(own: Sequence[Any], other: Sequence[Any], tls: Path | None = None) -> Config:
    text = (CONFIGS / "aggregators.yaml").read_text(encoding="utf-8")
    if tls:
        text = text.replace("cogitate.local", certificates.DOMAIN).replace("/etc/envoy", str(tls))
        for secret in CONFIGS.glob("mesh-*.yaml"):
            (tls / secret.name).write_text(
                secret.read_text(encoding="utf-8").replace("/etc/envoy", str(tls))
            )
    config: Config = yaml.safe_load(text)
    cluster = cluster_of(config, "aggregators")
    if not tls:
        del cluster["transport_socket"]
        del config["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"]
    cluster["type"] = "STATIC"
    for locality, members in zip(
        cluster["load_assignment"]["endpoints"], (own, other), strict=True
    ):
        locality.update(at([one.address for one in members]))
    (policy,) = cluster["load_balancing_policy"]["policies"]
    policy["typed_extension_config"]["typed_config"].update(
        oob_reporting_period="0.1s", blackout_period="0.1s", weight_update_period="0.1s"
    )
    return config


def question() -> pb2.ContemplateRequest:
    request = pb2.ContemplateRequest()
    request.spec.conversation.add(role=common_pb2.ROLE_USER).parts.add(text="?")
    return request


def takes(delay_s: float) -> Any:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        accepted, *rest = happy(request)
        return (accepted, Wait(delay_s), *rest)

    return script


async def ask(envoy: Envoy, count: int, at_once: int = 1) -> None:
    async with grpc.aio.insecure_channel(envoy.address) as channel:
        stub: Any = ContemplationServiceStub(channel)
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                last = [one async for one in stub.Contemplate(question(), timeout=10)][-1]
                assert last.event.HasField("verdict")

        await asyncio.gather(*(client() for _ in range(at_once)))


async def until(members: int, envoy: Envoy) -> None:
    async with asyncio.timeout(20):
        while envoy.stats("cluster.aggregators.membership_healthy") != {
            "cluster.aggregators.membership_healthy": members
        }:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("by_load", [True, False], ids=["by load", "by turns"])
async def test_weights_follow_how_long_contemplations_take(tmp_path: Path, by_load: bool) -> None:
    slow, fast = Aggregator(takes(SLOW_S)), Aggregator(takes(FAST_S))
    async with zones(tmp_path, [slow, fast], [], by_load) as envoy:
        await ask(envoy, 80, at_once=4)  # until averages say so
        before = slow.asked, fast.asked
        await ask(envoy, 60, at_once=4)
        more = slow.asked - before[0], fast.asked - before[1]
        if not by_load:
            assert abs(more[0] - more[1]) <= 2, more
            return
        assert more[0] < more[1] / 3, more
        assert slow.asked > 0, "and is not forgotten"
        assert envoy.stats("cluster.aggregators.lb_orca_oob.reports_received")


async def test_the_own_zone_is_preferred_and_the_other_serves_when_it_dies(tmp_path: Path) -> None:
    own, other = [Aggregator(), Aggregator()], [Aggregator(), Aggregator()]
    async with zones(tmp_path, own, other) as envoy:
        await ask(envoy, 20)
        assert [one.asked > 0 for one in (*own, *other)] == [True, True, False, False]

        await own[0].end()
        await until(3, envoy)
        await ask(envoy, 40)  # half of the zone is too little for all of it
        assert sum(one.asked for one in other) > 0 and own[1].asked > 20

        await own[1].end()
        await ask(envoy, 3)  # before anybody has noticed: what cannot be reached is tried elsewhere
        await until(2, envoy)
        before = sum(one.asked for one in other)
        await ask(envoy, 20)
        assert sum(one.asked for one in other) == before + 20
        assert all(one.asked > 3 for one in other)


async def test_a_gateways_stream_goes_on_through_it_when_it_breaks(tmp_path: Path) -> None:
    def breaks(request: pb2.ContemplateRequest) -> Sequence[Step]:
        accepted, *rest = happy(request)
        return (accepted, Break(), *rest)

    one = Aggregator(breaks)
    async with zones(tmp_path, [one], []) as envoy:
        async with mesh(aggregator_address=envoy.address) as made:
            stub: Any = made.contemplation
            events = [e.event async for e in stub.Contemplate(question(), timeout=10)]
        assert [e.event_number for e in events] == [1, 2, 3]
        assert one.fake.attaches == [1]


async def test_by_mutual_tls_it_is_the_gateway_and_nobody_else_is(tmp_path: Path) -> None:
    """Aggregators ask for certificates; so does Envoy, of whoever calls it."""
    for name, folder in (("gateway", "mesh"), ("aggregator", "aggregator"), ("cli", "cli")):
        certificates.write(tmp_path / folder, certificates.signed(name))
    one = Aggregator(tls_dir=str(tmp_path / "aggregator"))
    await one.start()
    try:
        config = pointed([one], [], tls=tmp_path)
        async with running_envoy_beside(tmp_path, config) as envoy:
            await until(1, envoy)
            assert await answered(envoy, tmp_path / "mesh")
            assert not await answered(envoy, tmp_path / "cli")
            async with asyncio.timeout(10):
                while not envoy.stats("cluster.aggregators.lb_orca_oob.reports_received"):
                    await asyncio.sleep(0.05)

            # Another that says it is an aggregator, of an authority that nobody trusts.
            stranger = certificates.signed("aggregator", by=certificates.authority("stranger"))
            certificates.write(tmp_path / "stranger", stranger)
            other = Aggregator(tls_dir=str(tmp_path / "stranger"))
            await other.start()
            cluster = cluster_of(config, "aggregators")
            cluster["load_assignment"]["endpoints"][0].update(at([other.address]))
            async with running_envoy_beside(tmp_path, config) as fooled:
                assert not await answered(fooled, tmp_path / "mesh")
            assert not other.asked
            await other.end()
    finally:
        await one.end()


async def answered(envoy: Envoy, tls: Path) -> bool:
    files = [(tls / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt")]
    credentials = grpc.ssl_channel_credentials(*files)
    async with grpc.aio.secure_channel(envoy.address, credentials) as channel:
        stub: Any = ContemplationServiceStub(channel)
        try:
            events = [one async for one in stub.Contemplate(question(), timeout=3)]
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return False
        return bool(events[-1].event.HasField("verdict"))
