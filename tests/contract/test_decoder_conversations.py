"""Conversations that one decoder fetches from another, over real sockets, with a tiny model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.agent_decoder import conversations as module
from cogitate.agent_decoder.conversations import Conversations, digest_of
from cogitate.kit.auth import TENANT_METADATA_KEY, tenant_scope
from cogitate.kit.channels import open_channel
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import agent_decoder_service_pb2_grpc as pb_grpc
from cogitate.v1 import common_pb2 as common
from cogitate.v1.agent_decoder_service_pb2_grpc import AgentDecoderServiceStub

from tests.contract.test_agent_decoder import LONG, Decoder, decoder, opening, spec
from tests.fakes.serving import FakeServer
from tests.fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.contract

TOOLS = [common.ToolSpec(name="run", description="Runs a program.", parameters_json_schema="{}")]
NEVER = "127.0.0.1:1"  # where nobody listens
PATIENT = {"conversation_timeout_s": 20.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root)
    return root


def whole(**fields: Any) -> pb.OpenGang:
    return opening(spec(sampling={"max_tokens": 8}), tools=TOOLS, shared_message_count=1, **fields)


def serialized(gang: pb.OpenGang) -> bytes:
    shared = pb.Conversation(messages=gang.conversation[:1], tools=gang.tools)
    return shared.SerializeToString(deterministic=True)


DIGEST = "sha256:" + hashlib.sha256(serialized(whole())).hexdigest()


def brief(address: str, *turns: common.Message, **reference: Any) -> pb.OpenGang:
    """As ``whole``, by reference, and what follows it."""
    gang = whole(conversation=turns)
    gang.ClearField("tools")
    gang.ClearField("shared_message_count")
    named = {"digest": DIGEST, "address": address, **reference}
    gang.conversation_reference.CopyFrom(pb.ConversationReference(**named))
    return gang


async def said(at: Decoder, gang: pb.OpenGang) -> tuple[int, list[int]]:
    """How long the prompt is, and what the one agent writes; there must be something."""
    stream = at.stream()
    await stream.send(open=gang)
    await stream.send(close=pb.CloseGang())
    await stream.end()
    written = stream.tokens(0)
    assert written, stream.seen
    [prompt] = [r.prefilled.prompt_token_count for r in stream.seen if r.HasField("prefilled")]
    return prompt, written


async def refusal(at: Decoder, gang: pb.OpenGang) -> pb.GangRefused:
    stream = at.stream()
    await stream.send(open=gang)
    refused: pb.GangRefused = (await stream.read()).refused
    return refused


async def fetched(at: Decoder, digest: str, tenant: str = "default") -> pb.Conversation:
    async with open_channel(at.address) as channel:
        response = await AgentDecoderServiceStub(channel).FetchConversation(
            pb.FetchConversationRequest(digest=digest),
            timeout=20,
            metadata=((TENANT_METADATA_KEY, tenant),),
        )
        found: pb.Conversation = response.conversation
        return found


@asynccontextmanager
async def two(models: Path, **knobs: Any) -> AsyncIterator[tuple[Decoder, Decoder]]:
    async with (
        decoder(models, **{**PATIENT, **knobs}) as first,
        decoder(models, **{**PATIENT, **knobs}, endpoint_id="e2") as second,
    ):
        yield first, second


async def test_a_gang_by_reference_is_as_if_it_had_been_sent_whole(models: Path) -> None:
    turn = common.Message(role=common.ROLE_USER, parts=[common.Part(text="Are you sure?")])
    async with two(models) as (first, second):
        holder = first.stream()
        await holder.send(open=whole(agents=[spec(sampling=LONG)]))
        await holder.until("admitted")
        assert await said(second, brief(first.address)) == await said(second, whole())
        later = whole(conversation=[*whole().conversation, turn])
        assert await said(second, brief(first.address, turn)) == await said(second, later)
        plain = whole()
        plain.ClearField("tools")
        assert await said(second, brief(first.address, without_tools=True)) == await said(
            second, plain
        )
        # Those that have it answer for themselves: neither asks anybody.
        assert await said(first, brief(NEVER)) == await said(first, whole())
        assert await said(second, brief(NEVER)) == await said(second, whole())


async def test_one_that_is_on_its_way_is_waited_for(models: Path) -> None:
    async with two(models) as (first, second):
        early = second.stream()
        await early.send(open=brief(first.address))
        async with asyncio.timeout(20):
            while not first.runtime.conversations._awaited:
                await asyncio.sleep(0.01)
        assert await said(first, whole())
        await early.send(close=pb.CloseGang())
        await early.end()
        assert early.tokens(0)
        assert not first.runtime.conversations._awaited


async def test_nobody_reads_anothers(models: Path) -> None:
    async with decoder(models, conversation_timeout_s=0.05) as made:
        assert await said(made, whole())
        assert serialized(whole()) == (await fetched(made, DIGEST)).SerializeToString(
            deterministic=True
        )
        for tenant, digest in (("other", DIGEST), ("default", "sha256:" + "0" * 64)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await fetched(made, digest, tenant)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


class Liar(pb_grpc.AgentDecoderServiceServicer, FakeServer):
    """Hands on another conversation than the one it is asked for."""

    def register(self, server: Any) -> None:
        pb_grpc.add_AgentDecoderServiceServicer_to_server(self, server)

    async def FetchConversation(
        self, request: pb.FetchConversationRequest, context: Any
    ) -> pb.FetchConversationResponse:
        said = common.Message(role=common.ROLE_USER, parts=[common.Part(text="How few?")])
        return pb.FetchConversationResponse(conversation=pb.Conversation(messages=[said]))


class Old(FakeServer):
    """Does not know the method."""

    def register(self, server: Any) -> None: ...


class Slow(Liar):
    """Never answers."""

    async def FetchConversation(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()


async def test_something_else_is_not_taken_and_the_owner_is_told(models: Path) -> None:
    async with decoder(models, conversation_timeout_s=0.3) as made, Liar() as liar, Old() as old:
        async with Slow() as slow:
            for address in (liar.address, old.address, slow.address, NEVER, ""):
                refused = await refusal(made, brief(address))
                assert refused.reason == "CONVERSATION_UNAVAILABLE", address
                assert "send it whole" in refused.message
                assert not refused.HasField("retry_delay")
        assert await said(made, whole())


async def test_one_whose_gang_was_refused_is_handed_on_and_forgotten_later(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(models, conversation_timeout_s=0.5) as (first, second):
        first.runtime.draining = True
        assert (await refusal(first, whole())).reason == "UNAVAILABLE"
        assert await said(second, brief(first.address))
        monkeypatch.setattr(module, "LINGER_S", 0.0)
        first.runtime.draining = False
        assert await said(first, whole())
        async with asyncio.timeout(20):
            while first.runtime.conversations._kept:
                await asyncio.sleep(0.01)
        assert first.runtime.conversations._num_bytes == 0


@asynccontextmanager
async def held(kept: Conversations, gang: pb.OpenGang, tenant: str = "a") -> AsyncIterator[str]:
    with tenant_scope(tenant), kept.of(gang):
        yield digest_of(serialized(gang))


def asking(text: str) -> pb.OpenGang:
    said = common.Message(role=common.ROLE_USER, parts=[common.Part(text=text)])
    return pb.OpenGang(conversation=[said], shared_message_count=1)


@pytest.mark.parametrize("without_tools", [False, True])
async def test_what_is_put_together_is_what_would_have_been_sent(without_tools: bool) -> None:
    turn = common.Message(role=common.ROLE_USER, parts=[common.Part(text="Are you sure?")])
    expected = whole(conversation=[*whole().conversation, turn])
    expected.ClearField("shared_message_count")
    if without_tools:
        expected.ClearField("tools")
    kept = Conversations(10_000, 0.01)
    named = brief(NEVER, turn, without_tools=without_tools)
    with kept.of(whole()), kept.of(named) as hold:
        assert await hold.complete() == "here"
    assert named == expected


async def test_the_bound() -> None:
    size = len(serialized(asking("abc")))
    small = Conversations(size - 1, 0.01)
    async with held(small, asking("abc")) as digest:
        assert small.data(("a", digest)) is None, "one byte too many"
    kept = Conversations(size, 0.01)
    async with held(kept, asking("abc")) as one:
        async with held(kept, asking("xyz")) as two:
            assert kept.data(("a", one)) and not kept.data(("a", two)), "no room, none is dropped"
        async with held(kept, asking("abc")), held(kept, asking("abc"), "b"):
            assert not kept.data(("b", one)), "another tenant's counts for itself"
        assert kept.data(("a", one)), "a gang is left"
    assert kept.data(("a", one)), "it lingers"
    async with held(kept, asking("xyz")) as two:
        assert kept.data(("a", two)) and not kept.data(("a", one)), "what lingers makes room"
    assert kept._num_bytes == size
    nothing = asking("abc")
    nothing.shared_message_count = 2
    async with held(kept, nothing) as digest:
        assert kept.data(("a", digest)) is None, "more messages than there are"
