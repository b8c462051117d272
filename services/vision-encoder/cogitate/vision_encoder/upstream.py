"""Asks another vision-encoder, that of the home site, for what is not here."""

from __future__ import annotations

import logging

import grpc
from cogitate.kit.channels import (
    CallOptions,
    cancelling,
    deadline_scope,
    from_rpc_error,
    open_channel,
    outgoing,
)
from cogitate.kit.errors import CogitateError, InvalidRequest, NoEndpoint, NotFound
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub
from cogitate.vision_encoder import wire
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.core.types import Embedding, Kind, View
from cogitate.vision_encoder.core.upload import Upload
from cogitate.vision_encoder.encoder import Encoder

logger = logging.getLogger(__name__)


class Upstream:
    """A client of one vision-encoder. It keeps nothing; who asks sees to it that all ask once."""

    def __init__(self, config: VisionEncoderConfig) -> None:
        self._timeout_s = config.upstream_timeout_s
        self._max_blob_bytes = config.max_blob_bytes
        self._max_embedding_bytes = config.upstream_embedding_max_bytes
        self._others: set[str] = set()  # models that are of another build there
        self._channel = open_channel(config.upstream_address, bulk=True)
        # To another site connecting takes as long as a fetch itself.
        self._channel.get_state(try_to_connect=True)
        self._stub = VisionEncoderServiceStub(self._channel)

    def sends(self, encoder: Encoder, kind: Kind) -> bool:
        """Whether embeddings are asked for: small ones, unless it has another build."""
        fits = encoder.num_bytes(kind) <= self._max_embedding_bytes
        return fits and encoder.name not in self._others

    async def embedding(self, encoder: Encoder, view: View, digest: str) -> Embedding | None:
        """What `encoder` would make of a view, or None: then it is encoded here, or refused.

        Raises NoEndpoint if there was no answer.
        """
        request = pb.FetchEmbeddingRequest(model=encoder.name, views=[wire.from_view(view)])
        try:
            with cancelling(self._stub.FetchEmbedding(request, **self._options())) as call:
                responses = [response async for response in call]
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            if isinstance(said, InvalidRequest | NotFound):
                return None
            raise _unreachable(said) from None
        if len(responses) != 1:
            return None
        [response] = responses
        if response.view.embedding_digest != digest:
            # Its bits may be others: whatever a digest names is the same wherever it comes from.
            logger.warning("upstream has another build of %s: images are fetched", encoder.name)
            self._others.add(encoder.name)
            return None
        rows = wire.to_rows(response.embedding)
        return None if rows is None else encoder.checked(rows, view.kind)

    async def blob(self, digest: str) -> bytes | None:
        """The file of that digest, or None if it is not there either.

        Raises NoEndpoint if the file cannot be had, InvalidRequest if it is over the limit.
        """
        upload = Upload(self._max_blob_bytes)
        request = pb.GetBlobRequest(digest=digest)
        try:
            with cancelling(self._stub.GetBlob(request, **self._options())) as call:
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

    def _options(self) -> CallOptions:
        # Others than the first caller may wait for it: its time is its own, not that caller's.
        with deadline_scope(None):
            return outgoing(self._timeout_s)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _unreachable(said: CogitateError) -> NoEndpoint:
    return NoEndpoint(
        f"the image is not stored here, and the vision-encoder upstream did not answer "
        f"({said.code}); try again, ask that one, or look at upstream_address",
        retry_after_s=said.retry_after_s or 1.0,
        metadata={"upstream_code": said.code},
        reason="UNAVAILABLE",
    )
