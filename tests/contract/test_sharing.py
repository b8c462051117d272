"""Which endpoints an aggregator sends a conversation, and which it tells where that is."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cogitate.aggregator import sharing
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.gang_client import GangClient
from cogitate.aggregator.sharing import Neighbourhoods, Sharing
from cogitate.kit.channels import deadline_scope, open_channel
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import agent_decoder_service_pb2_grpc as pb_grpc
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb_client
from cogitate.v1 import router_service_pb2 as router_pb

from tests.contract.test_aggregator import (
    SOON,
    End,
    FakeTools,
    Hold,
    Mesh,
    check_grammar,
    every,
    first,
    kinds,
    mesh,
    rest,
    saying,
    spec,
    text,
    until,
)
from tests.contract.test_takeover import crash, twins
from tests.fakes.clock import FakeClock
from tests.fakes.serving import FakeServer

pytestmark = pytest.mark.contract


def tools() -> FakeTools:
    return FakeTools({"zoom": text("a crop")})


def opened(made: Mesh) -> list[pb.OpenGang]:
    return [gang for decoder in made.decoders for gang in decoder.opened]


def is_whole(gang: pb.OpenGang) -> bool:
    return bool(gang.conversation) and not gang.HasField("conversation_reference")


def digest(gang: pb.OpenGang) -> str:
    shared = pb.Conversation(
        messages=gang.conversation[: gang.shared_message_count], tools=gang.tools
    )
    return "sha256:" + hashlib.sha256(shared.SerializeToString(deterministic=True)).hexdigest()


async def test_of_one_site_the_first_is_sent_it_and_the_others_where_it_is() -> None:
    async with mesh(*[saying("5")] * 3, tools=tools()) as made:
        made.router.site = "far"
        check_grammar(await made.ask(agent_count=6, allowed_tools=["zoom"]))
        first, *others = opened(made)
        assert is_whole(first) and first.shared_message_count == 1 and first.tools
        for gang in others:
            reference = gang.conversation_reference
            assert not gang.conversation and not gang.tools and not gang.shared_message_count
            assert reference.digest == digest(first), "as the endpoint that has it names it"
            assert reference.address == made.decoders[0].address
            assert not reference.without_tools
            assert gang.prefix_digest == first.prefix_digest


@pytest.mark.parametrize("where", ["home", "two sites", "an older endpoint"])
async def test_else_all_are_sent_it(where: str) -> None:
    home = {"provider": "far", "region": "here"} if where == "home" else {}
    async with mesh(saying("5"), saying("5"), **home) as made:
        made.router.site = "" if where == "two sites" else "far"
        made.router.takes_references = where != "an older endpoint"
        check_grammar(await made.ask(agent_count=4))
        assert len(opened(made)) == 2
        assert all(is_whole(gang) for gang in opened(made))


async def test_where_it_does_not_come_it_is_sent_and_no_client_sees_it() -> None:
    async with mesh(saying("5"), saying("5")) as made:
        made.router.site, made.decoders[1].lacks = "far", True
        events = await made.ask(agent_count=4)
        verdict = check_grammar(events).verdict
        assert verdict.key == "5" and "agent_lost" not in kinds(events)
        assert len(verdict.certificate.ballots) == 4
        brief, whole = made.decoders[1].opened
        assert not is_whole(brief) and is_whole(whole)
        assert list(brief.agents) == list(whole.agents), "the very same attempt"
        await made.ask(agent_count=4)
        assert [is_whole(gang) for gang in made.decoders[1].opened] == [False, True, True], (
            "it is not told again, for a while"
        )


async def test_a_later_round_finds_it_where_it_is() -> None:
    async with mesh(saying("5")) as made:
        made.router.site = "far"
        check_grammar(await made.ask(agent_count=2, strategy="refine"))
        first, second = made.decoders[0].opened
    assert is_whole(first) and not is_whole(second)
    assert second.conversation_reference.address == made.decoders[0].address
    assert [turn.role for turn in second.conversation] == [
        common.ROLE_ASSISTANT, common.ROLE_USER,
    ]  # fmt: skip


async def test_a_gang_that_was_refused_finds_it_where_it_was_refused() -> None:
    async with mesh(saying("5"), saying("5")) as made:
        made.router.site = "far"
        made.decoders[0].refusals = [pb.GangRefused(reason="REJECTED", retry_delay=SOON)]
        check_grammar(await made.ask(agent_count=1))
        (refused,), (taken,) = (decoder.opened for decoder in made.decoders)
    assert is_whole(refused)
    assert taken.conversation_reference.address == made.decoders[0].address


async def test_agents_that_move_within_a_site_leave_it_there() -> None:
    hold = Hold()
    async with mesh(every("w ", hold), saying("5"), saying("5")) as made:
        made.router.site = "far"
        asking = asyncio.create_task(made.ask(agent_count=3))
        async with asyncio.timeout(10):
            while not all(decoder.opened for decoder in made.decoders):
                await asyncio.sleep(0.01)
            while not made.decoders[0].num_sampled:
                await asyncio.sleep(0.01)
        await made.decoders[0].kill()
        check_grammar(await asking)
        moved = [gang for gang in opened(made) if gang.attempt > 1]
        assert moved
        for gang in moved:
            assert gang.conversation_reference.address in {
                decoder.address for decoder in made.decoders[1:]
            }, "who is gone is not named"


async def test_one_that_takes_over_sends_it_anew(tmp_path: Path) -> None:
    script = every("a ", "b ", *(f"w{i} " for i in range(30)), End("3"))
    async with twins(tmp_path / "journal.db", script, script) as pair:
        pair.router.site = "far"
        call = pair.gateway.Contemplate(pb_client.ContemplateRequest(spec=spec()), timeout=20)
        id_ = await first(call)
        await until(lambda: all(decoder.num_sampled for decoder in pair.decoders))
        await crash(pair.owner_of(id_))
        await rest(call)
        heirs = [g for d in pair.decoders for g in d.opened if g.owner_epoch == 2]
    assert [is_whole(gang) for gang in heirs] == [True, False]


class Picky(pb_grpc.AgentDecoderServiceServicer, FakeServer):
    """Refuses a reference once it has read two commands; takes a gang that is sent whole."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[list[str]] = []

    def register(self, server: Any) -> None:
        pb_grpc.add_AgentDecoderServiceServicer_to_server(self, server)

    async def Decode(
        self, request_iterator: AsyncIterator[pb.DecodeRequest], context: Any
    ) -> AsyncIterator[pb.DecodeResponse]:
        requests = aiter(request_iterator)
        gang = (await anext(requests)).open
        self.heard.append(["whole" if is_whole(gang) else "brief"])
        if not is_whole(gang):
            self.heard[-1] += [str((await anext(requests)).WhichOneof("command")) for _ in "12"]
            yield pb.DecodeResponse(refused=pb.GangRefused(reason="CONVERSATION_UNAVAILABLE"))
            return
        yield pb.DecodeResponse(admitted=pb.GangAdmitted(build_digest="b"))
        async for request in requests:
            self.heard[-1].append(str(request.WhichOneof("command")))


async def test_what_was_commanded_meanwhile_is_commanded_again_in_order() -> None:
    said = common.Message(role=common.ROLE_USER, parts=[common.Part(text="How many?")])
    inputs: list[m.Input] = []
    missing: list[bool] = []
    async with Picky() as picky, open_channel(picky.address) as channel:
        gang = GangClient(
            "1", channel, pb.OpenGang(conversation=[said], shared_message_count=1),
            lambda item, _: inputs.append(item),
        )  # fmt: skip
        gang.refer(pb.ConversationReference(digest="d", address="a"), lambda: missing.append(True))
        assert not gang.held, "before there is an answer nobody knows"
        gang.send(pb.DecodeRequest(grant=pb.GrantTokens(granted_token_counts={0: 5})))
        gang.send(pb.DecodeRequest(kill=pb.KillAgents(agent_ids=[0])))
        gang.close()
        with deadline_scope(10):
            await gang.run()
    assert picky.heard == [
        ["brief", "grant", "kill"],
        ["whole", "grant", "kill", "close"],
    ]
    assert missing == [True]
    assert [type(item) for item in inputs] == [m.Admitted, m.GangLost]


def placed(address: str) -> router_pb.PlacedGang:
    return router_pb.PlacedGang(
        address=address, provider="far", region="here", takes_conversation_references=True
    )


def gang_of(**fields: Any) -> GangClient:
    said = common.Message(role=common.ROLE_USER, parts=[common.Part(text="How many?")])
    opening = pb.OpenGang(conversation=[said], **fields)
    return GangClient("1", None, opening, lambda item, _: None)  # type: ignore[arg-type]


async def test_who_could_not_reach_whom_is_told_to_again_after_a_while() -> None:
    clock = FakeClock()
    known = Neighbourhoods(AggregatorConfig(), clock.monotonic)
    known.failed("b", "a")
    assert not known.may_ask("b", "a") and known.may_ask("c", "a") and known.may_ask("a", "b")
    await clock.advance(sharing.AVOID_S - 0.5)
    assert not known.may_ask("b", "a")
    await clock.advance(0.5)
    assert known.may_ask("b", "a")
    known.failed("x", "y")
    assert len(known._avoided) == 1, "what is over is forgotten"


def test_tools_may_be_left_out_but_not_added() -> None:
    shares = Sharing(Neighbourhoods(AggregatorConfig()), 1)
    first, second, third = (
        gang_of(), gang_of(tools=[common.ToolSpec(name="zoom")]), gang_of(),
    )  # fmt: skip
    for gang, address in ((first, "a"), (second, "b"), (third, "c")):
        shares.join(placed(address), gang)
    assert first._brief is None and second._brief is None, "nobody there has these tools"
    assert third._brief is not None
    assert third._brief.conversation_reference.address == "a"
    first.break_off()
    fourth = gang_of()
    shares.join(placed("d"), fourth)
    assert fourth._brief is not None
    assert fourth._brief.conversation_reference.address == "b"
    assert fourth._brief.conversation_reference.without_tools
