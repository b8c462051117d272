"""VisionEncoderService over real sockets: what is stored, what is refused, encoded once."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from cogitate.kit import lifecycle
from cogitate.kit.auth import tenant_scope
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.config import ConfigError, model_directory
from cogitate.kit.errors import CogitateError
from cogitate.kit.trace_store import TraceStore
from cogitate.v1 import common_pb2
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1 import vision_encoder_service_pb2_grpc as pb_grpc
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.encoder import Encoder, Item
from cogitate.vision_encoder.server import build
from PIL import Image

from tests.fakes import images
from tests.fakes.vision_model import HIDDEN, write_model

pytestmark = pytest.mark.contract

UNKNOWN = "sha256:" + "0" * 64
MODEL = "tiny"


@dataclass
class Served:
    """A vision-encoder and a client of it."""

    stub: Any
    runtime: Any
    address: str

    async def put(self, data: bytes, expected: str = "", chunk: int = 65_536) -> pb.PutBlobResponse:
        async def chunks() -> AsyncIterator[pb.PutBlobRequest]:
            yield pb.PutBlobRequest(chunk=data[:chunk], expected_digest=expected)
            for start in range(chunk, len(data), chunk):
                yield pb.PutBlobRequest(chunk=data[start : start + chunk])

        done: pb.PutBlobResponse = await self.stub.PutBlob(chunks(), **outgoing(20))
        return done

    async def get(
        self, digest: str, box: common_pb2.Box | None = None, bare: bool = False
    ) -> tuple[bytes, str]:
        asked = pb.GetBlobRequest(digest=digest, box=box, without_metadata=bare)
        parts = [part async for part in self.stub.GetBlob(asked, **outgoing(20))]
        assert all(len(part.chunk) <= 1 << 20 for part in parts)
        assert all(not part.media_type for part in parts[1:])
        return b"".join(part.chunk for part in parts), parts[0].media_type

    async def encode(self, *views: pb.View, model: str = MODEL) -> list[pb.EncodedView]:
        asked = pb.EncodeRequest(model=model, views=views)
        return list((await self.stub.Encode(asked, **outgoing(20))).views)

    async def fetch(
        self, *views: pb.View, held: Iterable[str] = ()
    ) -> list[pb.FetchEmbeddingResponse]:
        asked = pb.FetchEmbeddingRequest(model=MODEL, views=views, held_embedding_digests=held)
        return [each async for each in self.stub.FetchEmbedding(asked, **outgoing(20))]

    async def info(self) -> pb.GetEncoderInfoResponse:
        info: pb.GetEncoderInfoResponse = await self.stub.GetEncoderInfo(
            pb.GetEncoderInfoRequest(), **outgoing(5)
        )
        return info

    def gate(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        gate = Gate(self.runtime._batchers[MODEL].encoder)
        monkeypatch.setattr(gate.encoder, "encode", gate.encode)
        return gate


class Gate:
    """Holds every batch until it is let go; `batches` are the sizes seen."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.batches: list[int] = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self._encode = encoder.encode

    def encode(self, items: Sequence[Item]) -> Any:
        self.batches.append(len(items))
        self.entered.release()
        self.opened.wait(10)
        return self._encode(items)

    async def wait_entered(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


@pytest.fixture(scope="module")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root, MODEL)
    return root


@pytest.fixture
def encoder(model_root: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def run(**knobs: Any) -> AsyncIterator[Served]:
        config = VisionEncoderConfig(
            **{"models": (MODEL,), "model_paths": (str(model_root),), "drain_grace_s": 2.0, **knobs}
        )
        async with (
            lifecycle.serving(config, build) as running,
            open_channel(running.address) as channel,
        ):
            stub = pb_grpc.VisionEncoderServiceStub(channel)
            yield Served(stub, running.service.runtime, running.address)  # type: ignore[attr-defined]

    return run


def box(*edges: int) -> common_pb2.Box:
    return common_pb2.Box(
        **dict(
            zip(("x0_permille", "y0_permille", "x1_permille", "y1_permille"), edges, strict=True)
        )
    )


def view(digest: str, *edges: int) -> pb.View:
    return pb.View(blob_digest=digest, box=box(*edges) if edges else None)


async def error_of(call: Any) -> CogitateError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_blob_is_stored_described_and_given_back(encoder: Any, kind: str) -> None:
    data = images.file(images.picture(40, 30), kind)
    async with encoder() as served:
        stored = await served.put(data, chunk=100)
        assert stored.digest == "sha256:" + hashlib.sha256(data).hexdigest()
        assert (stored.size_bytes, stored.width_px, stored.height_px) == (len(data), 40, 30)
        assert stored.media_type == f"image/{kind.lower()}"
        assert await served.put(data) == stored
        assert await served.get(stored.digest) == (data, stored.media_type)


async def test_a_crop_is_given_as_png(encoder: Any) -> None:
    picture = images.picture(200, 100)
    async with encoder() as served:
        stored = await served.put(images.file(picture, "PNG"))
        data, media_type = await served.get(stored.digest, box(250, 330, 500, 670))
        assert media_type == "image/png"
        crop = Image.open(io.BytesIO(data))
        assert crop.tobytes() == picture.crop((50, 33, 100, 67)).tobytes()


@pytest.mark.parametrize(
    ("kind", "orientation"),  # a GIF says nothing of turns
    [*itertools.product(["PNG", "JPEG", "WEBP"], [1, 6]), ("GIF", 1)],
)
async def test_readers_elsewhere_get_the_picture_alone(
    encoder: Any, kind: str, orientation: int
) -> None:
    data = images.file(images.picture(40, 30), kind, **images.camera(orientation))
    assert kind == "GIF" or images.SECRET in data
    async with encoder() as served:
        stored = await served.put(data)
        bare, media_type = await served.get(stored.digest, bare=True)
        assert media_type == ("image/jpeg" if kind == "JPEG" else "image/png")
        picture = Image.open(io.BytesIO(bare))
        assert picture.size == (stored.width_px, stored.height_px)
        assert images.SECRET not in bare
        assert not picture.getexif()
        whole, _ = await served.get(stored.digest, box(0, 0, 1000, 1000), bare=True)
        upright = np.asarray(Image.open(io.BytesIO(whole)), np.int16)
        far = np.abs(np.asarray(picture.convert("RGB"), np.int16) - upright).mean()
        # What a turned JPEG loses by being written again; noise is what JPEG is worst at.
        assert far <= (12 if kind == "JPEG" and orientation != 1 else 0)
        assert await served.get(stored.digest) == (data, stored.media_type)


async def test_large_blobs_come_in_chunks(encoder: Any) -> None:
    data = images.file(images.picture(900, 700), "PNG")
    assert len(data) > 1 << 20
    async with encoder() as served:
        stored = await served.put(data, chunk=1 << 20)
        assert (await served.get(stored.digest))[0] == data


async def test_a_known_digest_needs_no_bytes(encoder: Any) -> None:
    data = images.png()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with encoder() as served:
        error = await error_of(served.put(b"", digest))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "expected_digest")
        await served.put(data, digest)
        assert (await served.put(b"", digest)).digest == digest
        error = await error_of(served.put(images.png(seed=1), UNKNOWN))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "expected_digest")
        error = await error_of(served.put(data, "sha256:xyz"))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "expected_digest")


async def test_a_known_blob_may_be_sent_anyway(encoder: Any) -> None:
    data = images.file(images.picture(900, 700), "PNG")
    async with encoder() as served:
        stored = await served.put(data)
        # Also by a client that writes by hand, to whom an early answer looks like a failure.
        for _ in range(3):
            assert await served.put(data, stored.digest, chunk=20_000) == stored
            call = served.stub.PutBlob(**outgoing(10))
            for start in range(0, len(data), 20_000):
                chunk = data[start : start + 20_000]
                await call.write(pb.PutBlobRequest(chunk=chunk, expected_digest=stored.digest))
            await call.done_writing()
            assert await call == stored


async def test_asking_for_a_known_blob_is_answered_before_the_stream_ends(encoder: Any) -> None:
    async with encoder(max_blob_bytes=100_000) as served:
        stored = await served.put(images.png())
        call = served.stub.PutBlob(**outgoing(10))
        await call.write(pb.PutBlobRequest(expected_digest=stored.digest))
        assert await call == stored
        error = await error_of(served.put(bytes(100_001), stored.digest))
        assert error.reason == "BAD_IMAGE"


BAD = {
    "no bytes": b"",
    "one byte": b"\x89",
    "text": b"hello",
    "svg": images.SVG,
    "tiff": images.TIFF,
    "bmp": images.BMP,
    "jpeg 2000": images.JPEG2000,
    "50,000 x 50,000": images.png_claiming(50_000, 50_000),
    "1 x 65,535": images.png_claiming(1, 65_535),
    "0 x 0": images.png_claiming(0, 0),
    "lying about its size": images.png_claiming(2_000, 2_000, num_bytes=100),
    "signature alone": b"\x89PNG\r\n\x1a\n",
    "half a png": images.png()[:1500],
    "a png but for its end": images.png()[:-12],
    "half a jpeg": images.file(images.picture(40, 30), "JPEG")[:700],
    "half a gif": images.gif(3)[:-20],
    "half a webp": images.file(images.picture(40, 30), "WEBP")[:300],
    "20,000 frames of gif": images.gif(20_000),
    "20,000 frames of png": images.apng_claiming(20_000),
    "a frame outside": images.gif_frame_outside(),
    "png and zip": images.zip_after(images.png()),
    "jpeg and zip": images.zip_after(images.file(images.picture(9, 9), "JPEG")),
    "pixels overwritten": images.png()[:60] + bytes(40) + images.png()[100:],
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_files_are_refused_in_fixed_words(encoder: Any, name: str) -> None:
    async with encoder() as served:
        began = time.monotonic()
        error = await error_of(served.put(BAD[name]))
        assert time.monotonic() - began < 1
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "BAD_IMAGE")
        assert error.message.startswith(("the image ", "the file is not a PNG, JPEG"))
        assert not any(word in error.message for word in ("0x", "/", "PIL", "Error", "<", "object"))
        # And the next good one is taken.
        assert (await served.put(images.png())).width_px == 40


async def test_one_pixel_is_an_image(encoder: Any) -> None:
    async with encoder() as served:
        for kind in ("PNG", "JPEG", "WEBP", "GIF"):
            stored = await served.put(images.file(images.picture(1, 1), kind))
            (encoded,) = await served.encode(view(stored.digest))
            assert encoded.token_count == 16
            error = await error_of(served.encode(view(stored.digest, 0, 0, 1000, 1000)))
            assert (error.code, error.field) == ("INVALID_ARGUMENT", "views[0].box")


async def test_limits_hold_at_their_edge(encoder: Any) -> None:
    data = images.png(30, 20)
    good: dict[str, Any] = {
        "max_blob_bytes": len(data),
        "max_image_pixels_count": 600,
        "max_image_side_px": 30,
    }
    async with encoder(**good) as served:
        assert (await served.put(data)).size_bytes == len(data)
    for name, value in good.items():
        async with encoder(**{name: value - 1}) as served:
            error = await error_of(served.put(data, chunk=512))
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "BAD_IMAGE")
    progressive = images.file(images.picture(32, 32), "JPEG", progressive=True)
    num_scans = progressive.count(b"\xff\xda")
    for knobs, file in (
        ({"max_image_frames_count": 5}, images.gif(5)),
        ({"max_image_frames_count": 5}, images.apng_claiming(5)),
        ({"max_jpeg_scans_count": num_scans}, progressive),
    ):
        async with encoder(**knobs) as served:
            if file[:1] != b"\x89":  # the header claims frames that are not there
                assert (await served.put(file)).width_px
        async with encoder(**{name: value - 1 for name, value in knobs.items()}) as served:
            assert (await error_of(served.put(file))).reason == "BAD_IMAGE"


async def test_a_chunk_has_a_limit(encoder: Any) -> None:
    data = images.file(images.picture(900, 700), "PNG")
    async with encoder() as served:
        error = await error_of(served.put(data, chunk=(1 << 20) + 1))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "chunk")


async def test_an_endless_upload_ends_at_the_limit(encoder: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[pb.PutBlobRequest]:
        nonlocal sent
        while True:
            sent += 1
            yield pb.PutBlobRequest(chunk=bytes(10_000))

    async with encoder(max_blob_bytes=100_000) as served:
        error = await error_of(served.stub.PutBlob(endless(), **outgoing(20)))
        assert error.reason == "BAD_IMAGE"
        assert sent < 1_000


async def test_uploads_at_once_are_limited(encoder: Any) -> None:
    held = asyncio.Event()
    data = images.png()

    async def slow() -> AsyncIterator[pb.PutBlobRequest]:
        yield pb.PutBlobRequest(chunk=data[:100])
        await held.wait()
        yield pb.PutBlobRequest(chunk=data[100:])

    async with encoder(max_uploads_count=1) as served:
        first = served.stub.PutBlob(slow(), **outgoing(20))
        await first.wait_for_connection()
        await asyncio.sleep(0.05)
        error = await error_of(served.put(images.png(seed=1)))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REJECTED")
        held.set()
        assert (await first).width_px == 40
        await served.put(images.png(seed=1))


async def test_a_rotated_photo_is_upright(encoder: Any) -> None:
    async with encoder() as served:
        stored = await served.put(images.turned(6, 60, 40))
        assert (stored.width_px, stored.height_px) == (40, 60)
        data, _ = await served.get(stored.digest, box(0, 0, 1000, 1000))
        upright = images.picture(60, 40).transpose(Image.Transpose.ROTATE_270)
        assert Image.open(io.BytesIO(data)).tobytes() == upright.tobytes()


async def test_embeddings_are_the_models_of_exactly_the_view(
    encoder: Any, model_root: Path
) -> None:
    picture = images.picture(200, 100)
    async with encoder() as served:
        stored = await served.put(images.file(picture, "PNG"))
        views = [view(stored.digest), view(stored.digest, 250, 330, 500, 670)]
        encoded = await served.encode(*views)
        assert [each.token_count for each in encoded] == [16, 4]
        assert [each.view for each in encoded] == views
        assert [each.cached for each in encoded] == [False, False]
        assert encoded[0].embedding_digest != encoded[1].embedding_digest
        fetched = await served.fetch(*views)
        assert [each.view.embedding_digest for each in fetched] == [
            each.embedding_digest for each in encoded
        ]
        assert all(each.view.cached for each in fetched)
    session = Encoder(MODEL, model_root / MODEL)._session
    for got, region, output in zip(
        fetched, (picture, picture.crop((50, 33, 100, 67))), ("whole", "crop"), strict=True
    ):
        small = region.resize((64, 64), Image.Resampling.BILINEAR)
        pixels = (np.asarray(small, np.float32) / 255 - 0.5) / 0.25
        (wanted,) = session.run([output], {"pixel_values": pixels.transpose(2, 0, 1)[None]})
        tensor = got.embedding
        assert tensor.dtype == common_pb2.D_TYPE_FLOAT32
        assert list(tensor.shape) == [got.view.token_count, HIDDEN]
        values = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
        np.testing.assert_allclose(values, wanted[0], atol=1e-5)


async def test_held_embeddings_are_skipped(encoder: Any) -> None:
    async with encoder() as served:
        stored = await served.put(images.png())
        views = [view(stored.digest), view(stored.digest, 0, 0, 500, 500)]
        first, second = await served.encode(*views)
        (fetched,) = await served.fetch(*views, held=[first.embedding_digest])
        assert fetched.view.embedding_digest == second.embedding_digest


async def test_a_hundred_callers_encode_a_view_once(encoder: Any) -> None:
    async with encoder() as served:
        stored = await served.put(images.png())
        wanted = view(stored.digest, 100, 100, 900, 900)
        answers = await asyncio.gather(*(served.encode(wanted) for _ in range(100)))
        assert len({each[0].embedding_digest for each in answers}) == 1
        info = await served.info()
        assert (info.encoded_view_count, info.cached_view_count) == (1, 99)
        assert info.cache_bytes > 0 and info.blob_bytes > 0
        assert list(info.models) == [MODEL]
        assert info.execution_providers[-1] == "CPUExecutionProvider"


async def test_a_cancelled_waiter_harms_no_other(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with encoder() as served:
        gate = served.gate(monkeypatch)
        stored = await served.put(images.png())
        calls = [asyncio.ensure_future(served.encode(view(stored.digest))) for _ in range(3)]
        await gate.wait_entered()
        calls[0].cancel()
        await asyncio.sleep(0.05)
        gate.opened.set()
        answers = await asyncio.gather(*calls[1:])
        assert [each[0].token_count for each in answers] == [16, 16]
        assert (await served.info()).encoded_view_count == 1
        assert gate.batches == [1]


async def test_what_waits_is_batched_and_what_nobody_wants_is_not_encoded(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with encoder(max_batch_count=4) as served:
        gate = served.gate(monkeypatch)
        stored = await served.put(images.png(200, 200))
        calls = [asyncio.ensure_future(served.encode(view(stored.digest)))]
        await gate.wait_entered()
        calls += [
            asyncio.ensure_future(served.encode(view(stored.digest, 0, 0, 500, 100 + n)))
            for n in range(7)
        ]
        await asyncio.sleep(0.1)
        calls.pop().cancel()
        await asyncio.sleep(0.05)
        gate.opened.set()
        await asyncio.gather(*calls)
        assert gate.batches == [1, 4, 2]
        assert (await served.info()).encoded_view_count == 7
        assert not served.runtime._encoding


async def test_cancelled_calls_leave_nothing_behind(encoder: Any) -> None:
    random = Random(7)
    async with encoder(max_batch_count=4, picture_budget_bytes=0) as served:
        digests = [(await served.put(images.png(60, 60, seed))).digest for seed in range(4)]

        async def one() -> None:
            views = [
                view(random.choice(digests), 0, 0, 500, random.randrange(200, 900))
                for _ in range(3)
            ]
            kind = random.randrange(4)
            if kind == 0:
                await served.put(images.png(seed=random.randrange(50)), chunk=1000)
            elif kind == 1:
                await served.fetch(*views)
            else:
                await served.encode(*views)

        calls = [asyncio.ensure_future(one()) for _ in range(150)]
        for _ in calls:
            await asyncio.sleep(random.random() * 0.002)
            random.choice(calls).cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in results} == {type(None), asyncio.CancelledError}
        runtime = served.runtime
        async with asyncio.timeout(5):
            while runtime._encoding or runtime._decoding or runtime._num_uploads:
                await asyncio.sleep(0.01)
        assert len(runtime._batchers[MODEL]._queue) == 0
        assert len(runtime._supervisor) == 1  # the batcher's task


async def test_views_in_work_are_limited(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with encoder(max_waiting_views_count=1) as served:
        gate = served.gate(monkeypatch)
        stored = await served.put(images.png())
        first = asyncio.ensure_future(served.encode(view(stored.digest)))
        await gate.wait_entered()
        error = await error_of(served.encode(view(stored.digest, 0, 0, 500, 500)))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REJECTED")
        gate.opened.set()
        await first
        await served.encode(view(stored.digest, 0, 0, 500, 500))


async def test_an_unusable_embedding_is_tried_again_alone(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with encoder() as served:
        real = served.runtime._batchers[MODEL].encoder
        encode, failures = real.encode, [1]

        def flaky(items: Sequence[Item]) -> Any:
            if failures[0]:
                failures[0] -= 1
                return [None] * len(items)
            return encode(items)

        monkeypatch.setattr(real, "encode", flaky)
        stored = await served.put(images.png())
        assert (await served.encode(view(stored.digest)))[0].token_count == 16
        failures[0] = 2
        error = await error_of(served.encode(view(stored.digest, 0, 0, 500, 500)))
        assert (error.code, error.reason) == ("INTERNAL", "ENGINE_FAILURE")
        assert (await served.encode(view(stored.digest, 0, 0, 500, 500)))[0].token_count == 4


async def test_another_tenants_blob_does_not_exist(encoder: Any) -> None:
    async with encoder() as served:
        stored = await served.put(images.png())
        (mine,) = await served.encode(view(stored.digest))
        with tenant_scope("other"):
            for call in (
                served.get(stored.digest),
                served.get(UNKNOWN),
                served.encode(view(stored.digest)),
                served.fetch(view(stored.digest)),
            ):
                error = await error_of(call)
                assert (error.code, error.message) == (
                    "NOT_FOUND",
                    "an image with this digest is not stored; send its bytes",
                )
            error = await error_of(served.put(b"", stored.digest))
            assert error.code == "INVALID_ARGUMENT"
            await served.put(images.png())
            (theirs,) = await served.encode(view(stored.digest))
        assert not theirs.cached
        assert theirs.embedding_digest == mine.embedding_digest
        assert (await served.info()).encoded_view_count == 2


async def test_malformed_views_are_refused_with_the_field(encoder: Any) -> None:
    async with encoder(max_views_count=2) as served:
        stored = await served.put(images.png(40, 40))
        good = view(stored.digest)
        for field, views in [
            ("views", []),
            ("views", [good] * 3),
            ("views[1].blob_digest", [good, view("sha256:1")]),
            ("views[0].box", [view(stored.digest, 0, 0, 0, 10)]),
            ("views[0].box", [view(stored.digest, -1, 0, 10, 10)]),
            ("views[0].box", [view(stored.digest, 0, 0, 1001, 10)]),
            ("views[1].box", [good, view(stored.digest, 0, 0, 37, 100)]),
        ]:
            error = await error_of(served.encode(*views))
            assert (error.code, error.field) == ("INVALID_ARGUMENT", field)
            error = await error_of(served.fetch(*views))
            assert (error.code, error.field) == ("INVALID_ARGUMENT", field)
        # 38 per mille of 40 pixels are 2, the minimum.
        assert await served.encode(good, view(stored.digest, 0, 0, 38, 100))
        error = await error_of(served.get(stored.digest, box(0, 0, 37, 100)))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "box")
        for model in ("", "other", "../tiny"):
            error = await error_of(served.encode(good, model=model))
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "UNKNOWN_MODEL")
            assert MODEL in error.message


async def test_blobs_and_embeddings_stay_within_their_budgets(encoder: Any) -> None:
    files = [images.png(seed=seed) for seed in range(6)]
    budget = 3 * (len(files[0]) + 600)
    async with encoder(blob_budget_bytes=budget, embedding_budget_bytes=1200) as served:
        digests = []
        for data in files:
            digests.append((await served.put(data)).digest)
            await served.encode(view(digests[-1]))
            info = await served.info()
            assert info.blob_bytes <= budget and info.cache_bytes <= 1200
        assert (await error_of(served.get(digests[0]))).code == "NOT_FOUND"
        assert (await served.get(digests[-1]))[0] == files[-1]


async def test_blobs_outlive_a_restart_but_damaged_ones_do_not(
    encoder: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    good, spoilt = images.turned(6, 60, 40), images.png()
    async with encoder(blob_directory=str(folder)) as served:
        stored = await served.put(good)
        damaged = await served.put(spoilt)
        with tenant_scope("other"):
            theirs = await served.put(images.png(seed=2))
    paths = {path.name[:64]: path for path in folder.rglob("*.png")}
    assert len(paths) == 3
    paths[damaged.digest[7:]].write_bytes(spoilt[:-1])
    (folder / "t-default" / "note.txt").write_text("not ours")
    async with encoder(blob_directory=str(folder)) as served:
        assert await served.put(b"", stored.digest) == stored
        assert (await served.get(stored.digest))[0] == good
        assert (await error_of(served.get(damaged.digest))).code == "NOT_FOUND"
        assert (await error_of(served.get(theirs.digest))).code == "NOT_FOUND"
        with tenant_scope("other"):
            assert (await served.get(theirs.digest))[1] == "image/png"
    assert not paths[damaged.digest[7:]].exists()
    assert (folder / "t-default" / "note.txt").exists()
    # What is evicted leaves the folder too.
    async with encoder(blob_directory=str(folder), blob_budget_bytes=len(good) + 600) as served:
        await served.put(good)
    assert len(list(folder.rglob("*.png"))) == 1


async def test_two_on_one_folder_have_the_same_blobs(encoder: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "blobs")
    async with encoder(blob_directory=folder) as one, encoder(blob_directory=folder) as other:
        stored = await one.put(images.png())
        assert (await other.get(stored.digest))[0] == images.png()
        second = await one.put(images.png(seed=2))
        assert await other.put(b"", second.digest) == second
        third = await one.put(images.png(seed=3))
        assert len(await other.encode(view(third.digest))) == 1
        with tenant_scope("stranger"):
            assert (await error_of(other.get(stored.digest))).code == "NOT_FOUND"


async def test_each_real_encode_has_a_span_under_its_call(encoder: Any, tmp_path: Path) -> None:
    store = tmp_path / "traces"
    async with encoder(trace_store=str(store)) as served:
        stored = await served.put(images.png())
        await served.encode(view(stored.digest), view(stored.digest))
        await served.encode(view(stored.digest))
    traces = TraceStore(store)
    spans = [span for trace in traces.traces() for span in traces.spans(trace.trace_id)]
    (encode,) = (span for span in spans if span.name == "encode")
    parent = next(span for span in spans if span.span_id == encode.parent_id)
    assert parent.name == "VisionEncoderService/Encode"
    assert encode.attributes == {
        "cogitate.blob_digest": stored.digest,
        "gen_ai.request.model": MODEL,
    }


async def test_a_model_without_a_tower_is_named_at_the_start(model_root: Path) -> None:
    (model_root / "empty").mkdir(exist_ok=True)
    write_model(model_root / "x", "odd", outputs=("whole", "part"))
    for name, root, said in [
        ("empty", model_root, "has no vision tower"),
        ("odd", model_root / "x", "must map pixel_values to whole and crop"),
    ]:
        config = VisionEncoderConfig(models=(name,), model_paths=(str(root),), drain_grace_s=0)
        with pytest.raises(ConfigError, match=said):
            async with lifecycle.serving(config, build):
                pass
    with pytest.raises(ConfigError, match="'rocm' is not available"):
        Encoder(MODEL, model_root / MODEL, providers=("rocm",))


def test_the_embedded_model_gives_the_same_bits_in_any_batch() -> None:
    folder = model_directory("mini")
    mini = Encoder("mini", folder, max_batch=8)
    assert mini.is_exact
    assert Encoder("mini", folder).build_digest == mini.build_digest
    assert [mini.num_tokens[kind] for kind in mini.num_tokens] == [16, 8]
