"""ContemplationService over real sockets, with scripted decoders, router and tools."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.journal import JournalError, Record
from cogitate.aggregator.server import build
from cogitate.kit import lifecycle
from cogitate.kit.channels import open_channel
from cogitate.router.config import RouterConfig
from cogitate.router.server import build as build_router
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub
from google.protobuf.duration_pb2 import Duration

from tests.fakes.decoder import Call, End, FakeDecoder, Hold, Script, Step, token_id
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.router import FakeRouter
from tests.fakes.tools import FakeTools, text

pytestmark = pytest.mark.contract

SOON = Duration(nanos=60_000_000)
ENDINGS = ("verdict", "failed", "cancelled")


@dataclass
class Mesh:
    """A running aggregator and its scripted neighbours."""

    stub: Any
    decoders: list[FakeDecoder]
    router: FakeRouter
    tools: FakeTools
    address: str
    runtime: Any

    async def ask(self, **fields: Any) -> list[pb.ContemplationEvent]:
        """Contemplates to the end."""
        request = pb.ContemplateRequest(spec=spec(**fields))
        async with asyncio.timeout(10):
            return [r.event async for r in self.stub.Contemplate(request, timeout=10)]

    async def attach(self, contemplation_id: str, after: int) -> list[pb.ContemplationEvent]:
        request = pb.AttachRequest(contemplation_id=contemplation_id, after_event_number=after)
        async with asyncio.timeout(10):
            return [r.event async for r in self.stub.Attach(request, timeout=10)]

    async def get(self, contemplation_id: str) -> pb.GetContemplationResponse:
        request = pb.GetContemplationRequest(contemplation_id=contemplation_id)
        return await self.stub.GetContemplation(request, timeout=5)

    async def cancel(self, contemplation_id: str) -> pb.CancelContemplationResponse:
        request = pb.CancelContemplationRequest(contemplation_id=contemplation_id)
        return await self.stub.CancelContemplation(request, timeout=5)


def spec(**fields: Any) -> pb.ContemplationSpec:
    question = common.Message(role=common.ROLE_USER, parts=[common.Part(text="How many cards?")])
    defaults = {"conversation": [question], "agent_count": 3, "quorum": "all"}
    return pb.ContemplationSpec(**{**defaults, **fields})


@asynccontextmanager
async def aggregator(router: FakeRouter, tools: FakeTools, **knobs: Any) -> AsyncIterator[Any]:
    config = AggregatorConfig(
        **{
            "router_address": router.address,
            "tool_executor_address": tools.address,
            "flush_interval_s": 0.005,
            "drain_grace_s": 0.0,
            "place_timeout_s": 2.0,
            **knobs,
        }
    )
    async with (
        lifecycle.serving(config, build, name="aggregator") as running,
        open_channel(running.address) as channel,
    ):
        yield ContemplationServiceStub(channel), running


@asynccontextmanager
async def mesh(
    *scripts: Script, tools: FakeTools | None = None, builds: tuple[str, ...] = (), **knobs: Any
) -> AsyncIterator[Mesh]:
    """One decoder for each script, named d0, d1 and so on."""
    async with AsyncExitStack() as stack:
        decoders = []
        for number, script in enumerate(scripts):
            made = FakeDecoder(script, endpoint_id=f"d{number}")
            made.build = builds[number] if builds else made.build
            decoders.append(await stack.enter_async_context(made))
        addresses = {decoder.endpoint_id: decoder.address for decoder in decoders}
        router = await stack.enter_async_context(FakeRouter(addresses))
        tools = await stack.enter_async_context(tools or FakeTools())
        stub, running = await stack.enter_async_context(aggregator(router, tools, **knobs))
        yield Mesh(stub, decoders, router, tools, running.address, running.service._runtime)


def saying(answer: str, tokens: int = 4) -> Script:
    return every(*(f"w{i} " for i in range(tokens)), End(answer))


def every(*steps: Step) -> Script:
    """All agents follow these steps."""
    return lambda _: steps


def one(agent_id: int, steps: Sequence[Step], others: Sequence[Step]) -> Script:
    """One agent follows other steps than the rest."""
    return lambda agent: steps if agent.agent_id == agent_id else others


def kinds(events: list[pb.ContemplationEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


def check_grammar(events: list[pb.ContemplationEvent]) -> pb.ContemplationEvent:
    """Accepted first, one ending last, numbers without gaps, times that never go back."""
    seen = kinds(events)
    assert seen[0] == "accepted"
    assert [kind in ENDINGS for kind in seen] == [False] * (len(seen) - 1) + [True]
    assert [event.event_number for event in events] == list(range(1, len(events) + 1))
    assert all(event.first_event_number == event.event_number for event in events)
    times = [event.event_time.ToNanoseconds() for event in events]
    assert times == sorted(times)
    ending = getattr(events[-1], seen[-1])
    ledger = ending.certificate.ledger if seen[-1] == "verdict" else ending.ledger
    assert ledger.generated_token_count == (
        ledger.used_token_count + ledger.killed_token_count + ledger.lost_token_count
    )
    return events[-1]


def check_tokens(events: list[pb.ContemplationEvent]) -> dict[int, int]:
    """Each agent's offsets follow each other; returns how many tokens each wrote."""
    written: dict[int, int] = {}
    for event in events:
        for delta in event.deltas.deltas:
            assert delta.token_offset == written.get(delta.agent_id, 0), delta
            written[delta.agent_id] = delta.token_offset + delta.token_count
    return written


async def until(condition: Callable[[], Any]) -> None:
    """Waits; the limit is the test's failure."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def status_of(awaitable: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(awaitable, "read"):
            async for _ in awaitable:
                pass
        else:
            await awaitable
    return caught.value.code(), caught.value.details() or ""


def open_stream(mesh: Mesh, **fields: Any) -> Any:
    return mesh.stub.Contemplate(pb.ContemplateRequest(spec=spec(**fields)), timeout=10)


async def first(call: Any) -> str:
    """Reads Accepted and returns the contemplation's id."""
    async with asyncio.timeout(5):
        return (await call.read()).event.accepted.contemplation_id


async def rest(call: Any) -> list[pb.ContemplationEvent]:
    events = []
    async with asyncio.timeout(10):
        while (response := await call.read()) is not grpc.aio.EOF:
            events.append(response.event)
    return events


# -- the happy path ----------------------------------------------------------------------------


async def test_a_contemplation_from_question_to_verdict() -> None:
    async with mesh(saying("There are 3 red cards."), saying("3")) as m:
        events = await m.ask(agent_count=4)
        verdict = check_grammar(events).verdict
        released = m.router.released.wait()
        async with asyncio.timeout(2):
            await released
    assert verdict.key == "3"
    assert not verdict.degraded
    ledger = verdict.certificate.ledger
    assert ledger.used_token_count == 16 == sum(d.num_sampled for d in m.decoders)
    assert ledger.cost_micro_usd > 0
    assert check_tokens(events) == {0: 4, 1: 4, 2: 4, 3: 4}
    seen = kinds(events)
    order = ["accepted", "round_started", "placed", "agent_started", "prefilled", "deltas"]
    assert [kind for kind in dict.fromkeys(seen) if kind in order] == order
    assert seen.count("ballot_cast") == 4
    assert seen.index("decided") < seen.index("verdict")
    assert {p.endpoint_id for p in verdict.certificate.placements} == {"d0", "d1"}
    assert dict(verdict.certificate.build_digests) == {"d0": "sha256:fake", "d1": "sha256:fake"}
    [declared] = m.router.told("declare")
    [confirmed] = m.router.told("confirm")
    assert declared.contemplation_id == confirmed.contemplation_id
    # The router is told its own gang ids, and the endpoints are given them too.
    ids = {gang.gang_id for gang in confirmed.gangs}
    assert ids == {gang.gang_id for d in m.decoders for gang in d.opened} == {"1.1", "1.2"}


async def test_unbeatable_kills_the_rest_and_books_their_tokens() -> None:
    async with mesh(one(3, [*"abc", Hold()], ["x", End("7")])) as m:
        events = await m.ask(agent_count=4, quorum="unbeatable")
        verdict = check_grammar(events).verdict
        assert m.decoders[0].running == 0
    assert verdict.key == "7"
    assert [k.reason for k in verdict.certificate.killed_agents] == ["DECIDED"]
    ledger = verdict.certificate.ledger
    assert ledger.generated_token_count == m.decoders[0].num_sampled


async def test_excluded_events_are_left_out_and_numbers_stay() -> None:
    async with mesh(saying("3")) as m:
        request = pb.ContemplateRequest(
            spec=spec(), filter=pb.EventFilter(excluded_events=["deltas", "verdict"])
        )
        events = [r.event async for r in m.stub.Contemplate(request, timeout=10)]
    assert "deltas" not in kinds(events)
    assert kinds(events)[-1] == "verdict"
    numbers = [event.event_number for event in events]
    assert numbers[-1] > len(events)


async def test_a_gang_begins_narrow_and_widens_while_there_is_dissent() -> None:
    answers = ["3", "4", "3", "3", "3", "3", "3", "3"]

    def said(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        return ["w", End(answers[agent.agent_id])]

    async with mesh(said) as m:
        events = await m.ask(agent_count=8, quorum="posterior:0.95", initial_agent_count=2)
        verdict = check_grammar(events).verdict
        opened = [agent.agent_id for d in m.decoders for g in d.opened for agent in g.agents]
    [started] = [e.round_started for e in events if e.HasField("round_started")]
    assert list(started.agent_ids) == [0, 1, 2, 3]
    widened = [agent_id for e in events for agent_id in e.widened.agent_ids]
    assert widened
    assert sorted(opened) == [0, 1, 2, 3, *widened]
    assert verdict.key == "3"
    assert len(m.router.told("declare")) == 1, "more agents are placed under the same lease"


async def test_a_second_round_is_shown_the_drafts_and_shares_the_lease() -> None:
    def said(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        return ["draft", End("5" if agent.agent_id < 2 else "6")]

    async with mesh(said) as m:
        events = await m.ask(agent_count=2, strategy="refine", quorum="all")
        verdict = check_grammar(events).verdict
        first, second = [g for d in m.decoders for g in d.opened]
    assert [r.round_started.role for r in events if r.HasField("round_started")] == [
        "solver", "refiner",
    ]  # fmt: skip
    assert (first.role, second.role) == ("solver", "refiner")
    added = second.conversation[len(first.conversation) :]
    assert [message.role for message in added] == [common.ROLE_ASSISTANT, common.ROLE_USER]
    assert "draft" in added[0].parts[0].text
    assert verdict.key == "6"
    assert [b.round_number for b in verdict.certificate.ballots] == [1, 1, 2, 2]
    assert len(m.router.told("declare")) == 1


async def test_a_warm_up_sets_one_threshold_for_the_rest() -> None:
    hold = Hold()

    def said(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        number = agent.agent_id
        sure = End("5", lowest_confidence=8.0 + number)
        return ["w", sure] if number < 4 else ["w", hold, End("6", lowest_confidence=9.0)]

    async with mesh(said) as m:
        asking = m.ask(agent_count=6, strategy="confidence:0.5", quorum="all")
        asked = asyncio.create_task(asking)

        def thresholds() -> list[float]:
            commands = [c for d in m.decoders for c in d.commands]
            return [
                c.set_confidence_threshold.group_confidence
                for c in commands
                if c.HasField("set_confidence_threshold")
            ]

        await until(thresholds)
        hold.open.set()
        verdict = check_grammar(await asked).verdict
        assert thresholds() == [9.5]
    weights = {b.agent_id: b.weight for b in verdict.certificate.ballots}
    assert weights[0] == 8.0 / 32


async def test_a_schema_reaches_every_agent_and_equal_json_is_one_answer() -> None:
    answers = ['{"a":1,"b":[true]}', '{ "b": [true], "a": 1.0 }', '{"a": 1', '{"a":2,"b":[]}']

    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        return ["w", End(answers[agent.agent_id])]

    async with mesh(script) as m:
        events = await m.ask(agent_count=4, response_json_schema='{"type":"object"}')
        verdict = check_grammar(events).verdict
        agents = m.decoders[0].agents()
        [declared] = m.router.told("declare")
    assert {a.sampling_params.json_schema for a in agents} == {'{"type":"object"}'}
    needs = declared.gangs[0].required_capabilities
    assert decoder_pb.CAPABILITY_JSON_SCHEMA in needs
    assert decoder_pb.CAPABILITY_CONSTRAINT not in needs
    assert verdict.key == '{"a":1,"b":[true]}'
    assert verdict.answer in answers[:2]  # the text itself
    ballots = sorted(verdict.certificate.ballots, key=lambda b: b.agent_id)
    assert [b.answer for b in ballots] == answers
    assert [b.key == verdict.key for b in ballots] == [True, True, False, False]
    assert [b.abstained for b in ballots] == [False, False, True, False]


async def test_a_regex_asks_for_the_capability_too_and_nothing_else_does() -> None:
    async with mesh(saying("3")) as m:
        await m.ask(sampling_params=common.SamplingParams(regex="[0-9]+"))
        await m.ask()
        first, second = m.router.told("declare")
        assert m.decoders[0].agents()[0].sampling_params.regex == "[0-9]+"
    assert decoder_pb.CAPABILITY_CONSTRAINT in first.gangs[0].required_capabilities
    assert decoder_pb.CAPABILITY_CONSTRAINT not in second.gangs[0].required_capabilities


@pytest.mark.parametrize(
    "fields",
    [
        {"agent_count": 0},
        {"conversation": []},
        {"strategy": "dice"},
        {"effort": 99},
        {"sampling_params": common.SamplingParams(temperature=float("nan"))},
    ],
)
async def test_a_bad_spec_is_refused_before_acceptance(fields: dict[str, Any]) -> None:
    async with mesh(saying("3")) as m:
        code, _ = await status_of(open_stream(m, **fields))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        listed = await m.stub.ListContemplations(pb.ListContemplationsRequest(), timeout=5)
    assert not listed.contemplations


# -- attach ------------------------------------------------------------------------------------


async def test_attach_at_every_number_gives_exactly_the_rest(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal.db")
    async with mesh(saying("3"), journal=journal) as m:
        events = await m.ask()
        id_ = events[0].accepted.contemplation_id
        for after in range(len(events) + 1):
            assert await m.attach(id_, after) == events[after:]
        call = m.stub.Attach(
            pb.AttachRequest(contemplation_id=id_, after_event_number=len(events) + 1), timeout=5
        )
        assert (await status_of(call))[0] is grpc.StatusCode.OUT_OF_RANGE
    async with mesh(saying("3"), journal=journal) as m:
        for after in (0, 1, len(events) - 1, len(events)):
            assert await m.attach(id_, after) == events[after:]
        assert (await m.get(id_)).ending == events[-1]


async def test_attach_to_one_that_runs_goes_on_live() -> None:
    hold = Hold()
    async with mesh(every("a", hold, "b", End("3"))) as m:
        call = open_stream(m)
        id_ = await first(call)
        attached = m.stub.Attach(pb.AttachRequest(contemplation_id=id_), timeout=10)
        await until(lambda: m.decoders[0].num_sampled == 3)
        hold.open.set()
        events = await rest(call)
        assert (await rest(attached))[1:] == events


async def test_unknown_and_foreign_contemplations_are_not_found() -> None:
    async with mesh(saying("3")) as m:
        id_ = (await m.ask())[0].accepted.contemplation_id
        stranger = (("x-cogitate-tenant", "stranger"),)
        for wanted, metadata in ((str(uuid.uuid4()), ()), (id_, stranger)):
            codes = [
                await status_of(
                    m.stub.Attach(
                        pb.AttachRequest(contemplation_id=wanted), timeout=5, metadata=metadata
                    )
                )
            ]
            for name in ("GetContemplation", "CancelContemplation", "DeleteContemplation"):
                request = getattr(pb, f"{name}Request")(contemplation_id=wanted)
                call = getattr(m.stub, name)(request, timeout=5, metadata=metadata)
                codes.append(await status_of(call))
            assert {code for code, _ in codes} == {grpc.StatusCode.NOT_FOUND}
            assert len({details for _, details in codes}) == 1
        listed = await m.stub.ListContemplations(
            pb.ListContemplationsRequest(), timeout=5, metadata=stranger
        )
        assert not listed.contemplations


# -- idempotency -------------------------------------------------------------------------------


async def test_the_same_request_id_joins_and_another_spec_is_refused() -> None:
    async with mesh(saying("3")) as m:
        events = await m.ask(request_id="r1")
        assert await m.ask(request_id="r1") == events
        code, _ = await status_of(open_stream(m, request_id="r1", agent_count=2))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert len(m.decoders[0].opened) == 1


async def test_a_request_sent_again_counts_its_deadline_anew_and_is_the_same() -> None:
    def ending_in(seconds: float) -> common.Budget:
        budget = common.Budget()
        budget.deadline_time.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
        return budget

    async with mesh(saying("3")) as m:
        events = await m.ask(request_id="r1", budget=ending_in(20))
        assert await m.ask(request_id="r1", budget=ending_in(21)) == events
        assert len(m.decoders[0].opened) == 1
        other = ending_in(20)
        other.max_tokens = 7
        code, _ = await status_of(open_stream(m, request_id="r1", budget=other))
        assert code is grpc.StatusCode.ALREADY_EXISTS


async def test_the_same_request_id_many_times_at_once_runs_once() -> None:
    async with mesh(saying("3")) as m:
        all_events = await asyncio.gather(*(m.ask(request_id="r1") for _ in range(6)))
        assert len(m.router.told("declare")) == 1
    assert all(events == all_events[0] for events in all_events)
    check_grammar(all_events[0])


async def test_two_different_specs_at_once_with_one_request_id() -> None:
    async with mesh(saying("3")) as m:
        results = await asyncio.gather(
            *(m.ask(request_id="r1", agent_count=n) for n in (1, 2)), return_exceptions=True
        )
    refused = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert [r.code() for r in refused] == [grpc.StatusCode.ALREADY_EXISTS]


# -- disconnect, cancel, delete, list ----------------------------------------------------------


async def test_a_disconnect_stops_agents_and_tools_at_once() -> None:
    tools = FakeTools({"zoom": text("x")}, delay_s=30)
    script = one(0, ["a", Call("zoom")], ["a", Hold()])
    async with mesh(script, script, tools=tools) as m:
        call = open_stream(m, agent_count=4)
        id_ = await first(call)
        await until(lambda: m.tools.ran and sum(d.num_sampled for d in m.decoders) == 4)
        began = asyncio.get_running_loop().time()
        call.cancel()
        await until(lambda: not any(d.running for d in m.decoders))
        async with asyncio.timeout(1):
            await tools.dropped.wait()
        assert asyncio.get_running_loop().time() - began < 0.5  # 0.1 s on a machine at rest
        ending = check_grammar(await m.attach(id_, 0))
        assert ending.cancelled.reason == "DISCONNECTED"
        assert ending.cancelled.ledger.killed_token_count == 4


async def test_two_listeners_of_one_request_and_one_leaves() -> None:
    hold = Hold()
    async with mesh(every("a", hold, End("3"))) as m:
        calls = [open_stream(m, request_id="r1") for _ in range(2)]
        assert await first(calls[0]) == await first(calls[1])
        calls[0].cancel()
        await asyncio.sleep(0.05)
        hold.open.set()
        assert kinds(await rest(calls[1]))[-1] == "verdict"


async def test_continue_goes_on_without_the_client() -> None:
    hold = Hold()
    async with mesh(every("a", hold, End("3"))) as m:
        call = open_stream(m, on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        id_ = await first(call)
        await until(lambda: m.decoders[0].num_sampled == 3)
        call.cancel()
        await asyncio.sleep(0.05)
        hold.open.set()
        assert check_grammar(await m.attach(id_, 0)).verdict.key == "3"


async def test_cancel_is_idempotent_and_delete_needs_an_ending() -> None:
    async with mesh(every("a", Hold())) as m:
        call = open_stream(m)
        id_ = await first(call)
        delete = pb.DeleteContemplationRequest(contemplation_id=id_)
        code, _ = await status_of(m.stub.DeleteContemplation(delete, timeout=5))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        State = pb.ContemplationSummary
        assert (await m.cancel(id_)).summary.state == State.STATE_RUNNING
        assert (await rest(call))[-1].cancelled.reason == "REQUESTED"
        assert (await m.cancel(id_)).summary.state == State.STATE_CANCELLED
        await m.stub.DeleteContemplation(delete, timeout=5)  # at once after the ending
        code, _ = await status_of(m.stub.DeleteContemplation(delete, timeout=5))
        assert code is grpc.StatusCode.NOT_FOUND


async def test_pages_list_everything_once_newest_first() -> None:
    async with mesh(saying("3")) as m:
        ids = [(await m.ask(agent_count=1))[0].accepted.contemplation_id for _ in range(5)]
        seen, token = [], ""
        while True:
            request = pb.ListContemplationsRequest(page_size=2, page_token=token)
            page = await m.stub.ListContemplations(request, timeout=5)
            seen += [summary.contemplation_id for summary in page.contemplations]
            token = page.next_page_token
            if not token:
                break
        assert seen == ids[::-1]
        for size, token in ((1001, ""), (-1, ""), (1, "x"), (1, "9" * 30)):
            request = pb.ListContemplationsRequest(page_size=size, page_token=token)
            code, _ = await status_of(m.stub.ListContemplations(request, timeout=5))
            assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_deadline_that_is_over_when_the_question_comes_is_exceeded_not_invalid() -> None:
    async with mesh(saying("3")) as m:
        budget = common.Budget()
        budget.deadline_time.FromSeconds(1)
        code, details = await status_of(first(open_stream(m, budget=budget)))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "before the question was accepted" in details


async def test_one_contemplation_more_than_may_run_is_refused() -> None:
    async with mesh(every(Hold()), max_contemplation_count=1) as m:
        call = open_stream(m)
        await first(call)
        code, _ = await status_of(open_stream(m))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()


# -- tools -------------------------------------------------------------------------------------


async def test_identical_calls_of_siblings_run_once() -> None:
    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        arguments = '{"a":1, "b":2}' if agent.agent_id else '{"b":2,"a":1}'
        return ["a", Call("calculator", arguments), "b", End("3")]

    tools = FakeTools({"calculator": text("3")}, delay_s=0.05)
    async with mesh(script, script, tools=tools) as m:
        events = await m.ask(agent_count=4)
        ledger = check_grammar(events).verdict.certificate.ledger
        assert len(m.tools.ran) == 1
    assert (ledger.tool_call_count, ledger.tool_execution_count) == (4, 1)
    finished = [e.tool_call_finished for e in events if e.HasField("tool_call_finished")]
    assert sorted(f.shared for f in finished) == [False, True, True, True]
    injected = [c.inject for d in m.decoders for c in d.commands if c.HasField("inject")]
    assert sorted(i.agent_id for i in injected) == [0, 1, 2, 3]
    assert {i.tool_result.parts[0].text for i in injected} == {"3"}


async def test_a_lookup_has_the_tables_of_the_question_runs_once_and_is_evidence() -> None:
    tools = FakeTools({"lookup": text("2.50"), "calculator": text("5")}, delay_s=0.05)
    look = Call("lookup", '{"table": "prices", "row": "bread"}')
    script = every("a", look, "b", Call("calculator", "{}"), "c", End("5"))
    row = common.LookupRow(cells=["bread", "2.50"])
    table = common.LookupTable(name="prices", columns=["item", "price"], rows=[row])
    async with mesh(script, tools=tools) as m:
        events = await m.ask(tables=[table])
        verdict = check_grammar(events).verdict
        ran = {run.call.name: list(run.tables) for run in m.tools.ran}
        shown = m.decoders[0].opened[0].conversation[-1].parts
    assert ran == {"lookup": [table], "calculator": []}
    ledger = verdict.certificate.ledger
    assert (ledger.tool_call_count, ledger.tool_execution_count) == (6, 2)
    assert verdict.certificate.evidence[0].tool_result.parts[0].text == "2.50"
    assert shown[-1].text == "Tables: prices (item, price)."


async def test_a_crop_of_a_crop_is_that_of_the_agent_who_has_it() -> None:
    picture = common.ImagePart(digest="sha256:" + "a" * 64)

    def cropped(arguments_json: str) -> common.ToolResult:
        box = common.Box(x0_permille=json.loads(arguments_json)["left"], x1_permille=900)
        part = common.ImagePart(digest=picture.digest, box=box, width_px=50)
        return common.ToolResult(parts=[common.Part(image=part)])

    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        left = 100 if agent.agent_id else 200
        first = Call("zoom", f'{{"left": {left}, "image": 0}}')
        return ["a", first, "b", Call("zoom", '{"left": 300, "image": 1}'), "c", End("3")]

    async with mesh(script, tools=FakeTools({"zoom": cropped})) as m:
        asked = [common.Part(text="What is there?"), common.Part(image=picture)]
        message = common.Message(role=common.ROLE_USER, parts=asked)
        events = await m.ask(agent_count=3, conversation=[message])
        ledger = check_grammar(events).verdict.certificate.ledger
        ran = [list(run.images) for run in m.tools.ran]
    assert (ledger.tool_call_count, ledger.tool_execution_count) == (6, 4)
    assert all(images[0] == picture for images in ran)
    assert [len(images) for images in ran] == [1, 1, 2, 2]
    crops = [images[1] for images in ran[2:]]
    assert sorted(crop.box.x0_permille for crop in crops) == [100, 200]
    assert {(crop.digest, crop.box.x1_permille, crop.width_px) for crop in crops} == {
        (picture.digest, 900, 50)
    }


async def test_agents_are_told_what_the_tools_do() -> None:
    async with mesh(saying("3"), tools=FakeTools({"calculator": text("4")})) as m:
        mine = common.ToolSpec(name="mine", description="The client's.")
        await m.ask(allowed_tools=["calculator"], client_tools=[mine])
        tools = m.decoders[0].opened[0].tools
    assert [tool.name for tool in tools] == ["calculator", "mine"]
    assert [tool.description for tool in tools] == ["Runs calculator.", "The client's."]
    assert tools[0].parameters_json_schema == "{}"


async def test_a_proof_ends_a_verified_contemplation() -> None:
    script = one(1, ["a", Call("prove")], ["b", Hold()])
    tools = FakeTools({"prove": text("ok", proves="6*4=24")})
    async with mesh(script, tools=tools) as m:
        events = await m.ask(quorum="verified")
    verdict = check_grammar(events).verdict
    assert verdict.proved
    assert verdict.answer == "6*4=24"
    assert verdict.certificate.evidence[0].tool_result.proof.answer == "6*4=24"
    assert sorted(k.agent_id for k in verdict.certificate.killed_agents) == [0, 2]


async def test_a_tool_nobody_has_is_refused_by_name() -> None:
    async with mesh(saying("3"), tools=FakeTools({"calculator": text("3")})) as m:
        code, details = await status_of(first(open_stream(m, allowed_tools=["nope"])))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "nope" in details and "calculator" in details
        check_grammar(await m.ask(allowed_tools=["calculator"]))
        await m.tools.kill()
        # What cannot be asked is not refused: the agents will be told.
        check_grammar(await m.ask(allowed_tools=["nope"]))


async def test_agents_go_on_without_a_tool_executor() -> None:
    async with mesh(every(Call("calculator"), "b", End("3"))) as m:
        await m.tools.kill()
        events = await m.ask()
    assert check_grammar(events).verdict.key == "3"
    finished = [e.tool_call_finished for e in events if e.HasField("tool_call_finished")]
    assert all(f.result.is_error for f in finished)
    assert len(finished) == 3


async def test_a_tool_in_the_client_is_waited_for() -> None:
    async with mesh(every("a", Call("ask_user", "{}"), "b", End("3"))) as m:
        call = open_stream(m, client_tools=[common.ToolSpec(name="ask_user")])
        id_ = await first(call)
        while not (event := (await call.read()).event).HasField("awaiting_client"):
            pass
        State = pb.ContemplationSummary
        assert (await m.get(id_)).summary.state == State.STATE_AWAITING_CLIENT
        result = common.ToolResult(call_id="nobody's")
        submit = pb.SubmitToolResultRequest(contemplation_id=id_, result=result)
        code, _ = await status_of(m.stub.SubmitToolResult(submit, timeout=5))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        submit.result.call_id = event.awaiting_client.call.call_id
        await m.stub.SubmitToolResult(submit, timeout=5)
        assert (await rest(call))[-1].verdict.key == "3"
        assert not m.tools.ran
        code, _ = await status_of(m.stub.SubmitToolResult(submit, timeout=5))
        assert code is grpc.StatusCode.FAILED_PRECONDITION


# -- losses ------------------------------------------------------------------------------------


async def test_agents_of_a_killed_decoder_go_on_with_their_very_tokens() -> None:
    hold = Hold()
    script = every("a", "b", Call("zoom"), "c", hold, "d", End("3"))
    async with mesh(script, script, tools=FakeTools({"zoom": text("a crop")})) as m:
        call = open_stream(m, agent_count=4)
        await first(call)
        await until(lambda: sum(d.num_sampled for d in m.decoders) == 12)
        await asyncio.sleep(0.05)
        victim, heir = m.decoders
        lost = [agent.agent_id for agent in victim.opened[0].agents]
        await victim.kill()
        await until(lambda: len(heir.opened) == 2)
        hold.open.set()
        events = await rest(call)
    assert check_tokens(events) == {0: 4, 1: 4, 2: 4, 3: 4}
    assert len(events[-1].verdict.certificate.ballots) == 4
    assert not events[-1].verdict.degraded
    for agent in heir.opened[1].agents:
        state = agent.resume_state
        assert agent.attempt == 2
        assert state.sampled_token_count == 3
        assert state.build_digest == "sha256:fake"
        assert state.confidence.mean_logprob == -0.5  # it breaks ties where it ends
        assert not state.pending_call_id
        found = [s.WhichOneof("segment") for s in state.segments]
        assert found == ["sampled", "tool_result", "sampled"]
        sampled = [list(s.sampled.token_ids) for s in state.segments if s.HasField("sampled")]
        ids = [token_id(agent.agent_id, offset) for offset in range(3)]
        assert sampled == [ids[:2], ids[2:]]
        assert state.segments[1].tool_result.parts[0].text == "a crop"
    assert sorted(a.agent_id for a in heir.opened[1].agents) == sorted(lost)
    [replaced] = m.router.told("replace")
    assert [f.endpoint_id for f in replaced.failures] == ["d0"]
    lost_events = [e.agent_lost for e in events if e.HasField("agent_lost")]
    assert sorted(e.agent_id for e in lost_events) == sorted(lost)
    assert all(e.resumed for e in lost_events)


async def test_an_agent_lost_while_its_tool_runs_gets_the_result_elsewhere() -> None:
    script = every("a", Call("zoom"), "b", End("3"))
    tools = FakeTools({"zoom": text("x")}, delay_s=0.2)
    async with mesh(script, script, tools=tools) as m:
        call = open_stream(m, agent_count=2)
        await first(call)
        await until(lambda: m.tools.ran)
        await m.decoders[0].kill()
        events = await rest(call)
        assert len(m.tools.ran) == 1
    assert check_tokens(events) == {0: 2, 1: 2}
    assert len(events[-1].verdict.certificate.ballots) == 2
    [moved] = m.decoders[1].opened[1].agents
    assert moved.resume_state.pending_call_id.endswith(".1.c1")


async def test_another_build_starts_over_and_says_so() -> None:
    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        return ["a", "b", Hold()] if agent.attempt == 1 else ["c", End("3")]

    async with mesh(script, script, builds=("sha256:one", "sha256:two")) as m:
        call = open_stream(m, agent_count=2)
        await first(call)
        await until(lambda: sum(d.num_sampled for d in m.decoders) == 4)
        await asyncio.sleep(0.05)
        await m.decoders[0].kill()
        await until(lambda: len(m.decoders[1].opened) == 3)
        events = await rest_until(call, lambda e: e.HasField("ballot_cast"))
        call.cancel()
    retracted = [e.text_retracted for e in events if e.HasField("text_retracted")]
    assert [(r.token_offset, r.attempt) for r in retracted] == [(0, 2)]
    assert not m.decoders[1].opened[2].agents[0].HasField("resume_state")


async def rest_until(call: Any, wanted: Any) -> list[pb.ContemplationEvent]:
    events: list[pb.ContemplationEvent] = []
    async with asyncio.timeout(5):
        while not events or not wanted(events[-1]):
            events.append((await call.read()).event)
    return events


async def test_news_of_a_silent_endpoint_moves_its_agents_and_cuts_its_stream() -> None:
    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        stays = agent.agent_id == 0 and agent.attempt == 1
        return ["a", Hold()] if stays else ["a", End("3")]

    async with mesh(script, script) as m:
        call = open_stream(m, agent_count=2)
        id_ = await first(call)
        await until(lambda: sum(d.num_sampled for d in m.decoders) == 2)
        m.router.tell("d0", "EXPIRED", id_)
        events = await rest(call)
        assert m.decoders[0].ended.is_set()
    assert len(events[-1].verdict.certificate.ballots) == 2


async def test_a_full_decoder_is_asked_again_after_a_while() -> None:
    full = decoder_pb.GangRefused(reason="REJECTED", message="full", retry_delay=SOON)
    async with mesh(saying("3")) as m:
        m.decoders[0].refusals = [full]
        asking = asyncio.create_task(m.ask())
        # The router avoids who was full, finds nobody else and denies for a while.
        m.router.denial_delay_s = 0.06
        await until(lambda: m.router.told("replace"))
        m.router.failed.clear()
        events = await asking
    verdict = check_grammar(events).verdict
    assert not verdict.degraded
    assert "agent_lost" not in kinds(events)


async def test_a_refusal_for_good_fails_with_its_own_sentence() -> None:
    async with mesh(saying("3")) as m:
        refused = decoder_pb.GangRefused(reason="INVALID_REQUEST", message="shorten it")
        m.decoders[0].refusals = [refused]
        failed = check_grammar(await m.ask()).failed
    assert (failed.code, failed.reason, failed.message) == (3, "INVALID_REQUEST", "shorten it")


# -- places ------------------------------------------------------------------------------------


async def test_a_fleet_that_is_just_starting_is_waited_for() -> None:
    denied = router_pb.LeaseDenied(reason="NO_ENDPOINT", message="nobody yet", retry_delay=SOON)
    async with mesh(saying("3")) as m:
        m.router.denials = [denied, denied]
        assert check_grammar(await m.ask()).verdict.key == "3"
        assert [d.attempt for d in m.router.told("declare")] == [1, 2, 3]


async def test_patience_ends_and_says_why() -> None:
    denied = router_pb.LeaseDenied(reason="NO_ENDPOINT", message="all are full", retry_delay=SOON)
    async with mesh(saying("3"), place_timeout_s=0.2) as m:
        m.router.denials = [denied] * 10
        failed = check_grammar(await m.ask()).failed
        assert len(m.router.told("declare")) == 4
    assert (failed.code, failed.reason, failed.message) == (14, "NO_ENDPOINT", "all are full")
    assert failed.retryable


async def test_a_wait_for_room_is_told_and_outlives_the_router() -> None:
    async with mesh(saying("3"), place_timeout_s=30.0) as m:
        m.router.queues = True
        call = open_stream(m, agent_count=2)
        await first(call)
        async with asyncio.timeout(5):
            while not (event := (await call.read()).event).HasField("queued"):
                pass
        assert event.queued.ahead_count == 2
        [asked] = m.router.told("declare")
        assert asked.max_wait_duration.seconds == 4  # of ten seconds half are for the answer
        await m.router.kill()
        m.router.queues = False
        await m.router.start()
        assert (await rest(call))[-1].verdict.key == "3"
        assert m.router.told("declare") == [asked, asked]


async def test_what_is_refused_because_of_load_says_when_to_come_back() -> None:
    denied = router_pb.LeaseDenied(reason="REJECTED", message="the wait is long")
    denied.retry_delay.FromSeconds(7)
    denied.waited_duration.FromSeconds(0)
    async with mesh(saying("3")) as m:
        m.router.denials = [denied]
        failed = check_grammar(await m.ask()).failed
        assert len(m.router.told("declare")) == 1
    assert (failed.code, failed.reason, failed.message) == (8, "REJECTED", "the wait is long")
    assert failed.retryable
    assert failed.retry_delay.seconds == 7


async def test_a_refusal_speaks_for_those_like_it_before_they_are_accepted() -> None:
    denied = router_pb.LeaseDenied(reason="REJECTED", message="the wait is long")
    denied.retry_delay.FromSeconds(7)
    denied.waited_duration.FromSeconds(0)
    async with mesh(saying("3"), shed_memory_s=0.5) as m:
        m.router.denials = [denied]
        assert (await m.ask(agent_count=2))[-1].failed.reason == "REJECTED"
        with pytest.raises(grpc.aio.AioRpcError) as shed:
            await m.ask(agent_count=2)
        assert shed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert shed.value.details() == "the wait is long"
        assert len(m.router.told("declare")) == 1
        listed = await m.stub.ListContemplations(pb.ListContemplationsRequest(), timeout=5)
        assert len(listed.contemplations) == 1
        # One that wants less is asked for; and once somebody was let in, all are.
        assert kinds(await m.ask(agent_count=1))[-1] == "verdict"
        assert kinds(await m.ask(agent_count=2))[-1] == "verdict"


async def test_a_tenant_of_whom_one_waits_is_let_in_again() -> None:
    denied = router_pb.LeaseDenied(reason="REJECTED", message="the wait is long")
    denied.retry_delay.FromSeconds(100)
    denied.waited_duration.FromSeconds(0)
    mine = (("x-cogitate-tenant", "mine"),)
    request = pb.ContemplateRequest(spec=spec(agent_count=2))
    fewer = pb.ContemplateRequest(spec=spec(agent_count=1))
    async with mesh(saying("3"), shed_memory_s=8.0) as m:
        m.router.denials = [denied]
        call = m.stub.Contemplate(request, timeout=10, metadata=mine)
        assert (await rest(call))[-1].failed.reason == "REJECTED"
        with pytest.raises(grpc.aio.AioRpcError):
            await m.stub.Contemplate(request, timeout=10, metadata=mine).read()
        assert kinds(await m.ask(agent_count=2))[-1] == "verdict"  # another tenant's
        with pytest.raises(grpc.aio.AioRpcError):
            await m.stub.Contemplate(request, timeout=10, metadata=mine).read()
        m.router.queues = True
        waiting = m.stub.Contemplate(fewer, timeout=10, metadata=mine)
        await rest_until(waiting, lambda event: event.HasField("queued"))
        again = m.stub.Contemplate(request, timeout=10, metadata=mine)
        await rest_until(again, lambda event: event.HasField("queued"))
        waiting.cancel()
        again.cancel()


async def test_a_new_place_for_who_ran_already_lets_nobody_else_in() -> None:
    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        stays = agent.agent_id == 0 and agent.attempt == 1
        return ["a", Hold()] if stays else ["a", End("3")]

    denied = router_pb.LeaseDenied(reason="REJECTED", message="the wait is long")
    denied.retry_delay.FromSeconds(100)
    denied.waited_duration.FromSeconds(0)
    async with mesh(script, script, shed_memory_s=8.0) as m:
        call = open_stream(m, agent_count=2)
        id_ = await first(call)
        await until(lambda: sum(d.num_sampled for d in m.decoders) == 2)
        m.router.denials = [denied]
        assert (await m.ask(agent_count=2))[-1].failed.reason == "REJECTED"
        m.router.tell("d0", "EXPIRED", id_)
        assert (await rest(call))[-1].HasField("verdict")
        assert m.router.told("replace")
        with pytest.raises(grpc.aio.AioRpcError):
            await m.ask(agent_count=2)


async def test_a_router_that_is_down_is_told_fast_and_clearly() -> None:
    async with mesh(saying("3")) as m:
        await m.router.kill()
        began = asyncio.get_running_loop().time()
        failed = check_grammar(await m.ask()).failed
        assert asyncio.get_running_loop().time() - began < 1.0
        assert (failed.code, failed.reason) == (14, "UNAVAILABLE")
        assert f"the router at {m.router.address} is down" in failed.message
        await m.router.start()
        async with asyncio.timeout(8):
            while kinds(await m.ask())[-1] != "verdict":
                await asyncio.sleep(0.1)


async def test_a_new_router_is_told_what_runs() -> None:
    hold = Hold()
    async with mesh(every("a", hold, End("3")), every("a", hold, End("3"))) as m:
        call = open_stream(m, agent_count=2)
        id_ = await first(call)
        await until(lambda: sum(d.num_sampled for d in m.decoders) == 2)
        before = m.router.told("confirm")
        await m.router.kill()
        m.router.commands.clear()
        await m.router.start()
        await until(lambda: m.router.commands)
        assert m.router.told("confirm") == before
        assert before[0].contemplation_id == id_
        hold.open.set()
        assert kinds(await rest(call))[-1] == "verdict"


async def test_the_real_router_books_what_runs_and_nothing_more() -> None:
    hold = Hold()
    script = every("a", "b", hold, "c", End("3"))
    async with AsyncExitStack() as stack:
        config = RouterConfig(report_interval_s=0.05, report_expiry_s=5.0, retry_delay_s=0.05)
        router = await stack.enter_async_context(
            lifecycle.serving(config, build_router, name="router")
        )
        decoders, endpoints = {}, {}
        for name in ("d0", "d1"):
            made = await stack.enter_async_context(FakeDecoder(script, endpoint_id=name))
            capabilities = decoder_pb.Capability.values()
            decoders[name] = made
            endpoints[name] = await stack.enter_async_context(
                FakeEndpoint(name, router.address, address=made.address, capabilities=capabilities)
            )
        tools = await stack.enter_async_context(FakeTools())
        stub, running = await stack.enter_async_context(aggregator(router, tools))
        m = Mesh(stub, list(decoders.values()), router, tools, running.address, None)  # type: ignore[arg-type]
        desk = router.service.runtime.desk
        call = open_stream(m, agent_count=4)
        id_ = await first(call)
        await until(lambda: sum(d.num_sampled for d in m.decoders) == 8)
        lease = desk.leases.leases[id_]
        assert {b.endpoint_id: b.agents for b in lease.bookings.values()} == {"d0": 2, "d1": 2}
        assert all(b.confirmed_at_s is not None for b in lease.bookings.values())
        await decoders["d0"].kill()
        await endpoints["d0"].kill()
        await until(lambda: len(decoders["d1"].opened) == 2)
        await until(lambda: sum(b.agents for b in lease.bookings.values()) == 4)
        assert {b.endpoint_id for b in lease.bookings.values()} == {"d1"}
        hold.open.set()
        events = await rest(call)
        assert check_tokens(events) == {0: 3, 1: 3, 2: 3, 3: 3}
        assert not events[-1].verdict.degraded
        await until(lambda: not desk.leases.leases)


async def test_a_placement_that_comes_after_the_cancel_is_given_back() -> None:
    async with mesh(saying("3")) as m:
        m.router.delay_s = 0.2
        call = open_stream(m)
        id_ = await first(call)
        await until(lambda: m.router.told("declare"))
        await m.cancel(id_)
        assert check_grammar([*await m.attach(id_, 0)]).cancelled.reason == "REQUESTED"
        async with asyncio.timeout(2):
            await m.router.released.wait()
        assert not m.decoders[0].opened
        assert not m.runtime._runners


# -- limits ------------------------------------------------------------------------------------


async def test_the_deadline_gives_what_exists() -> None:
    script = one(0, ["b", End("3")], ["a", Hold()])
    async with mesh(script) as m:
        request = pb.ContemplateRequest(spec=spec())
        began = asyncio.get_running_loop().time()
        events = [r.event async for r in m.stub.Contemplate(request, timeout=0.6)]
        assert asyncio.get_running_loop().time() - began < 0.6
    verdict = check_grammar(events).verdict
    assert (verdict.key, list(verdict.degraded_reasons)) == ("3", ["DEADLINE"])
    assert [k.reason for k in verdict.certificate.killed_agents] == ["DEADLINE", "DEADLINE"]


async def test_the_deadline_does_not_wait_for_a_deaf_decoder() -> None:
    async with mesh(one(0, ["b", End("3")], ["a", Hold()])) as m:
        m.decoders[0].deaf = True
        request = pb.ContemplateRequest(spec=spec())
        events = [r.event async for r in m.stub.Contemplate(request, timeout=0.8)]
    assert check_grammar(events).verdict.key == "3"


async def test_a_deadline_without_a_ballot_fails() -> None:
    async with mesh(every("a", Hold()), max_duration_s=0.2) as m:
        failed = check_grammar(await m.ask()).failed
    assert (failed.code, failed.reason) == (4, "DEADLINE_EXCEEDED")


async def test_a_decoder_that_does_not_acknowledge_kills_is_not_waited_for_long() -> None:
    script = one(2, ["a", Hold()], ["b", End("3")])
    async with mesh(script, kill_ack_timeout_s=0.1) as m:
        m.decoders[0].deaf = True
        verdict = check_grammar(await m.ask(quorum="unbeatable")).verdict
        async with asyncio.timeout(1):
            await m.runtime.wait_idle()
    assert verdict.key == "3"
    assert verdict.certificate.ledger.killed_token_count == 1


async def test_a_budget_is_never_exceeded() -> None:
    endless = every(*["x"] * 1000)
    async with mesh(endless, endless) as m:
        failed = check_grammar(await m.ask(budget=common.Budget(max_tokens=50))).failed
        assert sum(d.num_sampled for d in m.decoders) == 50
    assert (failed.code, failed.reason) == (8, "BUDGET_EXCEEDED")
    assert failed.ledger.generated_token_count == 50


async def test_what_agents_leave_of_the_budget_goes_to_others() -> None:
    script = one(0, [*["x"] * 30, End("3")], ["x", "x", End("3")])
    async with mesh(script) as m:
        verdict = check_grammar(await m.ask(budget=common.Budget(max_tokens=40))).verdict
    assert not verdict.degraded
    assert verdict.certificate.ledger.generated_token_count == 34


async def test_a_prompt_has_one_name_for_its_tenant() -> None:
    async with mesh(saying("3")) as m:
        for agent_count in (2, 3):
            await m.ask(agent_count=agent_count, strategy="refine")
        await m.ask(agent_count=2, strategy="vote", effort=common.EFFORT_CONTEMPLATING)
        metadata = (("x-cogitate-tenant", "stranger"),)
        request = pb.ContemplateRequest(spec=spec(agent_count=2, strategy="vote"))
        async for _ in m.stub.Contemplate(request, timeout=10, metadata=metadata):
            pass
        asked = [getattr(c, c.WhichOneof("command")) for c in m.router.commands]
        declared = [
            gang.prefix_digest
            for each in asked
            if isinstance(each, router_pb.DeclareGangs | router_pb.ReplaceAgents)
            for gang in each.gangs
        ]
        opened = [opening.prefix_digest for opening in m.decoders[0].opened]
    assert opened == declared
    first, first_again, voted, strangers = declared[0], declared[2], declared[4], declared[5]
    assert first == first_again == voted != declared[1]
    assert strangers not in declared[:5]
    assert all(digest.startswith("sha256:") for digest in declared)


async def test_calls_carry_the_tenant_and_the_deadline_of_the_contemplation() -> None:
    async with mesh(every(Call("zoom"), End("3")), kill_ack_timeout_s=0.5) as m:
        call = m.stub.Contemplate(
            pb.ContemplateRequest(spec=spec(agent_count=1)),
            timeout=5,
            metadata=(("x-cogitate-tenant", "t1"),),
        )
        await rest(call)
        assert m.decoders[0].opened[0].tenant == "t1"
        assert m.tools.tenants == ["t1"]
        assert m.router.told("declare")[0].tenant == "t1"
        [deadline_s] = m.decoders[0].deadlines_s
    assert deadline_s is not None
    assert 3 < deadline_s < 7  # that of the call, and the time kills may take


async def test_one_that_goes_on_outlives_the_deadline_of_its_call() -> None:
    hold = Hold()
    async with mesh(every("a", hold, End("3"))) as m:
        request = pb.ContemplateRequest(
            spec=spec(agent_count=1, on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        )
        call = m.stub.Contemplate(request, timeout=0.3)
        id_ = await first(call)
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await rest(call)
        hold.open.set()
        assert check_grammar(await m.attach(id_, 0)).verdict.key == "3"


# -- the life of the process -------------------------------------------------------------------


async def test_a_restart_goes_on_with_what_ran(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal.db")
    async with mesh(every("a", Hold(), "b", End("3")), journal=journal) as m:
        call = open_stream(m, on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        id_ = await first(call)
        before = await rest_until(call, lambda e: e.HasField("deltas"))
        m.runtime.journal.append = _dies  # what a killed process leaves behind
        call.cancel()
    async with mesh(saying("3", tokens=2), journal=journal) as m:
        await until(lambda: id_ in m.runtime._logs)
        events = await m.attach(id_, 0)
        assert check_grammar(events).verdict.key == "3"
        assert check_tokens(events) == {0: 2, 1: 2, 2: 2}
        assert events[1 : 1 + len(before)] == before
        resumed = m.decoders[0].opened[0]
        assert resumed.owner_epoch == 2
        assert {agent.attempt for agent in resumed.agents} == {2}
        assert {agent.resume_state.sampled_token_count for agent in resumed.agents} == {1}
    async with mesh(saying("3"), journal=journal) as m:
        assert await m.attach(id_, 0) == events
        summary = (await m.get(id_)).summary
        assert summary.state == pb.ContemplationSummary.STATE_COMPLETED
        assert summary.last_event_number == len(events)


async def test_what_cannot_be_continued_fails_once(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal.db")
    async with mesh(every("a", Hold()), journal=journal) as m:
        call = open_stream(m, on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        id_ = await first(call)
        await rest_until(call, lambda e: e.HasField("deltas"))
        m.runtime.journal.append = _dies
        call.cancel()
    with closing(sqlite3.connect(journal)) as db, db:
        db.execute("DELETE FROM inputs WHERE sequence=2")
    for _ in range(2):
        async with mesh(saying("3"), journal=journal) as m:
            await ended(m, id_)
            events = await m.attach(id_, 0)
            assert check_grammar(events).failed.reason == "UNAVAILABLE"
            assert (await m.get(id_)).summary.state == pb.ContemplationSummary.STATE_FAILED


async def ended(m: Mesh, id_: str) -> None:
    """Waits until the journal has the ending."""
    async with asyncio.timeout(5):
        while not (await m.get(id_)).HasField("ending"):
            await asyncio.sleep(0.01)


def _dies(rows: object) -> None:
    raise RuntimeError("the process is dead")


async def test_a_shutdown_ends_what_runs_while_clients_listen() -> None:
    script = one(0, ["b", End("3")], ["a", Hold()])
    async with mesh(script, drain_grace_s=2.0, kill_ack_timeout_s=0.2) as m:
        call = open_stream(m)
        await first(call)
        await until(lambda: m.decoders[0].num_sampled == 3)
        reading = asyncio.create_task(rest(call))
        await asyncio.sleep(0.05)
        m.runtime.shut_down()
        verdict = (await reading)[-1].verdict
    assert (verdict.key, list(verdict.degraded_reasons)) == ("3", ["AGENTS_LOST"])


async def test_a_client_that_leaves_while_it_is_accepted_leaves_nothing_half_done() -> None:
    async with mesh(every("a", Hold())) as m:
        works = m.runtime.journal.accept

        async def slowly(record: Record) -> None:
            await asyncio.sleep(0.2)
            await works(record)

        m.runtime.journal.accept = slowly
        call = open_stream(m, request_id="r1")
        await until(lambda: m.runtime._runners)
        call.cancel()
        async with asyncio.timeout(5):
            await m.runtime.wait_idle()
        listed = await m.stub.ListContemplations(pb.ListContemplationsRequest(), timeout=5)
        [summary] = listed.contemplations
        assert summary.state == pb.ContemplationSummary.STATE_CANCELLED


async def test_a_full_disk_refuses_and_leaves_nothing_behind() -> None:
    def full(record: object) -> None:
        raise JournalError("database or disk is full")

    async with mesh(saying("3")) as m:
        works, m.runtime.journal.accept = m.runtime.journal.accept, full
        code, details = await status_of(open_stream(m, request_id="r1"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details == "the journal cannot be written just now; try again"
        await m.runtime.wait_idle()
        m.runtime.journal.accept = works
        assert kinds(await m.ask(request_id="r1"))[-1] == "verdict"


async def test_a_failing_journal_lets_old_ones_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal.db")
    hold = Hold()
    async with mesh(every("a", hold, "b", End("3")), journal=journal) as m:
        call = open_stream(m)
        id_ = await first(call)
        await until(lambda: m.decoders[0].num_sampled == 3)
        works = m.runtime.journal.append
        m.runtime.journal.append = _dies
        hold.open.set()
        events = await rest(call)
        assert kinds(events)[-1] == "verdict"
        code, _ = await status_of(open_stream(m))
        assert code is grpc.StatusCode.UNAVAILABLE
        m.runtime.journal.append = works
        await until(lambda: not m.runtime._writer.failing)
        assert kinds(await m.ask())[-1] == "verdict"
    async with mesh(saying("3"), journal=journal) as m:
        assert (await m.attach(id_, 0))[1:] == events
