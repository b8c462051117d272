"""Stores images of tools in the vision-encoder, which says whether they are any."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import grpc
from cogitate.kit.channels import deadline_scope, from_rpc_error, open_channel, outgoing
from cogitate.tool_executor.core.types import Image
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub

CHUNK_BYTES = 1024 * 1024


class ImageStore:
    """One channel to the vision-encoder, opened when it is first needed."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._channel: grpc.aio.Channel | None = None

    async def put(self, data: bytes) -> Image:
        """Returns the image under its digest, for the tenant of the call, upright and whole.

        Raises what the vision-encoder says: InvalidRequest, reason BAD_IMAGE, for a file that is no
        image or passes its limits of bytes, pixels, sides and frames; what the call failed of,
        if it is not there or too slow.
        """
        if self._channel is None:
            self._channel = open_channel(self._address, bulk=True)
        try:
            # A run outlives the RPC it was started by.
            with deadline_scope(None):
                put = VisionEncoderServiceStub(self._channel).PutBlob
                stored = await put(_chunks(data), **outgoing(self._timeout_s))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return Image(stored.digest, None, stored.width_px, stored.height_px)

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            await self._channel.close()


def _chunks(data: bytes) -> Iterator[pb.PutBlobRequest]:
    """The digest goes with the first chunk: an image that is there is not decoded again."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    for start in range(0, max(1, len(data)), CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        yield pb.PutBlobRequest(chunk=chunk, expected_digest="" if start else digest)
