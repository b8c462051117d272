"""A site of two decoders with a vision-encoder of its own, and home's, as processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.evals import datasets
from cogitate.kit.channels import open_channel, outgoing
from cogitate.kit.telemetry import Attr, Span
from cogitate.kit.trace_store import TraceStore
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as contemplation_pb
from cogitate.v1 import vision_encoder_service_pb2 as vision_pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub

from tests.fakes.decode_stream import Caller, Stream
from tests.fakes.pool import reported

pytestmark = pytest.mark.integration


@contextmanager
def process(module: str, ready: Path, **knobs: Any) -> Iterator[tuple[str, Any]]:
    """A service on a free port: its address, and the process."""
    knobs |= {"listen": "127.0.0.1:0", "ready_file": ready, "drain_grace_s": 1}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()]
    running = subprocess.Popen([sys.executable, "-m", module, *flags], stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 90
        while not ready.exists():
            assert running.poll() is None and time.monotonic() < ends
            time.sleep(0.02)
        yield ready.read_text().strip(), running
    finally:
        running.kill()
        running.wait()


class Asker(Caller):
    """Opens gangs of one agent with a picture, as an aggregator that names home's encoder does."""

    def __init__(self, address: str, home: str) -> None:
        super().__init__(address)
        self._home = home

    def opening(self, *agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
        text = common.Part(text="What is the sum of the red cards?")
        image = common.Part(image=common.ImagePart(digest=fields["digest"]))
        sampling = common.SamplingParams(max_tokens=12, temperature=0.9)
        return pb.OpenGang(
            contemplation_id="c1", gang_id="1", attempt=1, owner_epoch=1, model="mini",
            conversation=[common.Message(role=common.ROLE_USER, parts=[image, text])],
            agents=[pb.AgentSpec(seed=7, sampling_params=sampling)],
            vision_encoder_address=self._home,
        )  # fmt: skip


async def put(address: str, data: bytes) -> str:
    async def chunks() -> AsyncIterator[vision_pb.PutBlobRequest]:
        yield vision_pb.PutBlobRequest(chunk=data)

    async with open_channel(address) as channel:
        stored = await VisionEncoderServiceStub(channel).PutBlob(chunks(), **outgoing(20))
        return str(stored.digest)


async def info(address: str) -> vision_pb.GetEncoderInfoResponse:
    async with open_channel(address) as channel:
        asked = vision_pb.GetEncoderInfoRequest()
        found: vision_pb.GetEncoderInfoResponse = await VisionEncoderServiceStub(
            channel
        ).GetEncoderInfo(asked, **outgoing(20))
        return found


def tokens(stream: Stream) -> list[int]:
    """What the agent wrote, as it was first shown; there must be something."""
    written = stream.tokens(0)
    assert written
    return written


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("crosses", "how"), [("embedding", signal.SIGTERM), ("image", signal.SIGSTOP)]
)
async def test_what_a_site_sees_crosses_once_and_home_stands_in(
    tmp_path: Path, crosses: str, how: signal.Signals
) -> None:
    boards = [next(iter(one.pictures())) for one in datasets.load("boards", 2, 77)]
    limit = 65_536 if crosses == "embedding" else 0
    with ExitStack() as stack:
        home, _ = stack.enter_context(process("cogitate.vision_encoder", tmp_path / "home"))
        site, encoder = stack.enter_context(
            process("cogitate.vision_encoder", tmp_path / "site",
                    upstream_address=home, upstream_embedding_max_bytes=limit)
        )  # fmt: skip
        askers = [
            Asker(
                stack.enter_context(
                    process("cogitate.agent_decoder", tmp_path / name, model="mini", threads=1,
                            endpoint_id=name, vision_encoder_address=site)
                )[0],
                home,
            )
            for name in ("one", "two")
        ]  # fmt: skip
        try:
            first, second = [await put(home, data) for data in boards]
            one, two = [tokens(await asker.run(digest=first)) for asker in askers]
            assert one == two
            near, far = await info(site), await info(home)
            is_image = crosses == "image"
            assert near.fetched_blob_count == near.encoded_view_count == is_image
            assert near.fetched_embedding_count == far.encoded_view_count == (not is_image)
            assert far.cached_view_count == 0, "home is asked once"
            encoder.send_signal(how)
            assert how is signal.SIGSTOP or encoder.wait(20) == 0
            tokens(await askers[0].run(digest=second))
            assert (await info(home)).encoded_view_count == far.encoded_view_count + 1
        finally:
            for asker in askers:
                await asker.close()


async def test_a_site_without_home_refuses_with_a_sentence(tmp_path: Path) -> None:
    with process("cogitate.vision_encoder", tmp_path / "home") as (home, _):
        pass
    with process("cogitate.vision_encoder", tmp_path / "site", upstream_address=home) as (site, _):
        async with open_channel(site) as channel:
            view = vision_pb.View(blob_digest="sha256:" + "0" * 64)
            request = vision_pb.FetchEmbeddingRequest(model="mini", views=[view])
            with pytest.raises(grpc.aio.AioRpcError, match="look at upstream_address") as refused:
                await (
                    VisionEncoderServiceStub(channel).FetchEmbedding(request, **outgoing(20)).read()
                )
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def verdict(address: str) -> tuple[str, contemplation_pb.Verdict]:
    """A contemplation's id and its end, of four agents that are spread over the endpoints."""
    said = common.Part(text="What is 17 + 25?")
    spec = contemplation_pb.ContemplationSpec(
        conversation=[common.Message(role=common.ROLE_USER, parts=[said])],
        model="mini", agent_count=4, strategy="vote", quorum="all",
        sampling_params=common.SamplingParams(max_tokens=24, seed=7),
    )  # fmt: skip
    async with open_channel(address) as channel:
        request = contemplation_pb.ContemplateRequest(spec=spec)
        call = ContemplationServiceStub(channel).Contemplate(request, **outgoing(60))
        events = [response.event async for response in call]
    assert events[-1].HasField("verdict"), events[-1]
    assert not any(event.HasField("agent_lost") for event in events)
    return events[0].accepted.contemplation_id, events[-1].verdict


def sources(store: Path, contemplation_id: str) -> list[str]:
    """Where the endpoints of its gangs had the conversation from."""
    found = TraceStore(store)
    found.wait_until_quiet(within_s=20)
    spans = found.spans(found.find(contemplation_id) or "")
    return sorted(s.attributes[Attr.CONVERSATION_FROM] for s in spans if s.name == Span.GANG)


@pytest.mark.timeout(180)
async def test_a_conversation_is_sent_to_a_site_once(tmp_path: Path) -> None:
    store = tmp_path / "traces.sqlite"
    with ExitStack() as stack:

        def begun(service: str, name: str, **knobs: Any) -> str:
            made = process(f"cogitate.{service}", tmp_path / name, trace_store=store, **knobs)
            return stack.enter_context(made)[0]

        router = begun("router", "router", report_interval_s=0.05)
        for name in ("one", "two"):
            begun(
                "agent_decoder", name, model="mini", threads=1, endpoint_id=name,
                provider="far", region="there", failure_domain=name, router_addresses=router,
                measure_peaks=False, conversation_timeout_s=20,
            )  # fmt: skip
        await reported(router, "one", "two")
        found = {}
        for name, site in (("away", {}), ("at home", {"provider": "far", "region": "there"})):
            address = begun("aggregator", name, router_address=router, **site)
            id_, said = await verdict(address)
            placements = {one.endpoint_id for one in said.certificate.placements}
            assert placements == {"one", "two"}
            found[name] = said, sources(store, id_)
    (away, from_afar), (home, within) = found.values()
    assert from_afar == ["endpoint", "opening"]
    assert within == ["opening", "opening"], "nothing crosses at home"
    keys = [{b.agent_id: b.key for b in one.certificate.ballots} for one in (away, home)]
    assert keys[0] == keys[1] and len(keys[0]) == 4, "who fetched it drew the same"
