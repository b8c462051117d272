"""The load every server tells: as trailers, as a stream, as metrics that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cogitate.kit import lifecycle, metrics
from cogitate.kit.calls import Sizes
from cogitate.kit.channels import open_channel
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.kit.interceptors import long_lived
from cogitate.kit.metric_registry import Metric
from cogitate.kit.orca import TRAILER, ServerLoad
from cogitate.peers import orca_pb2, orca_service_pb2
from cogitate.peers.orca_service_pb2_grpc import OpenRcaServiceStub
from cogitate.router.config import RouterConfig
from cogitate.router.server import build as build_router
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

pytestmark = pytest.mark.contract


class Service:
    """Echoes, waits and fails; says its own load if it is given one."""

    names = ("tests.Load",)

    def __init__(self, server: grpc.aio.Server, own: orca_pb2.OrcaLoadReport | None) -> None:
        self.go = asyncio.Event()
        if own is not None:
            self.load_report = lambda: own
        unary = {"Echo": self.echo, "Wait": self.wait, "Refuse": self.refuse, "Break": self.broken}
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method, StringValue.FromString, StringValue.SerializeToString
            )
            for name, method in unary.items()
        }
        handlers["Stay"] = grpc.unary_stream_rpc_method_handler(
            self.stay, StringValue.FromString, StringValue.SerializeToString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tests.Load", handlers),)
        )

    async def echo(self, request: StringValue, context) -> StringValue:
        context.set_trailing_metadata((("x-own", "kept"),))
        return request

    async def wait(self, request: StringValue, context) -> StringValue:
        await self.go.wait()
        return request

    async def refuse(self, request: StringValue, context) -> StringValue:
        raise InvalidRequest("no")

    async def broken(self, request: StringValue, context) -> StringValue:
        raise CogitateError("broken")

    @long_lived
    async def stay(self, request: StringValue, context):
        yield request
        await self.go.wait()

    async def start(self) -> None:
        pass

    async def drain(self, grace_s: float) -> None:
        self.go.set()

    async def stop(self) -> None:
        pass


def serving(own: orca_pb2.OrcaLoadReport | None = None, **knobs: object):
    async def build(config: ServiceConfig, server: grpc.aio.Server) -> Service:
        return Service(server, own)

    config = ServiceConfig(**{"drain_grace_s": 5.0, "max_concurrent_rpcs": 10, **knobs})  # type: ignore[arg-type]
    return lifecycle.serving(config, build, name="loaded")


def call(channel: grpc.aio.Channel, method: str):
    path = f"/tests.Load/{method}"
    kinds = {"Stay": channel.unary_stream}.get(method, channel.unary_unary)
    make = kinds(path, StringValue.SerializeToString, StringValue.FromString)
    return make(StringValue(value="x"), timeout=10)


async def trailers_of(address: str) -> dict[str, bytes]:
    """The trailers of a router's GetFleet. gRPC's own client keeps this one to itself."""
    method = f"http://{address}/cogitate.v1.RouterService/GetFleet"
    command = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-v", "-d", "{}", method]
    buf = Path(sys.executable).with_name("buf")
    run = await asyncio.create_subprocess_exec(
        str(buf), *command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, said = await run.communicate()
    assert run.returncode == 0, said.decode()
    found = re.findall(r"< \S+ ([\w-]+-bin): (\S+)", said.decode(), re.IGNORECASE)
    return {name.lower(): base64.b64decode(value + "==") for name, value in found}


async def test_a_trailer_tells_the_load_where_the_knob_is_not_0() -> None:
    for interval_s in (0.1, 0.0):
        config = RouterConfig(load_report_interval_s=interval_s)
        async with lifecycle.serving(config, build_router, name="router") as running:
            trailers = await trailers_of(running.address)
        assert (TRAILER in trailers) == bool(interval_s)
        if interval_s:
            report = orca_pb2.OrcaLoadReport.FromString(trailers[TRAILER])
            assert report.application_utilization > 0


async def test_rpcs_are_counted_and_what_a_service_set_is_kept() -> None:
    async with serving(load_report_interval_s=0.001) as running:
        async with open_channel(running.address) as channel:
            for _ in range(20):
                done = call(channel, "Echo")
                await done
                await asyncio.sleep(0.002)
            assert dict(await done.trailing_metadata())["x-own"] == "kept"
            report = running.load.report()
    assert report.rps_fractional > 0 and report.cpu_utilization > 0
    assert 0 < report.application_utilization < 0.1, "less than one of ten"
    assert report.eps == 0


async def test_what_the_service_says_of_itself_wins() -> None:
    own = orca_pb2.OrcaLoadReport(application_utilization=0.7, named_metrics={"queue": 3})
    async with serving(own) as running:
        report = orca_pb2.OrcaLoadReport.FromString(running.load.packed())
    assert report.application_utilization == 0.7
    assert dict(report.named_metrics) == {"queue": 3}


async def test_there_is_no_stream_where_the_knob_is_0() -> None:
    async with serving(load_report_interval_s=0.0) as running:
        async with open_channel(running.address) as channel:
            stream = OpenRcaServiceStub(channel).StreamCoreMetrics(
                orca_service_pb2.OrcaLoadReportRequest(), timeout=5
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_the_stream_comes_as_asked_and_does_not_hold_up_the_end() -> None:
    loop = asyncio.get_running_loop()
    async with serving(load_report_interval_s=0.01, drain_grace_s=60.0) as running:
        async with open_channel(running.address) as channel:
            request = orca_service_pb2.OrcaLoadReportRequest(report_interval=Duration(nanos=10**8))
            stream = OpenRcaServiceStub(channel).StreamCoreMetrics(request)
            began = loop.time()
            for _ in range(4):
                assert (await stream.read()).cpu_utilization >= 0
            assert loop.time() - began >= 0.29, "three intervals of what was asked"
            running.load.stop()
            async with asyncio.timeout(5):
                assert await stream.read() is grpc.aio.EOF


async def test_running_rpcs_are_counted_and_lasting_streams_are_not() -> None:
    async with serving(load_report_interval_s=0.001) as running:
        async with open_channel(running.address) as channel:
            stay = call(channel, "Stay")
            await stay.read()
            assert running.load._running == 0
            waits = [asyncio.ensure_future(call(channel, "Wait")) for _ in range(5)]
            async with asyncio.timeout(5):
                while running.load._running < 5:
                    await asyncio.sleep(0.005)
                while running.load.report().application_utilization < 0.1:
                    await asyncio.sleep(0.02)
            running.service.go.set()
            await asyncio.gather(*waits)
            assert running.load._running == 0


async def test_only_the_servers_own_failures_count_as_errors() -> None:
    async with serving(load_report_interval_s=0.001) as running:
        async with open_channel(running.address) as channel:
            for method, eps in (("Refuse", False), ("Break", True)):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(channel, method)
                await asyncio.sleep(0.01)
                assert (running.load.report().eps > 0) is eps
            gone = call(channel, "Wait")
            async with asyncio.timeout(5):
                while not running.load._running:
                    await asyncio.sleep(0.005)
                gone.cancel()
                while running.load._running:
                    await asyncio.sleep(0.005)
            assert running.load._failed == 1


def test_a_report_is_made_anew_only_when_it_is_old_enough() -> None:
    now = [0.0]
    config = ServiceConfig(load_report_interval_s=1.0)
    load = ServerLoad(config, monotonic=lambda: now[0])
    said = [0.0]
    load._read = lambda: orca_pb2.OrcaLoadReport(application_utilization=said[0])
    for at, expected in ((0.0, 0.1), (0.999, 0.1), (1.0, 0.3)):
        now[0], said[0] = at, said[0] + 0.1
        report = orca_pb2.OrcaLoadReport.FromString(load.packed())
        assert report.application_utilization == pytest.approx(expected)


def test_rates_follow_a_change_and_forget_it() -> None:
    now = [0.0]
    load = ServerLoad(ServiceConfig(max_concurrent_rpcs=4), monotonic=lambda: now[0])
    context = SimpleNamespace(
        code=lambda: 0, trailing_metadata=lambda: (), set_trailing_metadata=lambda made: None
    )

    def run(seconds: float, took_s: float) -> orca_pb2.OrcaLoadReport:
        ends = now[0] + seconds
        while now[0] < ends:
            with load.rpc("/a/B", context, False, Sizes()):
                now[0] += took_s
            load.report()
        return load.report()

    busy = run(20.0, 0.1)  # one after the other: ten a second, always one of four running
    assert busy.rps_fractional == pytest.approx(10, rel=0.1)
    assert busy.application_utilization == pytest.approx(0.25, rel=0.1)
    for _ in range(2):
        now[0] += 20.0
        idle = load.report()
    assert idle.rps_fractional < 0.01 and idle.application_utilization < 0.001


async def test_every_rpc_is_a_metric_by_method_and_status() -> None:
    reader = InMemoryMetricReader()
    exported = metrics.setup("tester", ServiceConfig(), [reader])
    try:
        async with serving() as running, open_channel(running.address) as channel:
            await call(channel, "Echo")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, "Refuse")
            found = metrics.values(reader)
    finally:
        exported.shutdown()
    counts = {
        (a["grpc.method"], a["grpc.status"]): point.count
        for a, point in found[Metric.RPC_DURATION.key]
    }
    assert counts == {("tests.Load/Echo", "OK"): 1, ("tests.Load/Refuse", "INVALID_ARGUMENT"): 1}
    assert found["cogitate.rpcs"] == [({}, 0)]


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


async def test_prometheus_scrapes_every_service_under_names_of_the_page(
    unused_tcp_port: int,
) -> None:
    listen = f"127.0.0.1:{unused_tcp_port}"
    async with (
        serving(prometheus_listen=listen) as running,
        open_channel(running.address) as channel,
    ):
        await call(channel, "Echo")
        text = await asyncio.to_thread(scrape, listen)
        labels = 'grpc_method="tests.Load/Echo",grpc_status="OK"'
        assert f"grpc_server_call_duration_seconds_count{{{labels}}} 1.0" in text
        assert f'grpc_server_call_duration_seconds_bucket{{{labels},le="0.25"}}' in text
        assert "\ncogitate_rpcs 0.0\n" in text
        assert 'service_name="loaded"' in text
        with pytest.raises(OSError, match="is it in use"):
            async with serving(prometheus_listen=listen):
                pass
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(scrape, listen)


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536"])
async def test_a_malformed_address_is_refused_by_a_sentence(listen: str) -> None:
    with pytest.raises(OSError, match="not host:port"):
        async with serving(prometheus_listen=listen):
            pass
