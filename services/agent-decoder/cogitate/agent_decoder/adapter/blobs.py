"""Fetches images, or crops of them, as files from the vision-encoder that stores them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import grpc
from cogitate.agent_decoder.encoders import first_of
from cogitate.kit.channels import cancelling, from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub


class BlobFetcher:
    """One for each decoder; keeps nothing but its channels."""

    def __init__(self, timeout_s: float, max_bytes: int) -> None:
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def fetch(self, image: common.ImagePart, addresses: Sequence[str]) -> tuple[bytes, str]:
        """The file and its media type, from the first address that has it.

        Raises InvalidRequest for one that is too large, NoEndpoint, or what the last
        vision-encoder said.
        """
        return await first_of(addresses, self._timeout_s, partial(self._ask, image))

    async def _ask(self, image: common.ImagePart, address: str) -> tuple[bytes, str]:
        # Not the file that was uploaded: what a camera wrote into it is no provider's business, not
        # every server heeds its turn, llama.cpp's reads no WebP, and OpenAI's no GIF that moves.
        request = pb.GetBlobRequest(digest=image.digest, without_metadata=True)
        if image.HasField("box"):
            request.box.CopyFrom(image.box)
        if address not in self._channels:
            self._channels[address] = open_channel(address, bulk=True)
        stub = VisionEncoderServiceStub(self._channels[address])
        data, media_type = bytearray(), ""
        try:
            with cancelling(stub.GetBlob(request, **outgoing())) as call:
                async for response in call:
                    data += response.chunk
                    media_type = media_type or response.media_type
                    if len(data) > self._max_bytes:
                        raise InvalidRequest(
                            f"an image sent to this endpoint's model server has at most "
                            f"{self._max_bytes} bytes",
                            field="conversation",
                        )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return bytes(data), media_type or "image/png"

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()
