"""The gateway's shell: the channels into the mesh, and streams relayed through them.

State owned: the channels. Nothing of a contemplation is kept: a gateway may die at any time, and
the client attaches again through another.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import aclosing, contextmanager
from typing import Any, Final, TypeVar

import grpc
from cogitate.gateway.aggregators import Aggregators
from cogitate.gateway.config import GatewayConfig
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError, InvalidRequest, NoEndpoint
from cogitate.v1 import (
    common_pb2,
    router_service_pb2_grpc,
    vision_encoder_service_pb2,
    vision_encoder_service_pb2_grpc,
)
from cogitate.v1 import contemplation_service_pb2 as pb2

CHUNK_BYTES: Final = 1024 * 1024
# The verdict of a contemplation that ends with its deadline still has to travel.
VERDICT_GRACE_S: Final = 10.0

# What to do when a service does not answer; the message reaches the client.
_REMEDY: Final = "start the mesh (`cogitate up`), or see `cogitate doctor` and the gateway's log"

T = TypeVar("T")


class Runtime:
    """Opens the channels; `close` ends every call that still runs over them."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        size = config.max_message_bytes
        self._aggregators = Aggregators(
            [address.strip() for address in config.aggregator_address.split(",")],
            max_message_bytes=size,
            failover_timeout_s=config.failover_timeout_s,
            named=lambda error: _named(error, "aggregator"),
        )
        self._router = open_channel(config.router_address, max_message_bytes=size)
        self._vision = open_channel(
            config.vision_encoder_address, max_message_bytes=size, bulk=True
        )
        self.router = router_service_pb2_grpc.RouterServiceStub(self._router)
        self.vision = vision_encoder_service_pb2_grpc.VisionEncoderServiceStub(self._vision)

    async def close(self) -> None:
        """Closes the channels."""
        await self._aggregators.close()
        for channel in (self._router, self._vision):
            await channel.close(None)

    async def ask(self, service: str, call: Awaitable[T]) -> T:
        """Awaits a unary call; a peer's error keeps its reason, a peer that is down is named."""
        with naming(service):
            return await call

    def options(self) -> dict[str, Any]:
        """Returns timeout and metadata of a short call inside the mesh."""
        return dict(outgoing(self._config.call_timeout_s))

    async def ask_aggregator(self, method: str, request: Any, response: Any) -> Any:
        """Makes a short call of the contemplation service."""
        return await self._aggregators.ask(method, request, response, self.options)

    async def relay(
        self,
        request: pb2.ContemplateRequest | pb2.AttachRequest,
        accepted: Callable[[str], None] = lambda id: None,
    ) -> AsyncGenerator[bytes, None]:
        """Yields a contemplation's events as bytes. Closing it cancels the call.

        `accepted` is told the id of a new one.
        """
        timeout_s = self._config.max_duration_s + VERDICT_GRACE_S
        # Closed by name: a generator that is dropped cancels its call only some time later.
        async with aclosing(self._aggregators.relay(request, timeout_s, accepted)) as events:
            async for raw in events:
                yield raw

    async def store_images(self, images: Iterable[common_pb2.ImagePart]) -> None:
        """Stores the images' bytes and puts digest and size in their place. All or an error."""
        unique: dict[bytes, list[common_pb2.ImagePart]] = {}
        for image in images:
            unique.setdefault(image.data, []).append(image)
        async with asyncio.TaskGroup() as group:
            for data, same in unique.items():
                group.create_task(self._store_image(data, same))

    async def _store_image(self, data: bytes, same: list[common_pb2.ImagePart]) -> None:
        digest = "sha256:" + (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
        try:
            stored = await self.put_blob(_chunks(data), digest)
        except CogitateError as error:
            if error.code not in ("UNAVAILABLE", "INTERNAL"):
                raise
            # One that shut down meanwhile, by whichever of the transport's words: ask another.
            stored = await self.put_blob(_chunks(data), digest)
        for image in same:
            image.ClearField("data")
            image.MergeFrom(stored)

    async def put_blob(
        self, chunks: AsyncIterator[bytes], expected_digest: str = ""
    ) -> common_pb2.ImagePart:
        """Stores one image sent in chunks. Raises InvalidRequest past the limits of the gateway."""
        config, seen = self._config, 0
        # As long as the client has: a slow uploader is no slow service.
        call = self.vision.PutBlob(**outgoing())
        with naming("vision-encoder"):
            try:
                async for chunk in chunks:
                    if (seen := seen + len(chunk)) > config.max_image_bytes:
                        raise InvalidRequest(
                            f"the image is larger than {config.max_image_bytes} bytes",
                            reason="BAD_IMAGE",
                        )
                    await call.write(
                        vision_encoder_service_pb2.PutBlobRequest(
                            chunk=chunk, expected_digest=expected_digest
                        )
                    )
                    expected_digest = ""
                await call.done_writing()
            except asyncio.InvalidStateError:
                pass  # it answered before the end: it has the blob, or the status says why not
            except BaseException:
                call.cancel()
                raise
            stored = await call
        pixel_count = stored.width_px * stored.height_px
        if pixel_count > config.max_image_pixel_count:
            raise InvalidRequest(
                f"the image has {pixel_count} pixels, the limit is {config.max_image_pixel_count}",
                reason="BAD_IMAGE",
            )
        return common_pb2.ImagePart(
            digest=stored.digest, width_px=stored.width_px, height_px=stored.height_px
        )

    async def get_blob(
        self, request: vision_encoder_service_pb2.GetBlobRequest
    ) -> AsyncGenerator[vision_encoder_service_pb2.GetBlobResponse, None]:
        """Yields a blob's chunks. Closing it cancels the call; use it in `aclosing`."""
        parts = self.vision.GetBlob(request, **self.options())
        try:
            with naming("vision-encoder"):
                async for part in parts:
                    yield part
        finally:
            parts.cancel()


@contextmanager
def naming(service: str) -> Iterator[None]:
    """Turns a failed call into the error the peer raised; a peer that is down is named."""
    try:
        yield
    except grpc.aio.AioRpcError as raised:
        raise _named(from_rpc_error(raised), service) from None


def _named(error: CogitateError, service: str) -> CogitateError:
    if error.reason != "UNAVAILABLE":
        return error
    return NoEndpoint(
        f"the {service} does not answer; {_REMEDY}",
        reason="UNAVAILABLE",
        metadata={"service": service},
        retry_after_s=1.0,
    )


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
