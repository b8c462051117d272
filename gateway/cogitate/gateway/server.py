"""The gateway's servicers: wire → core → wire, and streams relayed as they are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from importlib import metadata
from typing import Any, Final

import grpc
from cogitate.gateway import wire
from cogitate.gateway.admin import AdminListener
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core import validation
from cogitate.gateway.core.violations import require
from cogitate.gateway.doors import Doors
from cogitate.gateway.front import SHORT, Front
from cogitate.gateway.guarded import Guarded
from cogitate.gateway.http.app import Application
from cogitate.gateway.http.connect import Rpc
from cogitate.gateway.http.listener import Listener
from cogitate.gateway.runtime import CHUNK_BYTES, Runtime
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import (
    gateway_service_pb2,
    gateway_service_pb2_grpc,
    vision_encoder_service_pb2,
)

CONTEMPLATION: Final = "cogitate.v1.ContemplationService"
GATEWAY: Final = "cogitate.v1.GatewayService"


def _end() -> None:
    """Asks this process to drain and end."""
    os.kill(os.getpid(), signal.SIGTERM)


class Gateway(gateway_service_pb2_grpc.GatewayServiceServicer):
    """Both services of the front door, and their life."""

    names: Sequence[str] = (CONTEMPLATION, GATEWAY)

    def __init__(self, config: GatewayConfig, server: grpc.aio.Server) -> None:
        self._config = config
        self._runtime = Runtime(config)
        self._doors = Doors(config)
        self._front = Front(config, self._runtime, self._doors)
        self._start_time_s = time.time()
        self._application = Application(config, self._front, self._doors, self._rpc())
        self.admin = AdminListener(config, self._doors, _end) if config.admin_listen else None
        self._http = Listener(self._application.asgi, config) if config.http_listen else None
        guarded: Any = Guarded(server, self._doors)
        gateway_service_pb2_grpc.add_GatewayServiceServicer_to_server(self, guarded)
        guarded.add_generic_rpc_handlers((self._contemplation_handlers(),))

    async def start(self) -> None:
        """Listens to HTTP, too; channels connect by themselves, services may come and go."""
        self._front.start()
        if self.admin is not None:
            await self.admin.start()
        if self._http is not None:
            await self._http.start()

    async def drain(self, grace_s: float) -> None:
        """Lets HTTP streams end; gRPC's end in the server's own grace, clients attach elsewhere."""
        if self._http is not None:
            await self._http.drain()

    async def stop(self) -> None:
        """Closes what listens, then the channels."""
        if self._http is not None:
            await self._http.stop()
        if self.admin is not None:
            await self.admin.stop()
        await self._application.close()
        await self._front.stop()
        await self._runtime.close()
        await self._doors.close()

    @property
    def http_address(self) -> str:
        """Where HTTP is served, host:port; empty if it is not."""
        return self._http.address if self._http is not None else ""

    async def Ask(
        self, request: gateway_service_pb2.AskRequest, context: Any
    ) -> gateway_service_pb2.AskResponse:
        return await self._front.answer(request)

    async def UploadBlob(
        self, request_iterator: AsyncIterator[gateway_service_pb2.UploadBlobRequest], context: Any
    ) -> gateway_service_pb2.UploadBlobResponse:
        async def chunks() -> AsyncIterator[bytes]:
            async for part in request_iterator:
                if len(part.chunk) > CHUNK_BYTES:
                    raise InvalidRequest(f"a chunk is at most {CHUNK_BYTES} bytes", field="chunk")
                yield part.chunk

        stored = await self._runtime.put_blob(chunks())
        return gateway_service_pb2.UploadBlobResponse(image=stored)

    async def DownloadBlob(
        self, request: gateway_service_pb2.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[gateway_service_pb2.DownloadBlobResponse]:
        image = request.image
        require(validation.image_reference(wire.image(image), "image"))
        wanted = vision_encoder_service_pb2.GetBlobRequest(
            digest=image.digest, box=image.box if image.HasField("box") else None
        )
        async with aclosing(self._runtime.get_blob(wanted)) as parts:
            async for part in parts:
                yield gateway_service_pb2.DownloadBlobResponse(
                    chunk=part.chunk, media_type=part.media_type
                )

    async def ListModels(
        self, request: gateway_service_pb2.ListModelsRequest, context: Any
    ) -> gateway_service_pb2.ListModelsResponse:
        return gateway_service_pb2.ListModelsResponse(models=wire.models(await self._front.fleet()))

    async def DescribeFleet(
        self, request: gateway_service_pb2.DescribeFleetRequest, context: Any
    ) -> gateway_service_pb2.DescribeFleetResponse:
        fleet = await self._front.fleet()
        return gateway_service_pb2.DescribeFleetResponse(
            endpoints=fleet.endpoints,
            lease_count=fleet.lease_count,
            queued_count=fleet.queued_count,
        )

    async def GetTrace(
        self, request: gateway_service_pb2.GetTraceRequest, context: Any
    ) -> gateway_service_pb2.GetTraceResponse:
        return await self._front.trace(request.contemplation_id)

    async def GetServerInfo(
        self, request: gateway_service_pb2.GetServerInfoRequest, context: Any
    ) -> gateway_service_pb2.GetServerInfoResponse:
        config = self._config
        answer = gateway_service_pb2.GetServerInfoResponse(
            version=metadata.version("cogitate"),
            limits=wire.limits(config.limits),
            default_model=config.default_model,
            strategies=config.strategies,
            quorums=config.quorums,
        )
        wire.set_seconds(answer.start_time, self._start_time_s)
        return answer

    def _contemplation(self) -> dict[str, Any]:
        """What the contemplation service does, by method; events pass as bytes."""
        front = self._front
        return {
            "Contemplate": lambda request, _: front.contemplate(request),
            "Attach": lambda request, _: front.attach(request),
            **{name: self._asking(name) for name in SHORT},
        }

    def _asking(self, name: str) -> Any:
        async def ask(request: Any, context: Any) -> Any:
            return await self._front.ask(name, request)

        return ask

    def _contemplation_handlers(self) -> grpc.GenericRpcHandler:
        # Written out rather than generated, so that events are never reparsed.
        behaviours = self._contemplation()
        handlers: dict[str, Any] = {
            "Contemplate": grpc.unary_stream_rpc_method_handler(
                behaviours["Contemplate"],
                request_deserializer=pb2.ContemplateRequest.FromString,
            ),
            "Attach": grpc.unary_stream_rpc_method_handler(
                behaviours["Attach"],
                request_deserializer=pb2.AttachRequest.FromString,
            ),
        }
        for name, (request, response) in SHORT.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                behaviours[name],
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        return grpc.method_handlers_generic_handler(CONTEMPLATION, handlers)

    def _rpc(self) -> Rpc:
        """Both services over HTTP."""
        gateway = gateway_service_pb2.DESCRIPTOR.services_by_name["GatewayService"]
        behaviours: dict[str, Any] = {
            **{f"/{CONTEMPLATION}/{name}": one for name, one in self._contemplation().items()},
            **{f"/{GATEWAY}/{one.name}": getattr(self, one.name) for one in gateway.methods},
        }
        services = (pb2.DESCRIPTOR.services_by_name["ContemplationService"], gateway)
        return Rpc(self._config, self._doors, services, behaviours)
