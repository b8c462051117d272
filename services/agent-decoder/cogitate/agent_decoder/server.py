"""The gRPC servicer and how the service is put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from importlib import import_module
from typing import Any

import grpc
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.engines import MakeEngine
from cogitate.agent_decoder.reporter import (
    EndpointServicer,
    Reporter,
    Reports,
    load_of,
    orca_report,
)
from cogitate.agent_decoder.runtime import Runtime
from cogitate.kit import metrics
from cogitate.kit.errors import CogitateError
from cogitate.kit.tasks import Supervisor
from cogitate.peers import orca_pb2
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import agent_decoder_service_pb2_grpc as pb_grpc
from cogitate.v1 import endpoint_service_pb2 as endpoint_pb
from cogitate.v1 import endpoint_service_pb2_grpc as endpoint_pb_grpc

log = logging.getLogger(__name__)

# The engines and the modules that prepare them.
ENGINES = {"native": "native_engine", "openai": "adapter.build", "vllm": "vllm_engine.build"}
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["AgentDecoderService"].full_name
ENDPOINT_SERVICE_NAME = endpoint_pb.DESCRIPTOR.services_by_name["EndpointService"].full_name


class AgentDecoderServicer(pb_grpc.AgentDecoderServiceServicer):
    """wire → runtime → wire."""

    def __init__(self, runtime: Runtime, description: pb.EndpointDescription) -> None:
        self._runtime, self._description = runtime, description

    async def Decode(  # type: ignore[override]  # grpc.aio also takes a coroutine that writes
        self,
        request_iterator: AsyncIterator[pb.DecodeRequest],
        context: grpc.aio.ServicerContext[pb.DecodeRequest, pb.DecodeResponse],
    ) -> None:
        await self._runtime.decode(request_iterator, context.write, context.time_remaining())

    async def GetEndpoint(
        self,
        request: pb.GetEndpointRequest,
        context: grpc.aio.ServicerContext[pb.GetEndpointRequest, pb.GetEndpointResponse],
    ) -> pb.GetEndpointResponse:
        return pb.GetEndpointResponse(description=self._description, load=load_of(self._runtime))

    async def FetchConversation(
        self,
        request: pb.FetchConversationRequest,
        context: grpc.aio.ServicerContext[
            pb.FetchConversationRequest, pb.FetchConversationResponse
        ],
    ) -> pb.FetchConversationResponse:
        found = await self._runtime.conversations.get(request.digest)
        return pb.FetchConversationResponse(conversation=found)


def describe(config: AgentDecoderConfig, runtime: Runtime) -> pb.EndpointDescription:
    """What the endpoint is."""
    about = runtime.about
    return pb.EndpointDescription(
        endpoint_id=runtime.endpoint_id,
        address=config.advertise_address or config.listen,
        provider=config.provider,
        region=config.region,
        failure_domain=config.failure_domain or config.provider,
        models=[about.model],
        capabilities=runtime.capabilities,
        engine=about.engine,
        hardware=about.hardware,
        price_per_hour_micro_usd=config.price_per_hour_micro_usd,
        is_spot=config.spot,
        price_per_million_tokens_micro_usd=about.price_per_million_tokens_micro_usd,
        price_per_million_prompt_tokens_micro_usd=about.price_per_million_prompt_tokens_micro_usd,
        total_block_count=about.block_count,
        block_size_count=about.block_size,
        max_sequence_count=config.max_sequence_count,
        build_digest=about.build_digest,
        max_model_len=about.max_model_len,
        process_id=uuid.uuid4().hex,
    )


class AgentDecoder:
    """The running service."""

    names: Sequence[str] = (SERVICE_NAME, ENDPOINT_SERVICE_NAME)

    def __init__(self, config: AgentDecoderConfig, runtime: Runtime) -> None:
        self._config, self._runtime = config, runtime
        runtime.meter.export()
        description = describe(config, runtime)
        self.servicer = AgentDecoderServicer(runtime, description)
        self._reports = Reports(description, lambda: load_of(runtime), self._ready)
        self._preparing: asyncio.Task[None] | None = None
        self.endpoint_servicer = EndpointServicer(self._reports)
        self._tasks = Supervisor()

    def load_report(self) -> orca_pb2.OrcaLoadReport:
        """What trailers tell: the engine's load, not the process's."""
        return orca_report(load_of(self._runtime))

    async def start(self) -> None:
        self._runtime.start()
        for address in self._config.router_addresses:
            self._tasks.spawn(Reporter(address, self._reports).run(), name="report")
        if self._config.measure_peaks and metrics.enabled():
            self._tasks.spawn(asyncio.to_thread(self._runtime.meter.measure_peaks), name="peaks")

    def _ready(self) -> Awaitable[None]:
        """Until it is ready for all it says it can do; begins that when the first router asks."""
        if self._preparing is None:
            self._preparing = self._tasks.spawn(self._prepare(), name="prepare")
        return asyncio.shield(self._preparing)

    async def _prepare(self) -> None:
        try:
            await self._runtime.prepare()
        except CogitateError as error:
            log.warning("%s", error)

    async def drain(self, grace_s: float) -> None:
        """Takes no new gangs, tells routers and gangs, waits for the gangs that run."""
        self._runtime.drain(grace_s)
        self._reports.drain(grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._runtime.wait_idle()
        self._reports.end()

    async def stop(self) -> None:
        await self._tasks.stop()
        await self._runtime.stop()


async def build(config: AgentDecoderConfig, server: grpc.aio.Server) -> AgentDecoder:
    """Prepares the engine and puts the service together."""
    # By name: an engine's own dependencies need not be there for another's.
    module = import_module(f"cogitate.agent_decoder.{ENGINES[config.engine]}")
    make: MakeEngine = await module.prepare(config)
    port = config.listen.rpartition(":")[2]
    endpoint_id = config.endpoint_id or f"{config.provider}-{port}"
    runtime = Runtime(config, endpoint_id, make)
    service = AgentDecoder(config, runtime)
    add: Any = pb_grpc.add_AgentDecoderServiceServicer_to_server
    add(service.servicer, server)
    endpoint_pb_grpc.add_EndpointServiceServicer_to_server(service.endpoint_servicer, server)
    return service
