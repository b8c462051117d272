"""Runs the vision-encoder: owns what is stored and cached, the threads, and the work in flight.

PutBlob ─► upload ─► header ─► decode (thread) ─► blobs, pictures
GetBlob ─► blobs? ─► flight ─► upstream ─► as an upload
Encode  ─► embeddings? ─► flight ─► pictures? ─► cut and scale (thread) ─► batcher ─► embeddings
                              └───► upstream ─► embeddings, where the blob is not here
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from cogitate.kit import config as configuration
from cogitate.kit import telemetry
from cogitate.kit.clock import Clock, SystemClock
from cogitate.kit.errors import InvalidRequest, Rejected
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import Attr, Span
from cogitate.vision_encoder.batcher import Batcher
from cogitate.vision_encoder.blobs import Blobs
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.core import preprocess
from cogitate.vision_encoder.core.bare import bare_file, drawn
from cogitate.vision_encoder.core.digests import check_digest, embedding_digest
from cogitate.vision_encoder.core.image_header import TOO_MANY_BYTES
from cogitate.vision_encoder.core.picture import read_picture
from cogitate.vision_encoder.core.tenant_lru import TenantLru
from cogitate.vision_encoder.core.types import (
    Blob,
    Box,
    Embedding,
    Encoded,
    Info,
    View,
    bad_image,
)
from cogitate.vision_encoder.core.upload import Upload
from cogitate.vision_encoder.encoder import Encoder, Item
from cogitate.vision_encoder.flights import Flights, Seat
from cogitate.vision_encoder.upstream import Upstream
from PIL import Image

T = TypeVar("T")

# What an entry costs beside its numbers.
_ENTRY_BYTES = 512
_PNG_LEVEL = 1


class VisionRuntime:
    """Stores blobs and encodes views of them, each once while cached, per tenant."""

    def __init__(self, config: VisionEncoderConfig, clock: Clock | None = None) -> None:
        self.config = config
        self._clock = clock or SystemClock()
        self._limits = config.image_limits
        self._supervisor = Supervisor()
        self._threads = ThreadPoolExecutor(config.decode_threads_count, thread_name_prefix="decode")
        self._batchers: dict[str, Batcher] = {}
        self._blobs = Blobs(config.blob_budget_bytes, config.blob_directory)
        self._pictures: TenantLru[str, Image.Image] = TenantLru(config.picture_budget_bytes)
        self._embeddings: TenantLru[str, Embedding] = TenantLru(config.embedding_budget_bytes)
        self._decoding: Flights[tuple[str, str], Image.Image] = Flights(self._supervisor, "decode")
        self._encoding: Flights[tuple[str, str], Embedding] = Flights(self._supervisor, "encode")
        self._fetching: Flights[tuple[str, str], None] = Flights(self._supervisor, "fetch")
        self._upstream: Upstream | None = None
        self._num_uploads = 0
        self._num_fetched_blobs = 0
        self._num_fetched_embeddings = 0
        self._num_encoded_views = 0
        self._num_cached_views = 0

    async def start(self) -> None:
        """Loads the models and the stored blobs. Raises ConfigError if a model has no tower."""
        for name in self.config.models:
            encoder = await self._on_thread(partial(_load, name, self.config))
            self._batchers[name] = Batcher(
                encoder,
                max_batch=self.config.max_batch_count,
                wait_s=self.config.batch_wait_s,
                clock=self._clock,
            )
            self._supervisor.spawn(self._batchers[name].run(), name=f"batcher-{name}")
        await self._blobs.load()
        if self.config.upstream_address:
            self._upstream = Upstream(self.config)

    async def stop(self) -> None:
        """Cancels what runs. A thread ends after the piece of work it is in."""
        await self._supervisor.stop()
        if self._upstream is not None:
            await self._upstream.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for batcher in self._batchers.values():
            batcher.close()
        self._blobs.close()

    async def put(self, tenant: str, chunks: AsyncIterator[bytes], expected_digest: str) -> Blob:
        """Stores an image file; bytes of one that is there already are read and dropped.

        They are read because a gRPC client that still writes when the answer comes takes it for a
        failure. If the first chunk is empty the caller only asks, and is answered at once.

        Raises InvalidRequest, with reason BAD_IMAGE if it is not an image within the limits, and
        Rejected if too many files are being received.
        """
        if expected_digest:
            check_digest(expected_digest, "expected_digest")
            await self._blobs.recall(tenant, expected_digest)
            if (known := self._blobs.find(tenant, expected_digest)) is not None:
                await _drop(chunks, self._limits.max_bytes)
                return known
        with self._receiving():
            upload = Upload(self._limits.max_bytes)
            async for chunk in chunks:
                upload.add(chunk)
            digest, data = upload.finish(expected_digest)
            if (known := self._blobs.find(tenant, digest)) is not None:
                return known
            return await self._store(tenant, digest, data)

    @contextmanager
    def _receiving(self) -> Iterator[None]:
        if self._num_uploads >= self.config.max_uploads_count:
            raise Rejected("too many images are being received", retry_after_s=0.5)
        self._num_uploads += 1
        try:
            yield
        finally:
            self._num_uploads -= 1

    async def _store(self, tenant: str, digest: str, data: bytes) -> Blob:
        header, picture = await self._on_thread(partial(read_picture, data, self._limits))
        blob = Blob(digest, data, header.media_type, *picture.size)
        self._keep_picture(tenant, digest, picture)
        await self._blobs.put(tenant, blob)
        return blob

    async def _recall(self, tenant: str, digest: str) -> None:
        """Brings a blob here that is in the folder or upstream; one that is nowhere stays away.

        Raises NoEndpoint if upstream may have it and cannot be asked, InvalidRequest if it is over
        the limits here, Rejected.
        """
        await self._blobs.recall(tenant, digest)
        if self._upstream is None or self._blobs.find(tenant, digest) is not None:
            return
        key = (tenant, digest)
        with self._fetching.join(key) or self._fetching.start(
            key, partial(self._fetch_blob, self._upstream, tenant, digest)
        ) as seat:
            await seat.result()

    async def _fetch_blob(self, upstream: Upstream, tenant: str, digest: str) -> None:
        with self._receiving():
            data = await upstream.blob(digest)
            if data is not None:
                await self._store(tenant, digest, data)
                self._num_fetched_blobs += 1

    async def get(
        self, tenant: str, digest: str, box: Box | None, *, bare: bool = False
    ) -> tuple[bytes, str]:
        """Returns a blob, a region of it as a PNG, or its picture `bare` of all else; a media type.

        Raises NotFound, or what fetching it from upstream came to.
        """
        await self._recall(tenant, digest)
        blob = self._blobs.get(tenant, digest)
        if box is not None:
            self._check_box(blob, box, "box")
            picture = await self._picture(tenant, blob)
            return await self._on_thread(partial(_png, picture, box)), "image/png"
        if not bare:
            return blob.data, blob.media_type
        data = await self._on_thread(partial(bare_file, blob.data, blob.media_type))
        if data is not None:
            return data, blob.media_type
        picture = await self._picture(tenant, blob)
        return await self._on_thread(partial(drawn, picture, blob.media_type))

    async def encode(self, tenant: str, model: str, views: Sequence[View]) -> list[Encoded]:
        """Returns the embeddings of views, in their order; identical views are encoded once."""
        async with aclosing(self.fetch(tenant, model, views, frozenset())) as fetched:
            return [encoded async for encoded in fetched]

    async def fetch(
        self, tenant: str, model: str, views: Sequence[View], held: frozenset[str]
    ) -> AsyncGenerator[Encoded, None]:
        """Yields the embeddings of views in their order, but not those whose digest is `held`.

        All are begun at once. Left early, it leaves its flights; those that others wait for go on.
        Raises InvalidRequest for a model or a box, NotFound for a blob, NoEndpoint if upstream may
        have it and does not answer, Rejected if too many views are in work, EngineFailure.
        """
        batcher = self._batcher(model)
        build = batcher.encoder.build_digest
        wanted = [(view, embedding_digest(build, view)) for view in views]
        wanted = [(view, digest) for view, digest in wanted if digest not in held]
        for view, digest in wanted:
            if self._embeddings.get(tenant, digest) is None:
                await self._blobs.recall(tenant, view.blob_digest)
        with ExitStack() as seats:
            found: list[Embedding | Seat[Embedding]] = []
            for index, (view, digest) in enumerate(wanted):
                cached = self._embeddings.get(tenant, digest)
                if cached is None:
                    seat = self._board(tenant, batcher, view, digest, f"views[{index}]")
                    found.append(seats.enter_context(seat))
                else:
                    self._num_cached_views += 1
                    found.append(cached)
            for (view, digest), there in zip(wanted, found, strict=True):
                if isinstance(there, Seat):
                    yield Encoded(view, digest, await there.result(), is_cached=False)
                else:
                    yield Encoded(view, digest, there, is_cached=True)

    def info(self) -> Info:
        """Describes the encoder."""
        encoders = [batcher.encoder for batcher in self._batchers.values()]
        return Info(
            models=[encoder.name for encoder in encoders],
            execution_providers=list(encoders[0].providers) if encoders else [],
            num_encoded_views=self._num_encoded_views,
            num_cached_views=self._num_cached_views,
            cache_bytes=self._embeddings.num_bytes,
            blob_bytes=self._blobs.num_bytes,
            num_fetched_blobs=self._num_fetched_blobs,
            num_fetched_embeddings=self._num_fetched_embeddings,
        )

    def _batcher(self, model: str) -> Batcher:
        if model not in self._batchers:
            raise InvalidRequest(
                f"there is no vision tower of {model[:64]!r}; there is: "
                f"{', '.join(self._batchers) or 'none'}",
                reason="UNKNOWN_MODEL",
                field="model",
                metadata={"models": ",".join(self._batchers)},
            )
        return self._batchers[model]

    def _board(
        self, tenant: str, batcher: Batcher, view: View, digest: str, field: str
    ) -> Seat[Embedding]:
        key = (tenant, digest)
        if (seat := self._encoding.join(key)) is not None:
            self._num_cached_views += 1
            return seat
        work: Callable[[], Coroutine[Any, Any, Embedding]]
        if self._upstream is None or self._blobs.find(tenant, view.blob_digest) is not None:
            blob = self._viewed(tenant, view, field)
            work = partial(self._encode, tenant, batcher, blob, view, digest)
        else:
            work = partial(self._fetch_view, self._upstream, tenant, batcher, view, digest, field)
        if len(self._encoding) >= self.config.max_waiting_views_count:
            raise Rejected("too many views are being encoded", retry_after_s=0.2)
        return self._encoding.start(key, work)

    def _viewed(self, tenant: str, view: View, field: str) -> Blob:
        """The blob of a view whose box is right. Raises NotFound, InvalidRequest."""
        blob = self._blobs.get(tenant, view.blob_digest)
        if view.box is not None:
            self._check_box(blob, view.box, f"{field}.box")
        return blob

    async def _fetch_view(
        self,
        upstream: Upstream,
        tenant: str,
        batcher: Batcher,
        view: View,
        digest: str,
        field: str,
    ) -> Embedding:
        """A view of a blob that is not here: its embedding comes from upstream, or the blob."""
        if upstream.sends(batcher.encoder, view.kind):
            embedding = await upstream.embedding(batcher.encoder, view, digest)
            if embedding is not None:
                self._num_fetched_embeddings += 1
                self._keep(tenant, digest, embedding)
                return embedding
        await self._recall(tenant, view.blob_digest)
        blob = self._viewed(tenant, view, field)
        return await self._encode(tenant, batcher, blob, view, digest)

    async def _encode(
        self, tenant: str, batcher: Batcher, blob: Blob, view: View, digest: str
    ) -> Embedding:
        attributes: dict[Attr, str] = {
            Attr.BLOB_DIGEST: view.blob_digest,
            Attr.MODEL: batcher.encoder.name,
        }
        with telemetry.span(Span.ENCODE, attributes):
            picture = await self._picture(tenant, blob)
            pixels = await self._on_thread(
                partial(preprocess.prepare, picture, view.box, batcher.encoder.recipe)
            )
            embedding = await batcher.encode(tenant, Item(pixels, view.kind))
        self._num_encoded_views += 1
        self._keep(tenant, digest, embedding)
        return embedding

    def _keep(self, tenant: str, digest: str, embedding: Embedding) -> None:
        self._embeddings.put(tenant, digest, embedding, embedding.nbytes + _ENTRY_BYTES)

    async def _picture(self, tenant: str, blob: Blob) -> Image.Image:
        picture = self._pictures.get(tenant, blob.digest)
        if picture is not None:
            return picture
        key = (tenant, blob.digest)
        with self._decoding.join(key) or self._decoding.start(
            key, partial(self._decode, tenant, blob)
        ) as seat:
            return await seat.result()

    async def _decode(self, tenant: str, blob: Blob) -> Image.Image:
        _, picture = await self._on_thread(partial(read_picture, blob.data, self._limits))
        self._keep_picture(tenant, blob.digest, picture)
        return picture

    def _keep_picture(self, tenant: str, digest: str, picture: Image.Image) -> None:
        num_bytes = picture.width * picture.height * 4 + _ENTRY_BYTES  # Pillow pads RGB
        self._pictures.put(tenant, digest, picture, num_bytes)

    def _check_box(self, blob: Blob, box: Box, field: str) -> None:
        preprocess.check_box(
            blob.width_px, blob.height_px, box, min_side_px=self.config.min_crop_px, field=field
        )

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _drop(chunks: AsyncIterator[bytes], max_bytes: int) -> None:
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if not num_bytes:
            return
        if num_bytes > max_bytes:
            raise bad_image(TOO_MANY_BYTES)


def _load(name: str, config: VisionEncoderConfig) -> Encoder:
    search = tuple(Path(path) for path in config.model_paths)
    return Encoder(
        name,
        configuration.model_directory(name, search),
        providers=config.execution_providers,
        intra_op_threads=config.intra_op_threads_count,
        max_batch=config.max_batch_count,
        exact=config.exact_batches,
    )


def _png(picture: Image.Image, box: Box) -> bytes:
    file = BytesIO()
    preprocess.cut(picture, box).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
