"""What this endpoint is doing, and telling every router so for as long as it lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from cogitate.kit.channels import deadline_scope, open_channel
from cogitate.kit.interceptors import long_lived
from cogitate.peers import orca_pb2
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import endpoint_service_pb2 as endpoint_pb
from cogitate.v1 import endpoint_service_pb2_grpc as endpoint_pb_grpc
from cogitate.v1 import router_service_pb2 as pb
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:  # the asyncio stub exists in the type stubs only
    from cogitate.agent_decoder.runtime import Runtime
    from cogitate.v1.router_service_pb2_grpc import RouterServiceAsyncStub

log = logging.getLogger(__name__)

# Until a router says how often it wants to hear.
DEFAULT_INTERVAL_S = 0.5
RECONNECT_S = 0.5
Stream: TypeAlias = AsyncGenerator[pb.ReportRequest, None]
LEAST_INTERVAL_S = 0.05
LEAST_UTILIZATION = 0.01


def load_of(runtime: Runtime) -> decoder_pb.EndpointLoad:
    """What the endpoint is doing now."""
    stats, counters = runtime.engine.stats, runtime.engine.counters
    now = runtime.meter.utilization()
    load = decoder_pb.EndpointLoad(
        running_sequence_count=stats.num_running,
        waiting_sequence_count=stats.num_waiting,
        paused_sequence_count=stats.num_paused,
        free_block_count=stats.num_free_blocks,
        prefill_tokens_per_s=stats.prefill_tokens_per_s,
        step_batch_size=stats.step_batch,
        sampled_token_count=stats.num_sampled,
        computed_prompt_token_count=stats.num_prompt,
        cached_prompt_token_count=stats.num_cached,
        draining=runtime.draining or not runtime.engine.ready,
        cpu_utilization=now.cpu_share,
        mem_utilization=now.memory_share,
        application_utilization=now.busy_share,
        kv_cache_utilization=now.kv_share,
        waiting_gang_count=counters.num_waiting_gangs,
        running_gang_count=counters.num_running_gangs,
        gangs_per_s=now.gangs_per_s,
        failures_per_s=now.failures_per_s,
        preemption_count=counters.num_preemptions,
        used_token_count=counters.num_used,
        killed_token_count=counters.num_killed,
        lost_token_count=counters.num_lost,
        flops_per_s=now.operations_per_s,
        traffic_bytes_per_s=now.traffic_per_s,
        decode_step_count=stats.num_steps,
        decode_sequence_count=stats.num_sequences,
        decode_position_count=stats.num_positions,
    )
    load.decode_duration.FromNanoseconds(int(stats.steps_s * 1e9))
    load.prefill_duration.FromNanoseconds(int(stats.prefill_s * 1e9))
    load.step_duration.FromNanoseconds(int(stats.step_s * 1e9))
    return load


def orca_report(load: decoder_pb.EndpointLoad) -> orca_pb2.OrcaLoadReport:
    """The load as gRPC clients and Envoy balance by, without rates: those of RPCs are the kit's.

    An idle engine is taken to be a little busy: weights divide by it.
    """
    return orca_pb2.OrcaLoadReport(
        cpu_utilization=load.cpu_utilization,
        mem_utilization=load.mem_utilization,
        application_utilization=max(LEAST_UTILIZATION, load.application_utilization),
        named_metrics={
            "kv_cache_utilization": load.kv_cache_utilization,
            "queued_requests": load.waiting_gang_count,
            "running_requests": load.running_gang_count,
            "failed_agents_per_s": load.failures_per_s,
        },
    )


class Reports:
    """What an endpoint tells every router, whoever dialled whom."""

    def __init__(
        self,
        description: decoder_pb.EndpointDescription,
        load: Callable[[], decoder_pb.EndpointLoad],
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        """Nothing is told before `ready()` is done."""
        self._description, self._load, self._ready = description, load, ready
        self._drain, self._end = asyncio.Event(), asyncio.Event()
        self._drain_remaining_s = 0.0

    def drain(self, remaining_s: float) -> None:
        """Announces the endpoint's end at once."""
        self._drain_remaining_s = remaining_s
        self._drain.set()

    def end(self) -> None:
        """Ends the streams: nothing runs here any more."""
        self._drain.set()
        self._end.set()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to report."""
        return self._end.is_set()

    async def stream(
        self, interval_s: Callable[[], float]
    ) -> AsyncGenerator[pb.ReportRequest, None]:
        """Description, then loads until the end, `interval_s()` apart; read anew for each."""
        await self._ready()
        yield pb.ReportRequest(description=self._description)
        announced = False
        while True:
            yield pb.ReportRequest(load=self._load())
            if self._drain.is_set() and not announced:
                announced = True
                notice = pb.DrainNotice(reason="DRAIN")
                notice.remaining_duration.FromNanoseconds(int(self._drain_remaining_s * 1e9))
                yield pb.ReportRequest(drain=notice)
            if self.ended:
                return
            try:
                async with asyncio.timeout(max(LEAST_INTERVAL_S, interval_s())):
                    await (self._end if announced else self._drain).wait()
            except TimeoutError:
                continue


class EndpointServicer(endpoint_pb_grpc.EndpointServiceServicer):
    """Reports to routers that dial."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    @long_lived
    async def WatchEndpoint(
        self, request: endpoint_pb.WatchEndpointRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[endpoint_pb.WatchEndpointResponse]:
        """Until the router leaves or the endpoint ends."""
        asked_s = request.report_interval.ToNanoseconds() / 1e9 or DEFAULT_INTERVAL_S
        async with aclosing(self._reports.stream(lambda: asked_s)) as reports:
            async for report in reports:
                yield endpoint_pb.WatchEndpointResponse(report=report)


class Reporter:
    """One report stream to one router; reconnects until it is cancelled or all has ended."""

    def __init__(self, address: str, reports: Reports) -> None:
        self._address, self._reports = address, reports
        self._interval_s = DEFAULT_INTERVAL_S

    async def run(self) -> None:
        """Reports, and comes back when the stream breaks."""
        with deadline_scope(None):
            async with open_channel(self._address) as channel:
                stub = RouterServiceStub(channel)
                while not self._reports.ended:
                    await self._report(stub)
                    await asyncio.sleep(RECONNECT_S)

    async def _report(self, stub: RouterServiceAsyncStub) -> None:
        # A report stream lives as long as the endpoint: keepalive finds a dead router, no deadline.
        reports = self._reports.stream(lambda: self._interval_s)
        call = stub.Report(reports, timeout=None)
        try:
            async for response in call:
                if response.HasField("report_interval"):
                    self._interval_s = response.report_interval.ToNanoseconds() / 1e9
        except grpc.aio.AioRpcError as error:
            log.info("router %s: %s; reporting again soon", self._address, error.code().name)
        finally:
            call.cancel()
