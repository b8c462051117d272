"""The gRPC face of the vision-encoder: wire to runtime to wire."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from cogitate.kit.auth import current_tenant
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1 import vision_encoder_service_pb2_grpc as pb_grpc
from cogitate.vision_encoder import wire
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.core.digests import check_digest
from cogitate.vision_encoder.core.upload import MAX_CHUNK_BYTES
from cogitate.vision_encoder.runtime import VisionRuntime

SERVICE_NAME = "cogitate.v1.VisionEncoderService"


class VisionEncoderServicer(pb_grpc.VisionEncoderServiceServicer):
    """Answers the RPCs of VisionEncoderService."""

    def __init__(self, runtime: VisionRuntime) -> None:
        self._runtime = runtime

    async def PutBlob(
        self, request_iterator: AsyncIterator[pb.PutBlobRequest], context: object
    ) -> pb.PutBlobResponse:
        """Stores an image sent in chunks."""
        requests = aiter(request_iterator)
        first = await anext(requests, pb.PutBlobRequest())

        async def chunks() -> AsyncIterator[bytes]:
            yield first.chunk
            async for request in requests:
                yield request.chunk

        blob = await self._runtime.put(current_tenant(), chunks(), first.expected_digest)
        return wire.from_blob(blob)

    async def GetBlob(
        self, request: pb.GetBlobRequest, context: object
    ) -> AsyncIterator[pb.GetBlobResponse]:
        """Streams an image, as it was uploaded or its picture alone, or a region of it."""
        digest = check_digest(request.digest, "digest")
        box = wire.to_box(request.box, "box") if request.HasField("box") else None
        data, media_type = await self._runtime.get(
            current_tenant(), digest, box, bare=request.without_metadata
        )
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            yield pb.GetBlobResponse(
                chunk=data[start : start + MAX_CHUNK_BYTES],
                media_type=media_type if start == 0 else "",
            )

    async def Encode(self, request: pb.EncodeRequest, context: object) -> pb.EncodeResponse:
        """Makes sure that views are encoded."""
        began = time.monotonic()
        views = wire.to_views(request.views, max_views=self._runtime.config.max_views_count)
        encoded = await self._runtime.encode(current_tenant(), request.model, views)
        return pb.EncodeResponse(
            views=[wire.from_encoded(each) for each in encoded],
            encode_duration=wire.duration(time.monotonic() - began),
        )

    async def FetchEmbedding(
        self, request: pb.FetchEmbeddingRequest, context: object
    ) -> AsyncIterator[pb.FetchEmbeddingResponse]:
        """Streams the embeddings of views that the caller does not hold."""
        views = wire.to_views(request.views, max_views=self._runtime.config.max_views_count)
        held = frozenset(request.held_embedding_digests)
        fetched = self._runtime.fetch(current_tenant(), request.model, views, held)
        async with aclosing(fetched):
            async for encoded in fetched:
                yield wire.from_embedding(encoded)

    async def GetEncoderInfo(
        self, request: pb.GetEncoderInfoRequest, context: object
    ) -> pb.GetEncoderInfoResponse:
        """Describes the encoder."""
        return wire.from_info(self._runtime.info())


class VisionEncoderService:
    """The vision-encoder as the kit's lifecycle drives it."""

    names: Sequence[str] = (SERVICE_NAME,)

    def __init__(self, runtime: VisionRuntime) -> None:
        self.runtime = runtime

    async def start(self) -> None:
        """Loads models and blobs."""
        await self.runtime.start()

    async def drain(self, grace_s: float) -> None:
        """Nothing to hand off: the server lets running RPCs end, and new ones go elsewhere."""

    async def stop(self) -> None:
        """Drops what is left."""
        await self.runtime.stop()


async def build(config: VisionEncoderConfig, server: grpc.aio.Server) -> VisionEncoderService:
    """Registers the servicer on a server that is not started yet."""
    runtime = VisionRuntime(config)
    pb_grpc.add_VisionEncoderServiceServicer_to_server(VisionEncoderServicer(runtime), server)
    return VisionEncoderService(runtime)
