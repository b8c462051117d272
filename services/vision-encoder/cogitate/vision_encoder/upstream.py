"""Fetches images that are not stored here from another vision-encoder, that of the home site."""

from __future__ import annotations

import logging

import grpc
from cogitate.kit.channels import cancelling, deadline_scope, from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError, InvalidRequest, NoEndpoint, NotFound
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub
from cogitate.vision_encoder.core.upload import Upload

logger = logging.getLogger(__name__)


class Upstream:
    """A client of one vision-encoder. It asks for what its callers ask for, and keeps nothing."""

    def __init__(self, address: str, timeout_s: float, max_bytes: int) -> None:
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._channel = open_channel(address, bulk=True)
        # To another site connecting takes as long as a fetch itself.
        self._channel.get_state(try_to_connect=True)

    async def fetch(self, digest: str) -> bytes | None:
        """The file of that digest, or None if it is not there either.

        Others than the first caller may wait for it, so its time is its own, not that caller's.
        Raises NoEndpoint if the file cannot be had, InvalidRequest if it is over the limit.
        """
        upload = Upload(self._max_bytes)
        stub = VisionEncoderServiceStub(self._channel)
        with deadline_scope(None):
            options = outgoing(self._timeout_s)
        try:
            with cancelling(stub.GetBlob(pb.GetBlobRequest(digest=digest), **options)) as call:
                async for response in call:
                    upload.add(response.chunk)
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            if isinstance(said, NotFound):
                return None
            raise _unreachable(said) from None
        try:
            return upload.finish(digest)[1]
        except InvalidRequest:
            logger.warning("the vision-encoder upstream sent other bytes than the digest's")
            raise NoEndpoint(
                "the image is not stored here, and the vision-encoder upstream sent another one; "
                "look at that one",
                reason="UNAVAILABLE",
            ) from None

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _unreachable(said: CogitateError) -> NoEndpoint:
    return NoEndpoint(
        f"the image is not stored here, and the vision-encoder upstream did not send it "
        f"({said.code}); try again, ask that one, or look at upstream_address",
        retry_after_s=said.retry_after_s or 1.0,
        metadata={"upstream_code": said.code},
        reason="UNAVAILABLE",
    )
