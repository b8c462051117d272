"""The SDK against a scripted mesh: what it promises about streams, errors and connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cogitate.client import (
    AsyncClient,
    Cancelled,
    Client,
    CogitateError,
    ContemplationFailed,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import NoEndpoint
from cogitate.kit.lifecycle import serving
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

from tests.fakes.aggregator import Break, FakeAggregator, Raise, Script, Step, Wait

pytestmark = pytest.mark.contract

Event = pb2.ContemplationEvent
ACCEPTED = Event(accepted=pb2.Accepted(trace=common_pb2.TraceRef(trace_id="ab" * 16)))
ROUND = Event(round_started=pb2.RoundStarted())


@asynccontextmanager
async def mesh(script: Script) -> AsyncIterator[tuple[str, FakeAggregator]]:
    """An aggregator that clients reach without a gateway: the contract is the same."""
    made: list[FakeAggregator] = []

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> FakeAggregator:
        made.append(FakeAggregator(server, script))
        return made[0]

    config = ServiceConfig(listen="127.0.0.1:0", drain_grace_s=0.2)
    async with serving(config, build) as running:
        yield running.address, made[0]


def verdict() -> Event:
    """A verdict with most of what it can say."""
    event = Event()
    v = event.verdict
    v.answer, v.key, v.proved = "It is 42.", "42", True
    v.usage.sampled_token_count = 30
    v.duration.FromMilliseconds(1500)
    c = v.certificate
    c.strategy, c.quorum, c.decision, c.seed = "vote", "verified", "agent 1 proved it", 7
    c.ballots.add(agent_id=1, answer="It is 42.", key="42", proved=True, weight=1.0)
    c.killed_agents.add(agent_id=0, reason="DECIDED", sampled_token_count=12)
    c.placements.add(endpoint_id="a-1", provider="aurora", agent_ids=[0, 1], reason="cheapest")
    c.ledger.cost_micro_usd = 2500
    image = common_pb2.ImagePart(digest="sha256:00")
    image.box.CopyFrom(common_pb2.Box(x0_permille=1, y0_permille=2, x1_permille=3, y1_permille=4))
    c.evidence.add(agent_id=1, image=image)
    shown = common_pb2.ToolResult(call_id="zoom-1", parts=[common_pb2.Part(image=image)])
    c.evidence.add(agent_id=1, tool_result=shown)
    return event


def happy(request: pb2.ContemplateRequest) -> Sequence[Step]:
    return (ACCEPTED, ROUND, verdict())


def endless(request: pb2.ContemplateRequest) -> Sequence[Step]:
    return [ACCEPTED, *[step for _ in range(3000) for step in (Wait(0.002), ROUND)]]


def broken(times: int) -> Script:
    """Breaks the stream after each of the first events."""

    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        steps: list[Step] = [ACCEPTED]
        for _ in range(times):
            steps += [ROUND, Break(), ROUND]
        return [*steps, verdict()]

    return script


async def test_ask_gives_the_answer_with_its_certificate() -> None:
    async with mesh(happy) as (address, _), AsyncClient(address) as client:
        answer = await client.ask("Sum?", agents=2, seed=7, deadline_s=5)
        assert "It is 42." == str(answer) == answer.answer
        assert (True, 3, "ab" * 16) == (answer.proved, answer.event_count, answer.trace_id)
        assert (1.5, 30) == (answer.duration_s, answer.usage.sampled_tokens)
        certificate = answer.certificate
        assert ("verified", 7, 0.0025) == (
            certificate.quorum,
            certificate.seed,
            certificate.ledger.cost_usd,
        )
        assert ("DECIDED", "aurora") == (
            certificate.killed_agents[0].reason,
            certificate.placements[0].provider,
        )
        assert (1, 2, 3, 4) == certificate.evidence[0].box
        shown = certificate.evidence[1]
        assert ("zoom-1", "sha256:00", (1, 2, 3, 4)) == (shown.call_id, shown.digest, shown.box)
        assert answer.contemplation_id


async def test_the_request_says_what_was_asked() -> None:
    async with mesh(happy) as (address, fake), AsyncClient(address) as client:
        await client.ask(
            "Sum?",
            images=[b"bytes", "sha256:" + "0" * 64],
            agents=8,
            effort="contemplating",
            quorum="verified",
            strategy="vote",
            seed=3,
            deadline_s=5,
            budget_tokens=1000,
            budget_usd=0.5,
            temperature=0.5,
            model="mini",
            tools=[],
        )
        spec = fake.requests[0].spec
        assert (8, "verified", "vote", 3, 1000, 500_000) == (
            spec.agent_count,
            spec.quorum,
            spec.strategy,
            spec.sampling_params.seed,
            spec.budget.max_tokens,
            spec.budget.max_cost_micro_usd,
        )
        assert ["none"] == spec.allowed_tools
        assert b"bytes" == spec.conversation[0].parts[1].image.data
        assert spec.request_id
        assert 10 < fake.deadlines_s[0] < 16, "the answer's deadline and a grace"


async def test_break_leaves_the_stream_and_cancels_it() -> None:
    async with mesh(endless) as (address, fake), AsyncClient(address) as client:
        async with client.contemplate("?") as stream:
            async for event in stream:
                if event.event_number == 5:
                    break
        async with asyncio.timeout(10):
            await fake.cancelled.wait()
        sent = fake.sent
        await asyncio.sleep(0.1)
        assert sent == fake.sent


async def test_break_leaves_the_sync_stream_and_cancels_it() -> None:
    def watch(address: str) -> int:
        with Client(address) as client, client.contemplate("?") as stream:
            for event in stream:
                if event.event_number == 5:
                    break
            return stream.last_event_number

    async with mesh(endless) as (address, fake):
        assert 5 == await asyncio.to_thread(watch, address)
        async with asyncio.timeout(10):
            await fake.cancelled.wait()


async def test_a_broken_stream_attaches_without_gap_or_duplicate() -> None:
    async with mesh(broken(3)) as (address, fake), AsyncClient(address) as client:
        async with client.contemplate("?", on_disconnect="continue") as stream:
            numbers = [event.event_number async for event in stream]
            answer = await stream.answer()
        assert list(range(1, 9)) == numbers
        assert [2, 4, 6] == fake.attaches
        assert 8 == answer.event_count


async def test_a_broken_sync_stream_attaches_without_gap_or_duplicate() -> None:
    def watch(address: str) -> list[int]:
        with (
            Client(address) as client,
            client.contemplate("?", on_disconnect="continue") as stream,
        ):
            return [event.event_number for event in stream]

    async with mesh(broken(2)) as (address, fake):
        assert list(range(1, 7)) == await asyncio.to_thread(watch, address)
        assert [2, 4] == fake.attaches


async def test_a_plain_stream_that_breaks_is_an_error() -> None:
    async with mesh(broken(1)) as (address, fake), AsyncClient(address) as client:
        with pytest.raises(Unavailable) as caught:
            await client.ask("?")
        assert caught.value.retryable
        assert [] == fake.attaches


async def test_a_question_that_never_arrived_is_sent_again_with_its_id() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        return (Break(), ACCEPTED, verdict())

    async with mesh(script) as (address, fake), AsyncClient(address) as client:
        await client.ask("?", on_disconnect="continue")
        first, second = fake.requests
        assert first.spec.request_id == second.spec.request_id
        assert 1 == len(fake.played)


async def test_retries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogitate.client._cursor._LONGEST_DELAY_S", 0.01)

    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        return (ACCEPTED, *[Break()] * 50)

    async with mesh(script) as (address, fake), AsyncClient(address) as client:
        with pytest.raises(Unavailable):
            await client.ask("?", on_disconnect="continue")
        assert 6 == len(fake.attaches)


async def test_a_gap_is_an_error() -> None:
    class Gappy(FakeAggregator):
        async def _play(self, played: Any, after: int, context: Any) -> AsyncGenerator[Event, None]:
            for number in (1, 3):
                yield Event(event_number=number, round_started=pb2.RoundStarted())

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> FakeAggregator:
        return Gappy(server, happy)

    config = ServiceConfig(listen="127.0.0.1:0", drain_grace_s=0.2)
    async with serving(config, build) as running, AsyncClient(running.address) as client:
        with pytest.raises(CogitateError, match="do not follow"):
            await client.ask("?")
        async with client.contemplate("?", exclude=["deltas"]) as stream:
            assert 1 == (await anext(stream)).event_number
            assert 3 == (await anext(stream)).event_number


async def test_endings_without_an_answer_are_errors() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        if request.spec.model == "cancelled":
            return (ACCEPTED, Event(cancelled=pb2.ContemplationCancelled(reason="REQUESTED")))
        failed = pb2.Failed(code=14, reason="NO_ENDPOINT", message="nobody left", retryable=True)
        return (ACCEPTED, Event(failed=failed))

    async with mesh(script) as (address, _), AsyncClient(address) as client:
        with pytest.raises(ContemplationFailed, match="nobody left") as caught:
            await client.ask("?")
        assert ("NO_ENDPOINT", "UNAVAILABLE", True) == (
            caught.value.reason,
            caught.value.code,
            caught.value.retryable,
        )
        with pytest.raises(Cancelled):
            await client.ask("?", model="cancelled")


async def test_refusals_keep_reason_and_metadata() -> None:
    def script(request: pb2.ContemplateRequest) -> Sequence[Step]:
        error = NoEndpoint("all are full", metadata={"model": "mini"}, retry_after_s=1.0)
        return (Raise(error),)

    async with mesh(script) as (address, _), AsyncClient(address) as client:
        with pytest.raises(Unavailable, match="all are full") as caught:
            await client.ask("?")
        assert ("NO_ENDPOINT", {"model": "mini"}, 1.0) == (
            caught.value.reason,
            caught.value.metadata,
            caught.value.retry_after_s,
        )


async def test_no_mesh_says_what_to_do() -> None:
    async with AsyncClient("127.0.0.1:1", timeout_s=5) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1; start one with `cogitate up`"):
            await client.ask("?", deadline_s=5)

    def sync() -> None:
        with Client("127.0.0.1:1", timeout_s=5) as client, pytest.raises(Unavailable):
            client.ask("?", deadline_s=5)

    await asyncio.to_thread(sync)


async def test_what_cannot_be_said_is_refused_at_once() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest, match="effort is one of"):
            await client.ask("?", effort="maximal")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="cannot read the image /nowhere"):
            await client.ask("?", images=["/nowhere"])


async def test_get_list_cancel_attach() -> None:
    async with mesh(happy) as (address, fake), AsyncClient(address) as client:
        id = (await client.ask("?")).contemplation_id
        assert "COMPLETED" == (await client.get(id)).state
        assert (id,) == tuple(one.contemplation_id for one in await client.list())
        await client.cancel(id)
        assert fake.cancelled.is_set()
        async with client.attach(id, after=1) as stream:
            assert [2, 3] == [event.event_number async for event in stream]
        with pytest.raises(NotFound):
            await client.get("nobody")
