"""Fetches image embeddings from the vision-encoder, each once, and keeps them by content."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

import grpc
from cogitate.agent_decoder import wire
from cogitate.agent_decoder.encoders import first_of
from cogitate.agent_decoder.wire import Embedding
from cogitate.kit.auth import current_tenant
from cogitate.kit.channels import (
    cancelling,
    deadline_scope,
    from_rpc_error,
    open_channel,
    outgoing,
)
from cogitate.kit.errors import EngineFailure, InvalidRequest
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub


class EmbeddingFetcher:
    """One for each decoder. Concurrent requests for one view share one fetch."""

    def __init__(self, model: str, hidden_size: int, cache_bytes: int, timeout_s: float) -> None:
        self._model, self._hidden, self._timeout_s = model, hidden_size, timeout_s
        self._capacity = cache_bytes
        self._cached: OrderedDict[tuple[str, str], Embedding] = OrderedDict()
        self._cached_bytes = 0
        self._in_flight: dict[tuple[str, str], asyncio.Task[Embedding]] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    def connect(self, address: str) -> None:
        """Begins to connect: to another site that takes as long as a fetch itself."""
        self._channel(address).get_state(try_to_connect=True)

    async def fetch(
        self, images: Mapping[str, common.ImagePart], addresses: Sequence[str]
    ) -> dict[str, Embedding]:
        """Embeddings of the views by key, from the first address that has them.

        Raises what the last vision-encoder said, or NoEndpoint.
        """
        tenant = current_tenant()
        found: dict[str, Embedding] = {}
        fetching: dict[str, asyncio.Task[Embedding]] = {}
        for key, image in images.items():
            cached = self._cached.get((tenant, key))
            if cached is not None:
                self._cached.move_to_end((tenant, key))
                found[key] = cached
            else:
                fetching[key] = self._fetching((tenant, key), image, addresses)
        for key, task in fetching.items():
            # A caller that goes away must not take the fetch from the others.
            found[key] = await asyncio.shield(task)
        return found

    def _fetching(
        self, key: tuple[str, str], image: common.ImagePart, addresses: Sequence[str]
    ) -> asyncio.Task[Embedding]:
        task = self._in_flight.get(key)
        if task is None:
            # The deadline is the fetch's own: others than the first caller may wait for it.
            with deadline_scope(None):
                task = asyncio.create_task(self._fetch_one(key, image, addresses), name="fetch")
            self._in_flight[key] = task
            # All callers may be gone when it fails: then its error is nobody's.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _fetch_one(
        self, key: tuple[str, str], image: common.ImagePart, addresses: Sequence[str]
    ) -> Embedding:
        try:
            embedding = await first_of(addresses, self._timeout_s, partial(self._ask, image))
            self._keep(key, embedding)
            return embedding
        finally:
            self._in_flight.pop(key, None)

    async def _ask(self, image: common.ImagePart, address: str) -> Embedding:
        view = pb.View(blob_digest=image.digest)
        if image.HasField("box"):
            view.box.CopyFrom(image.box)
        request = pb.FetchEmbeddingRequest(model=self._model, views=[view])
        stub = VisionEncoderServiceStub(self._channel(address))
        try:
            with cancelling(stub.FetchEmbedding(request, **outgoing())) as call:
                received = [self._checked(response.embedding) async for response in call]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        if len(received) != 1:
            raise EngineFailure("the vision-encoder sent no embedding, or several")
        return received[0]

    def _checked(self, tensor: common.Tensor) -> Embedding:
        """Never trusts a peer's tensor."""
        try:
            return wire.to_embedding(tensor, self._hidden)
        except InvalidRequest as error:
            raise EngineFailure(f"the vision-encoder sent what is no embedding: {error}") from None

    def _keep(self, key: tuple[str, str], embedding: Embedding) -> None:
        self._cached[key] = embedding
        self._cached_bytes += embedding.nbytes
        while self._cached_bytes > self._capacity and self._cached:
            _, dropped = self._cached.popitem(last=False)
            self._cached_bytes -= dropped.nbytes

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address, bulk=True)
        return self._channels[address]

    async def close(self) -> None:
        """Ends what is in flight and closes the channels."""
        for task in list(self._in_flight.values()):
            task.cancel()
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()
