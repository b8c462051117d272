"""A service starts, says when it serves, drains what runs, and ends when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.kit import channels, lifecycle, metrics
from cogitate.kit.config import ServiceConfig
from cogitate.kit.metric_registry import Metric
from cogitate.kit.trace_store import TraceStore
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)

from tests.fakes.trap_service import NAME, SECRET, TrapService, build, call

pytestmark = pytest.mark.contract

PROGRAM = Path(__file__).parents[1] / "fakes" / "trap_service.py"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str = NAME) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5.0)
    status: int = answer.status
    return status


@asynccontextmanager
async def service_of(
    service: TrapService, **knobs: object
) -> AsyncIterator[tuple[grpc.aio.Channel, lifecycle.Running]]:
    config = ServiceConfig(**knobs)  # type: ignore[arg-type]
    async with lifecycle.serving(config, build(service)) as running:
        async with channels.open_channel(running.address) as channel:
            yield channel, running


async def test_the_bound_address_is_handed_to_build_and_written_when_serving(
    tmp_path: Path,
) -> None:
    ready, listens = tmp_path / "ready", []

    async def remembering(config: ServiceConfig, server: grpc.aio.Server) -> lifecycle.Service:
        listens.append(config.listen)
        assert not ready.exists()
        return TrapService()

    config = ServiceConfig(ready_file=str(ready))
    async with lifecycle.serving(config, remembering) as running:
        assert listens == [running.address]
        assert ready.read_text() == running.address + "\n"
        assert int(running.address.rpartition(":")[2]) > 0
        assert [path.name for path in tmp_path.iterdir()] == ["ready"]
    assert not ready.exists()


async def test_health_and_reflection_know_the_services() -> None:
    async with service_of(TrapService()) as (channel, _):
        assert await health_of(channel, "") == SERVING
        assert await health_of(channel) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "cogitate.test.Other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request]), timeout=5.0):
            names = {service.name for service in answer.list_services_response.service}
        assert names == {
            NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
            "xds.service.orca.v3.OpenRcaService",
        }  # fmt: skip


async def test_reflection_can_be_switched_off() -> None:
    async with service_of(TrapService(), reflection=False) as (channel, _):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [a async for a in stub.ServerReflectionInfo(iter([request]), timeout=5.0)]
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class Gated(TrapService):
    """Starts only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.starting, self.address = asyncio.Event(), asyncio.Event(), ""

    async def start(self) -> None:
        self.starting.set()
        await self.let.wait()


async def test_until_it_has_started_it_is_not_serving_and_refuses() -> None:
    service, entered, leave = Gated(), asyncio.Event(), asyncio.Event()

    async def building(config: ServiceConfig, server: grpc.aio.Server) -> lifecycle.Service:
        service.address = config.listen
        return await build(service)(config, server)

    async def serve() -> None:
        async with lifecycle.serving(ServiceConfig(), building):
            entered.set()
            await leave.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve())
        await service.starting.wait()
        async with channels.open_channel(service.address) as channel:
            assert await health_of(channel) == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "Unary", "echo", timeout=5.0)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            service.let.set()
            await entered.wait()
            assert await health_of(channel) == SERVING
            assert await call(channel, "Unary", "echo", timeout=5.0) == ["echo"]
        leave.set()


async def test_a_drain_lets_running_work_finish() -> None:
    service = TrapService()
    async with lifecycle.serving(ServiceConfig(), build(service)) as running:
        channel = channels.open_channel(running.address)
        work = asyncio.ensure_future(call(channel, "Unary", "work", timeout=30.0))
        while not service.started["work"]:
            await asyncio.sleep(0.01)
    # The block is left: drained and stopped.
    assert await work == ["done"]
    assert service.life == ["start", "drain", "stop"]
    await channel.close()


async def test_what_outlasts_the_grace_is_cut_and_health_says_so_before() -> None:
    service, seen = TrapService(), []

    async def watch(channel: grpc.aio.Channel) -> None:
        request = health_pb2.HealthCheckRequest(service=NAME)
        try:
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=30.0):
                seen.append(answer.status)  # noqa: PERF401  # what came before the error counts
        except grpc.aio.AioRpcError as error:
            seen.append(error.code())

    async with asyncio.TaskGroup() as tasks:
        async with lifecycle.serving(ServiceConfig(drain_grace_s=0.3), build(service)) as running:
            channel = channels.open_channel(running.address)
            stuck = tasks.create_task(failing(channel))
            tasks.create_task(watch(channel))
            while not (service.started["wait"] and seen):
                await asyncio.sleep(0.01)
        assert await stuck is grpc.StatusCode.UNAVAILABLE
        assert service.ended["wait"] == 1
    assert seen == [SERVING, NOT_SERVING, grpc.StatusCode.UNAVAILABLE]
    await channel.close()


async def failing(channel: grpc.aio.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "Unary", "wait", timeout=30.0)
    return caught.value.code()


async def test_a_taken_port_is_an_error_of_the_operating_system() -> None:
    async with service_of(TrapService()) as (_, running):
        with pytest.raises(OSError, match="cannot listen"):
            async with lifecycle.serving(
                ServiceConfig(listen=running.address), build(TrapService())
            ):
                pass


async def test_rpcs_beyond_the_limit_are_refused_and_may_be_retried() -> None:
    service = TrapService()
    async with service_of(service, max_concurrent_rpcs=1, drain_grace_s=0.0) as (_, running):
        # Two connections: on one the transport itself would let the second RPC wait.
        first, second = (
            channels.open_channel(running.address, bulk=bulk) for bulk in (False, True)
        )
        async with first, second:
            stuck = asyncio.ensure_future(call(first, "Unary", "wait", timeout=30.0))
            while not service.started["wait"]:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(second, "Unary", "echo", timeout=5.0)
            assert channels.from_rpc_error(caught.value).retryable
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)


async def test_each_rpc_is_a_span_under_its_caller_and_probes_are_none(tmp_path: Path) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    path = tmp_path / "spans.sqlite"
    async with service_of(TrapService(), trace_store=str(path)) as (channel, _):
        carried = (("traceparent", parent),)
        await call(channel, "Unary", "echo", timeout=5.0, metadata=carried)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, "Chat", "bug", timeout=5.0, metadata=carried)
        await health_of(channel)
    (trace,) = TraceStore(path).traces()
    spans = TraceStore(path).spans(trace.trace_id)
    assert [(s.name, s.kind, s.status, s.parent_id) for s in spans] == [
        ("TrapService/Unary", "SERVER", "UNSET", parent.split("-")[2]),
        ("TrapService/Chat", "SERVER", "ERROR", parent.split("-")[2]),
    ]
    assert spans[0].attributes["rpc.service"] == NAME
    assert spans[1].attributes["cogitate.reason"] == "INTERNAL"
    assert SECRET not in str(spans)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP backend that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str]] = []

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for group in request.resource_spans:
            named = {a.key: a.value.string_value for a in group.resource.attributes}
            spans = [span for scope in group.scope_spans for span in scope.spans]
            self.received += [(named["service.name"], span.name) for span in spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_go_out_by_otlp_before_the_process_ends() -> None:
    collector, backend = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, backend)
    endpoint = f"http://127.0.0.1:{backend.add_insecure_port('127.0.0.1:0')}"
    await backend.start()
    async with service_of(TrapService(), otlp_endpoint=endpoint) as (channel, _):
        await call(channel, "Unary", "echo", timeout=5.0)
    assert collector.received == [("service", "TrapService/Unary")]
    await backend.stop(None)


class MeterCollector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP backend that keeps the names of metrics it is sent."""

    def __init__(self) -> None:
        self.received: list[str] = []

    async def Export(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Any
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        for group in request.resource_metrics:
            self.received += [m.name for scope in group.scope_metrics for m in scope.metrics]
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_metrics_go_out_by_otlp_in_time_and_before_the_process_ends() -> None:
    collector, backend = MeterCollector(), grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, backend)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), backend)
    endpoint = f"http://127.0.0.1:{backend.add_insecure_port('127.0.0.1:0')}"
    await backend.start()
    knobs: dict[str, Any] = {"otlp_endpoint": endpoint, "metrics_interval_s": 0.2}
    async with service_of(TrapService(), **knobs):
        metrics.record(Metric.STEP_DURATION, 0.5)
        async with asyncio.timeout(10):
            while not collector.received:
                await asyncio.sleep(0.02)
        assert set(collector.received) == {"cogitate.step.duration", "cogitate.rpcs"}
        metrics.record(Metric.STEP_POSITIONS, 3)
    assert "cogitate.step.positions" in collector.received
    await backend.stop(None)


async def test_a_dead_trace_backend_does_not_hold_up_the_end() -> None:
    started = asyncio.get_running_loop().time()
    async with service_of(TrapService(), otlp_endpoint="http://127.0.0.1:1") as (channel, _):
        await call(channel, "Unary", "echo", timeout=5.0)
    assert asyncio.get_running_loop().time() - started < 6.0


@asynccontextmanager
async def program(*flags: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), *flags,
        stderr=asyncio.subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()


async def ended(child: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(10.0):
        _, log = await child.communicate()
    return child.returncode, log.decode()


async def ready(path: Path) -> str:
    async with asyncio.timeout(10.0):
        while not path.exists():
            await asyncio.sleep(0.01)
    return path.read_text().strip()


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", ":1", "127.0.0.1:-1", "h:70000"])
async def test_a_malformed_address_is_not_guessed_at(listen: str) -> None:
    with pytest.raises(OSError, match="not host:port"):
        async with lifecycle.serving(ServiceConfig(listen=listen), build(TrapService())):
            pass


async def test_a_unix_socket_serves_too(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/s"
    async with service_of(TrapService(), listen=listen) as (channel, running):
        assert running.address == listen
        assert await call(channel, "Unary", "echo", timeout=5.0) == ["echo"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_the_process_ends_well(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "ready"
    async with program(f"--ready-file={path}") as child:
        async with channels.open_channel(await ready(path)) as channel:
            work = asyncio.ensure_future(call(channel, "Unary", "work", timeout=30.0))
            await call(channel, "Unary", "echo", timeout=5.0)
            child.send_signal(number)
            assert await work == ["done"]
        code, log = await ended(child)
    assert code == 0
    assert log.splitlines()[-1].endswith("stopped")
    assert not path.exists()


async def test_a_second_signal_ends_a_slow_drain(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    async with program(f"--ready-file={path}", "--drain-grace-s=600", DRAIN="slow") as child:
        await ready(path)
        child.send_signal(signal.SIGTERM)
        while path.exists():
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        code, _ = await ended(child)
    assert code == 0


async def test_a_signal_during_a_slow_start_ends_it() -> None:
    async with program("--log-level=DEBUG", START="slow") as child:
        assert child.stderr is not None
        while b"starting" not in await child.stderr.readline():
            pass
        child.send_signal(signal.SIGTERM)
        code, log = await ended(child)
    assert code == 0
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("flag", "env", "code", "said"),
    [
        ("--drain-grace-s=-1", {}, 2, "--drain-grace-s='-1' is out of range"),
        ("--listen=127.0.0.1:99999", {}, 1, "cannot listen on 127.0.0.1:99999"),
        ("--reflection", {"START": "bad"}, 1, "KeyError at"),
    ],
)
async def test_what_cannot_run_says_why_in_one_line(
    flag: str, env: dict[str, str], code: int, said: str
) -> None:
    async with program(flag, **env) as child:
        returned, log = await ended(child)
    assert returned == code
    assert said in log.splitlines()[-1]
    assert SECRET not in log
    assert "Traceback" not in log
