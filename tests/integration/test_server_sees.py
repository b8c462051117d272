"""Images through the adapter and a real server: vLLM with a random model that sees.

What the model says is noise. What is tested is that all pixels reach it, that they are counted,
and that nothing else tells two images apart.

Run where `COGITATE_TEST_VLLM` names a Python that has vLLM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cogitate.agent_decoder import server as decoder
from cogitate.agent_decoder.adapter import probe
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.rendering import UNREAD
from cogitate.kit import lifecycle
from cogitate.kit.channels import open_channel, outgoing
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import vision_encoder_service_pb2 as vision
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub
from cogitate.vision_encoder import server as encoder
from cogitate.vision_encoder.config import VisionEncoderConfig

from tests.fakes import images, vllm_decoder, vllm_server
from tests.fakes.decode_stream import Caller, Stream
from tests.integration.mesh import cogitate

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
pytest.importorskip("transformers", reason="a development dependency")

from tests.fakes.seeing_checkpoint import CALLED, IMAGE_TOKENS, write_checkpoint  # noqa: E402

MODEL = "seer"
ZOOM = common.ToolSpec(name="zoom", parameters_json_schema='{"type":"object"}')
# A log probability of the same prompt differs by less, of another image by more.
ROUNDING, SEEN = 1e-4, 1e-2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of vLLM's server; it takes the better part of a minute to start."""
    vllm_decoder.python(MODEL)  # skips
    folder = tmp_path_factory.mktemp("seer")
    write_checkpoint(folder)
    calls = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with vllm_server.running(folder, MODEL, "--max-model-len", "1024", *calls) as url:
        yield url


class Seer(Caller):
    """An adapter before the server, and the vision-encoder that has its images."""

    def __init__(self, address: str, blobs: VisionEncoderServiceStub) -> None:
        super().__init__(address)
        self._blobs = blobs

    def opening(self, *agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
        parts = [common.Part(text="How many?"), *fields.pop("shown", ())]
        return pb.OpenGang(
            contemplation_id="c", gang_id="g", attempt=1, owner_epoch=1, model=MODEL,
            agents=agents or [spec()],
            conversation=[common.Message(role=common.ROLE_USER, parts=parts)], **fields,
        )  # fmt: skip

    async def stored(self, data: bytes, *edges: int) -> common.Part:
        """An image, or a region of it in permille, as a part of a message."""

        async def chunks() -> AsyncIterator[vision.PutBlobRequest]:
            yield vision.PutBlobRequest(chunk=data)

        kept = await self._blobs.PutBlob(chunks(), **outgoing(20))
        image = common.ImagePart(digest=kept.digest)
        if edges:
            names = ("x0_permille", "y0_permille", "x1_permille", "y1_permille")
            image.box.CopyFrom(common.Box(**dict(zip(names, edges, strict=True))))
        return common.Part(image=image)

    async def asked(self, *shown: common.Part) -> Heard:
        """What one greedy agent says of what it is shown."""
        return Heard.of(await self.run(shown=shown))

    async def told(self, picture: common.Part, *result: common.Part) -> Heard:
        """What it says behind a call of `zoom` and its result."""
        stream = await self.opened(shown=[picture], tools=[ZOOM])
        called = (await stream.until("tool_call")).call
        assert (called.name, json.loads(called.arguments_json)) == (
            "zoom",
            {"box": [edge // 10 for edge in CALLED]},
        )
        given = common.ToolResult(call_id=called.call_id, parts=result)
        await stream.send(
            inject=pb.InjectAgent(agent_id=0, call_id=called.call_id, tool_result=given)
        )
        await stream.until("finished")
        await stream.send(close=pb.CloseGang())
        await stream.end()
        return Heard.of(stream)


@dataclass(frozen=True)
class Heard:
    """What came of one agent."""

    logprobs: np.ndarray
    num_prompt: int
    finish: int

    @classmethod
    def of(cls, stream: Stream) -> Heard:
        (end,) = (r.finished for r in stream.seen if r.HasField("finished"))
        deltas = [delta for r in stream.seen for delta in r.step.deltas]
        return cls(
            np.array([x for delta in deltas for x in delta.logprobs]),
            stream.seen[-1].gang_finished.usage.prompt_token_count,
            end.finish_reason,
        )

    def apart(self, other: Heard) -> float:
        """The largest difference of a log probability; noise of another length is far apart."""
        if len(self.logprobs) != len(other.logprobs):
            return float("inf")
        return float(np.abs(self.logprobs - other.logprobs).max())


def spec(agent_id: int = 0, temperature: float = 0.0) -> pb.AgentSpec:
    params = common.SamplingParams(max_tokens=24, temperature=temperature)
    return pb.AgentSpec(agent_id=agent_id, seed=5, sampling_params=params)


@asynccontextmanager
async def seeing(url: str, **knobs: Any) -> AsyncIterator[Seer]:
    blobs = VisionEncoderConfig(models=(), drain_grace_s=0.2)
    async with (
        lifecycle.serving(blobs, encoder.build) as stores,
        open_channel(stores.address) as channel,
    ):
        config = AgentDecoderConfig(
            engine="openai", model=MODEL, openai_base_url=url, drain_grace_s=0.2,
            vision_encoder_address=stores.address, **knobs,
        )  # fmt: skip
        async with lifecycle.serving(config, decoder.build, name="agent-decoder") as running:
            made = Seer(running.address, VisionEncoderServiceStub(channel))
            try:
                yield made
            finally:
                await made.close()


async def test_pixels_of_a_question_reach_the_model(server: str) -> None:
    async with seeing(server) as seer:
        declared = (await seer.endpoint()).description.capabilities
        assert {pb.CAPABILITY_VISION, pb.CAPABILITY_TOOLS, pb.CAPABILITY_LOGPROBS} <= {*declared}
        one, other = images.png(60, 60, seed=1), images.png(60, 60, seed=2)
        blind = await seer.asked()
        seen = await seer.asked(await seer.stored(one))
        again = await seer.asked(await seer.stored(one))
        another = await seer.asked(await seer.stored(other))
        crop = await seer.asked(await seer.stored(one, 0, 0, 500, 500))
        both = await seer.asked(await seer.stored(one), await seer.stored(other))
        assert len(seen.logprobs) > 0 and seen.num_prompt == blind.num_prompt + IMAGE_TOKENS
        assert another.num_prompt == crop.num_prompt == seen.num_prompt
        assert both.num_prompt == blind.num_prompt + 2 * IMAGE_TOKENS
        assert seen.apart(again) < ROUNDING
        for changed in (blind, another, crop, both):
            assert seen.apart(changed) > SEEN
        # Whatever the kind of the file: what is lossless is the same image.
        for kind, options in (("WEBP", {"lossless": True}), ("PNG", {"compress_level": 0})):
            data = images.file(images.picture(60, 60, seed=1), kind, **options)
            assert data != one
            assert seen.apart(await seer.asked(await seer.stored(data))) < ROUNDING


@pytest.mark.parametrize("in_results", [True, False])
async def test_crops_that_a_tool_brings_reach_the_model(
    in_results: bool, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the message of the tool, or behind it in the user's, as OpenAI's own API wants it."""
    if not in_results:
        monkeypatch.setattr(probe._Probe, "_images_in_results", _refused)
    async with seeing(server) as seer:
        picture, words = images.png(60, 60, seed=1), common.Part(text="Here it is.")
        whole, crop = await seer.stored(picture), await seer.stored(picture, *CALLED)
        blind = await seer.told(whole, words)
        seen = await seer.told(whole, words, crop)
        again = await seer.told(whole, words, crop)
        another = await seer.told(whole, words, await seer.stored(picture, 500, 500, 1000, 1000))
        assert len(seen.logprobs) > 0 and seen.finish != common.FINISH_REASON_ERROR
        assert seen.num_prompt == another.num_prompt
        more = seen.num_prompt - blind.num_prompt
        assert more == IMAGE_TOKENS if in_results else more > IMAGE_TOKENS
        assert seen.apart(again) < ROUNDING
        assert seen.apart(blind) > SEEN and seen.apart(another) > SEEN
        # A crop alone, as `zoom` has it.
        alone = await seer.told(whole, crop)
        assert alone.finish != common.FINISH_REASON_ERROR and alone.apart(seen) > SEEN


async def _refused(self: object) -> bool:
    return False


async def test_an_image_that_is_too_large_is_refused_or_a_sentence(server: str) -> None:
    large, small = images.png(200, 200), images.png(8, 8)
    async with seeing(server, openai_max_image_bytes=len(large) - 1) as seer:
        stream = await seer.opened(shown=[await seer.stored(large)])
        (response,) = await stream.end()
        assert response.refused.reason == "INVALID_REQUEST"
        assert f"has at most {len(large) - 1} bytes" in response.refused.message
        whole = await seer.stored(small)
        unread = await seer.told(whole, await seer.stored(large))
        said = await seer.told(whole, common.Part(text=UNREAD))
        assert unread.apart(said) < ROUNDING and unread.num_prompt == said.num_prompt


async def test_all_agents_of_a_gang_see(server: str) -> None:
    async with seeing(server) as seer:
        picture = await seer.stored(images.png(60, 60))
        alone = await seer.asked(picture)
        stream = await seer.run(*(spec(i, temperature=0.9) for i in range(6)), shown=[picture])
        ends = {r.finished.agent_id: r.finished for r in stream.seen if r.HasField("finished")}
        ended = {end.finish_reason for end in ends.values()}
        assert ended <= {common.FINISH_REASON_LENGTH, common.FINISH_REASON_STOP}
        assert len({stream.text(i) for i in range(6)}) > 1 and sorted(ends) == [*range(6)]
        usage = stream.seen[-1].gang_finished.usage
        assert usage.prompt_token_count == 6 * alone.num_prompt


async def test_a_mesh_before_the_server_looks_closer(server: str, tmp_path: Path) -> None:
    data = images.png(60, 60)
    picture = tmp_path / "picture.png"
    picture.write_bytes(data)
    asked = await asyncio.to_thread(
        cogitate, tmp_path, "ask", "--server", server, "--agents", "3", "--quorum", "all",
        "--max-tokens", "24", "--temperature", "0", "--image", str(picture), "--json", "How many?",
    )  # fmt: skip
    assert asked.returncode == 0, asked.stdout + asked.stderr
    verdict = json.loads(asked.stdout.splitlines()[-1])
    certificate = verdict["certificate"]
    assert {placed["endpoint_id"] for placed in certificate["placements"]} == {"server-1"}
    assert [sight["box"] for sight in certificate["sights"]] == [list(CALLED)] * 3
    async with seeing(server) as seer:
        alone = await seer.told(await seer.stored(data), await seer.stored(data, *CALLED))

        assert verdict["usage"]["prompt_tokens"] == 3 * alone.num_prompt
        (answer,) = {ballot["answer"] for ballot in certificate["ballots"]}
        assert answer
