"""A vision-encoder at a site of its own: what it lacks comes from home, and once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.cli.mesh.processes import free_ports
from cogitate.kit import lifecycle
from cogitate.kit.auth import tenant_scope
from cogitate.kit.channels import open_channel
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import NotFound
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import vision_encoder_service_pb2 as pb
from cogitate.v1 import vision_encoder_service_pb2_grpc as pb_grpc
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.core.digests import embedding_digest
from cogitate.vision_encoder.core.types import View
from cogitate.vision_encoder.server import build

from tests.contract.test_vision_encoder import MODEL, UNKNOWN, Served, box, error_of, view
from tests.fakes import images
from tests.fakes.vision import FakeVision
from tests.fakes.vision_model import HIDDEN, write_model

pytestmark = pytest.mark.contract


class Home(FakeVision):
    """A home whose answers wait for `open`; `asked` and `left` are the digests it was asked for."""

    def __init__(self, server: Any = None) -> None:
        super().__init__(server)
        self.asked: list[str] = []
        self.left: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.sends: pb.FetchEmbeddingResponse | None = None

    def hold(self, data: bytes, name: bytes | None = None) -> str:
        digest = "sha256:" + hashlib.sha256(data if name is None else name).hexdigest()
        self.blobs[digest] = data
        return digest

    async def GetBlob(
        self, request: pb.GetBlobRequest, context: Any
    ) -> AsyncIterator[pb.GetBlobResponse]:
        self.asked.append(request.digest)
        assert not request.HasField("box"), "crops are cut at the site"
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.left.append(request.digest)
            raise
        async for response in super().GetBlob(request, context):
            yield response

    async def FetchEmbedding(
        self, request: pb.FetchEmbeddingRequest, context: Any
    ) -> AsyncIterator[pb.FetchEmbeddingResponse]:
        if self.sends is None:
            raise NotFound("there is no such blob")
        yield self.sends


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root, MODEL)
    return root


@asynccontextmanager
async def encoder(folder: Path, **knobs: Any) -> AsyncIterator[Served]:
    config = VisionEncoderConfig(
        **{"models": (MODEL,), "model_paths": (str(folder),), "drain_grace_s": 0.5, **knobs}
    )
    async with (
        lifecycle.serving(config, build) as running,
        open_channel(running.address) as channel,
    ):
        stub = pb_grpc.VisionEncoderServiceStub(channel)
        yield Served(stub, running.service.runtime, running.address)  # type: ignore[attr-defined]


@asynccontextmanager
async def home(listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Home, str]]:
    made: list[Home] = []

    async def build_home(config: Any, server: Any) -> Home:
        made.append(Home(server))
        return made[0]

    async with lifecycle.serving(
        ServiceConfig(listen=listen, drain_grace_s=0.1), build_home
    ) as running:
        yield made[0], running.address


@asynccontextmanager
async def site(models: Path, **knobs: Any) -> AsyncIterator[tuple[Home, Served]]:
    """A site that encodes whatever it is asked for itself, unless told otherwise."""
    knobs = {"upstream_embedding_max_bytes": 0, **knobs}
    async with home() as (far, address):
        try:
            async with encoder(models, upstream_address=address, **knobs) as near:
                yield far, near
        finally:
            far.open.set()


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def test_many_askers_one_image_one_fetch(models: Path) -> None:
    data = images.png()
    async with site(models) as (far, near):
        digest = far.hold(data)
        far.open.clear()
        edges = (0, 0, 500, 500)
        asking = [asyncio.create_task(near.get(digest)) for _ in range(8)]
        asking += [asyncio.create_task(near.get(digest, box(*edges))) for _ in range(8)]
        views = [asyncio.create_task(near.fetch(view(digest), view(digest, *edges)))
                 for _ in range(8)]  # fmt: skip
        # The views are two flights of eight, and each of these waits for the image.
        await until(lambda: list(near.runtime._encoding._num_waiters.values()) == [8, 8])
        await until(lambda: near.runtime._fetching._num_waiters == _waiting({digest: 18}))
        far.open.set()
        found = [await one for one in asking]
        assert found[0] == (data, "image/png") and found[8][1] == "image/png"
        assert [len(await one) for one in views] == [2] * 8
        await near.get(digest)
        assert far.asked == [digest]
        info = await near.info()
        assert (info.fetched_blob_count, info.encoded_view_count) == (1, 2)


async def test_several_images_are_fetched_at_the_same_time(models: Path) -> None:
    async with site(models) as (far, near):
        digests = [far.hold(images.png(seed=seed)) for seed in range(3)]
        far.open.clear()
        asking = asyncio.create_task(near.fetch(*map(view, digests)))
        await until(lambda: len(far.asked) == 3)
        far.open.set()
        assert [each.view.view.blob_digest for each in await asking] == digests


@asynccontextmanager
async def two(
    models: Path, of_home: Path, named: str = MODEL, **knobs: Any
) -> AsyncIterator[tuple[Served, Served]]:
    async with encoder(of_home, models=(named,)) as far:
        async with encoder(models, upstream_address=far.address, **knobs) as near:
            yield far, near


async def test_many_askers_one_embedding(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(models, models) as (far, near):
        digest = (await far.put(images.png())).digest
        gate = far.gate(monkeypatch)
        asking = [asyncio.create_task(near.fetch(view(digest))) for _ in range(8)]
        await gate.wait_entered()
        await until(lambda: list(near.runtime._encoding._num_waiters.values()) == [8])
        gate.opened.set()
        found = [await one for one in asking]
        (own,) = await far.fetch(view(digest))
        for (each,) in found:
            assert each.embedding == own.embedding
            assert each.view.embedding_digest == own.view.embedding_digest
        info = await near.info()
        assert (info.fetched_embedding_count, info.cached_view_count) == (1, 7)
        assert (info.fetched_blob_count, info.encoded_view_count, info.blob_bytes) == (0, 0, 0)
        assert (await far.info()).encoded_view_count == 1
        with tenant_scope("stranger"):
            assert (await error_of(near.get(digest))).code == "NOT_FOUND"
            assert (await error_of(near.fetch(view(digest)))).code == "NOT_FOUND"


async def test_of_large_embeddings_the_image_is_fetched(models: Path) -> None:
    whole, crop = 16 * HIDDEN * 4, 4 * HIDDEN * 4
    for limit, num_embeddings in ((whole, 2), (whole - 1, 1), (crop, 1), (crop - 1, 0)):
        async with two(models, models, upstream_embedding_max_bytes=limit) as (far, near):
            digest = (await far.put(images.png(200, 200))).digest
            views = view(digest, 0, 0, 500, 500), view(digest)
            found = [(await near.fetch(each))[0].embedding for each in views]
            assert found == [each.embedding for each in await far.fetch(*views)]
            info = await near.info()
            assert info.fetched_embedding_count == num_embeddings
            assert info.encoded_view_count == 2 - num_embeddings
            assert info.fetched_blob_count == (num_embeddings < 2)


async def test_what_is_here_is_encoded_here(models: Path) -> None:
    async with two(models, models) as (far, near):
        digest = (await far.put(images.png())).digest
        await near.get(digest)
        await near.fetch(view(digest))
        info = await near.info()
        assert (info.fetched_blob_count, info.fetched_embedding_count) == (1, 0)
        assert (await far.info()).encoded_view_count == 0


async def test_embeddings_of_another_build_are_not_taken(models: Path, tmp_path: Path) -> None:
    recipe = write_model(tmp_path, MODEL) / "preprocessor_config.json"
    recipe.write_text(recipe.read_text().replace("0.25", "0.5"))
    async with two(models, tmp_path) as (far, near), encoder(models) as alone:
        digest = (await far.put(images.png(200, 200))).digest
        await alone.put(images.png(200, 200))
        views = view(digest), view(digest, 0, 0, 500, 500)
        for each in views:
            assert await near.fetch(each) == await alone.fetch(each)
        other = (await far.put(images.png(seed=5))).digest
        await near.fetch(view(other))
        info = await near.info()
        assert (info.fetched_blob_count, info.fetched_embedding_count) == (2, 0)
        assert (await far.info()).encoded_view_count == 1, "it is asked once, and no more"


async def test_a_model_that_home_lacks_is_encoded_here(models: Path, tmp_path: Path) -> None:
    write_model(tmp_path, "other")
    async with two(models, tmp_path, named="other") as (far, near):
        digest = (await far.put(images.png())).digest
        error = await error_of(near.fetch(view(digest), view(digest, 0, 0, 1, 1)))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", "views[1].box")
        assert len(await near.fetch(view(digest))) == 1
        assert (await near.info()).fetched_blob_count == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [16, HIDDEN + 1], "data": bytes(16 * (HIDDEN + 1) * 4)},
        {"shape": [16, HIDDEN], "data": bytes(16 * HIDDEN * 4 - 1)},
        {"shape": [16, HIDDEN], "data": b"\xff\xff\xff\x7f" * 16 * HIDDEN},
        {"shape": [16, HIDDEN], "data": bytes(16 * HIDDEN * 4), "dtype": common.D_TYPE_BFLOAT16},
        {"shape": [-1, HIDDEN], "data": b""},
        {},
    ],
    ids=["shape", "length", "not finite", "type", "negative", "nothing"],
)
async def test_home_is_not_trusted_with_embeddings(models: Path, wrong: dict[str, Any]) -> None:
    async with site(models, upstream_embedding_max_bytes=1 << 20) as (far, near):
        digest = far.hold(images.png())
        build = near.runtime._batchers[MODEL].encoder.build_digest
        far.sends = pb.FetchEmbeddingResponse(
            embedding=common.Tensor(**{"dtype": common.D_TYPE_FLOAT32, **wrong})
        )
        far.sends.view.embedding_digest = embedding_digest(build, View(digest))
        assert len(await near.fetch(view(digest))) == 1
        info = await near.info()
        assert (info.encoded_view_count, info.fetched_embedding_count) == (1, 0)


async def test_what_home_lacks_is_not_found_and_asked_for_again(models: Path) -> None:
    data = images.png()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with site(models) as (far, near):
        assert (await error_of(near.get(digest))).code == "NOT_FOUND"
        assert (await error_of(near.fetch(view(digest)))).code == "NOT_FOUND"
        far.hold(data)
        assert (await near.get(digest))[0] == data
        assert far.asked == [digest] * 3


async def test_an_upload_does_not_ask_home(models: Path) -> None:
    async with site(models) as (far, near):
        digest = far.hold(images.png())
        assert (await near.put(images.png(), digest)).digest == digest
        assert (await near.get(digest))[0] == images.png()
        assert far.asked == []


async def test_what_was_fetched_is_kept_over_a_restart(models: Path, tmp_path: Path) -> None:
    knobs = {"blob_directory": str(tmp_path / "blobs")}
    async with home() as (far, address):
        digest = far.hold(images.png())
        for _ in range(2):
            async with encoder(models, upstream_address=address, **knobs) as near:
                assert (await near.get(digest))[0] == images.png()
        assert far.asked == [digest]


async def test_home_is_away_and_comes_back(models: Path) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    async with encoder(models, upstream_address=listen) as near:
        digest = "sha256:" + hashlib.sha256(images.png()).hexdigest()
        for call in (near.get(digest), near.fetch(view(digest))):
            error = await error_of(call)
            assert error.code == "UNAVAILABLE" and "upstream_address" in error.message
        assert (await near.put(images.png(seed=9))).digest, "what is here needs no home"
        async with home(listen) as (far, _):
            far.hold(images.png())
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert (await near.get(digest))[0] == images.png()
                        break
                    except grpc.aio.AioRpcError as refused:
                        assert refused.code() is grpc.StatusCode.UNAVAILABLE
                        await asyncio.sleep(0.1)


async def test_a_home_that_does_not_answer_costs_the_limit_and_no_more(models: Path) -> None:
    async with site(models, upstream_timeout_s=0.2) as (far, near):
        digest = far.hold(images.png())
        far.open.clear()
        error = await error_of(near.get(digest))
        assert error.code == "UNAVAILABLE" and "DEADLINE_EXCEEDED" in error.message
        far.open.set()
        assert (await near.get(digest))[0] == images.png()


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (images.png(seed=1), "UNAVAILABLE", "UNAVAILABLE"),
        (b"", "UNAVAILABLE", "UNAVAILABLE"),
        (images.png(200, 200), "INVALID_ARGUMENT", "BAD_IMAGE"),
        (b"text", "INVALID_ARGUMENT", "BAD_IMAGE"),
    ],
    ids=["another image", "nothing", "too large", "no image"],
)
async def test_home_is_not_trusted(models: Path, sent: bytes, code: str, reason: str) -> None:
    async with site(models, max_blob_bytes=10_000) as (far, near):
        name = None if reason == "BAD_IMAGE" else images.png()
        digest = far.hold(sent, name)
        error = await error_of(near.get(digest))
        assert (error.code, error.reason) == (code, reason)
        assert (await near.info()).blob_bytes == 0


async def test_who_leaves_harms_no_other_and_the_last_ends_the_fetch(models: Path) -> None:
    async with site(models) as (far, near):
        digest, other = far.hold(images.png()), far.hold(images.png(seed=1))
        far.open.clear()
        first = asyncio.create_task(near.get(digest))
        await until(lambda: far.asked == [digest])
        second = asyncio.create_task(near.get(digest))
        alone = asyncio.create_task(near.get(other))
        await until(lambda: near.runtime._fetching._num_waiters == _waiting({digest: 2, other: 1}))
        first.cancel()
        alone.cancel()
        await until(lambda: far.left == [other])
        far.open.set()
        assert (await second)[0] == images.png()
        assert far.asked == [digest, other]


async def test_the_time_of_a_fetch_is_not_that_of_who_came_first(models: Path) -> None:
    async with site(models) as (far, near):
        digest = far.hold(images.png())
        far.open.clear()
        hasty = near.stub.GetBlob(pb.GetBlobRequest(digest=digest), timeout=2)
        reading = asyncio.create_task(hasty.read())
        await until(lambda: far.asked)
        patient = asyncio.create_task(near.get(digest))
        await until(lambda: near.runtime._fetching._num_waiters == _waiting({digest: 2}))
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await reading
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: near.runtime._fetching._num_waiters == _waiting({digest: 1}))
        far.open.set()
        assert (await patient)[0] == images.png()
        assert far.asked == [digest]


async def test_fetches_at_once_are_limited_as_uploads_are(models: Path) -> None:
    async with site(models, max_uploads_count=1) as (far, near):
        digest = far.hold(images.png())
        far.open.clear()
        first = asyncio.create_task(near.get(digest))
        await until(lambda: far.asked)
        error = await error_of(near.get(UNKNOWN))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REJECTED")
        far.open.set()
        assert (await first)[0] == images.png()
        assert (await error_of(near.get(UNKNOWN))).code == "NOT_FOUND"


async def test_two_that_name_each_other_end_at_the_limit(models: Path) -> None:
    one, other = (f"127.0.0.1:{port}" for port in free_ports(2))
    knobs = {"upstream_timeout_s": 0.3}
    async with (
        encoder(models, listen=one, upstream_address=other, **knobs) as near,
        encoder(models, listen=other, upstream_address=one, **knobs),
    ):
        assert (await error_of(near.get(UNKNOWN))).code == "UNAVAILABLE"
        assert (await near.put(images.png())).digest


def _waiting(digests: dict[str, int]) -> dict[tuple[str, str], int]:
    return {("default", digest): count for digest, count in digests.items()}
