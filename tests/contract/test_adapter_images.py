"""How an adapter gets an image as a file: from its site's vision-encoder, or the gang's."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cogitate.agent_decoder.adapter import chat
from cogitate.agent_decoder.adapter.blobs import BlobFetcher
from cogitate.cli.mesh.processes import free_ports
from cogitate.kit import lifecycle
from cogitate.kit.channels import deadline_scope
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import InvalidRequest, NotFound
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

from tests.contract.test_adapter import TOOL, adapter, spec
from tests.fakes.provider import Provider
from tests.fakes.vision import FakeVision, png

pytestmark = pytest.mark.contract

DIGEST = "sha256:" + "5" * 64


@asynccontextmanager
async def vision() -> AsyncIterator[tuple[FakeVision, str]]:
    made: list[FakeVision] = []

    async def build(config: Any, server: Any) -> FakeVision:
        made.append(FakeVision(server))
        return made[0]

    async with lifecycle.serving(ServiceConfig(drain_grace_s=0.1), build) as running:
        yield made[0], running.address


async def test_the_sites_comes_first_then_the_gangs() -> None:
    image = common.ImagePart(digest=DIGEST)
    near_data, far_data = png(4, 4, b"near"), png(4, 4, b"far")
    fetcher = BlobFetcher(5.0, max_bytes=len(near_data))
    async with vision() as (near, site), vision() as (far, home):
        try:
            near.blobs[DIGEST], far.blobs[DIGEST] = near_data, far_data
            assert await fetcher.fetch(image, (site, home)) == (near_data, "image/png")
            del near.blobs[DIGEST]
            assert await fetcher.fetch(image, (site, home)) == (far_data, "image/png")
            gone = f"127.0.0.1:{free_ports(1)[0]}"
            assert await fetcher.fetch(image, (gone, home)) == (far_data, "image/png")
            del far.blobs[DIGEST]
            with pytest.raises(NotFound):
                await fetcher.fetch(image, (site, home))
            near.blobs[DIGEST] = near_data + b"."
            with deadline_scope(5.0), pytest.raises(InvalidRequest, match="at most"):
                await fetcher.fetch(image, (site,))
        finally:
            await fetcher.close()


async def test_an_adapter_shows_its_server_the_image_of_its_site() -> None:
    part = common.Part(image=common.ImagePart(digest=DIGEST))
    data = png(4, 4)
    async with (
        vision() as (near, site),
        vision() as (far, home),
        Provider(takes_images=True) as provider,
        adapter(provider, vision_encoder_address=site) as made,
    ):
        far.blobs[DIGEST] = png(4, 4, b"far")
        for held, shown in ((data, data), (None, far.blobs[DIGEST])):
            near.blobs = {} if held is None else {DIGEST: held}
            await made.run(parts=[part], vision_encoder_address=home)
            [image] = provider.streams[-1]["messages"][-1]["content"]
            url = image["image_url"]["url"]
            assert url == "data:image/png;base64," + base64.b64encode(shown).decode()


async def test_what_a_file_says_beside_its_picture_goes_to_no_server() -> None:
    async with (
        vision() as (near, site),
        Provider(takes_images=True) as provider,
        adapter(provider, vision_encoder_address=site) as made,
    ):
        near.blobs[DIGEST] = png(4, 4)
        await made.run(parts=[common.Part(image=common.ImagePart(digest=DIGEST))])
    assert near.bare == 1
    assert near.boxes == []


@pytest.mark.parametrize("in_results", [True, False])
async def test_an_image_of_a_tool_is_shown_where_the_server_takes_it(in_results: bool) -> None:
    data = png(4, 4)
    provider = Provider(
        takes_images=True, images_in_results=in_results, calls=[("calculator", "{}")]
    )
    async with vision() as (near, site), provider, adapter(
        provider, vision_encoder_address=site
    ) as made:  # fmt: skip
        near.blobs[DIGEST] = data
        stream = await made.opened(spec(), tools=[TOOL])
        call_id = (await stream.until("tool_call")).call.call_id
        parts = [common.Part(text="Here."), common.Part(image=common.ImagePart(digest=DIGEST))]
        result = common.ToolResult(call_id=call_id, parts=parts)
        inject = pb.InjectAgent(agent_id=0, call_id=call_id, tool_result=result)
        await stream.send(inject=inject)
        finished = await stream.until("finished")
        assert finished.finish_reason == common.FINISH_REASON_STOP
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    told = [{"type": "text", "text": "Here."}, image] if in_results else f"Here.\n{chat.FOLLOWS}"
    wanted = [{"role": "tool", "tool_call_id": "call_1", "content": told}]
    if not in_results:
        shown = [{"type": "text", "text": chat.SHOWN}, image]
        wanted.append({"role": "user", "content": shown})
    assert provider.streams[-1]["messages"][2:] == wanted
