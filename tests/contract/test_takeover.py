"""Two aggregators on one journal behind a gateway: one dies, the client's stream goes on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.aggregator.journal import JournalError
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.server import Gateway
from cogitate.kit.channels import from_rpc_error, open_channel
from cogitate.kit.errors import NotOwner
from cogitate.kit.lifecycle import Running, serving
from cogitate.kit.telemetry import Attr, Span
from cogitate.kit.trace_store import TraceStore
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.contract.test_aggregator import (
    Call,
    End,
    FakeDecoder,
    FakeRouter,
    FakeTools,
    Hold,
    Script,
    aggregator,
    check_grammar,
    check_tokens,
    every,
    first,
    kinds,
    rest,
    saying,
    spec,
    text,
    until,
)
from tests.fakes.nats_server import nats_server

pytestmark = pytest.mark.contract

QUICK = {"takeover_interval_s": 0.01, "owner_timeout_s": 1.0, "heartbeat_interval_s": 0.05}


@dataclass
class Twins:
    """Two aggregators and the gateway before them."""

    aggregators: list[Running]
    gateway: Any
    decoders: list[FakeDecoder]
    tools: FakeTools
    router: FakeRouter

    def owner_of(self, id_: str) -> Running:
        [found] = [a for a in self.aggregators if runtime(a).runner_of(id_) is not None]
        return found

    def other(self, than: Running) -> Running:
        return self.aggregators[self.aggregators.index(than) - 1]


def runtime(running: Running) -> Any:
    return running.service._runtime  # type: ignore[attr-defined]


@asynccontextmanager
async def twins(journal: Path | str, *scripts: Script, **knobs: Any) -> AsyncIterator[Twins]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        decoders = [
            await enter(FakeDecoder(script, endpoint_id=f"d{number}"))
            for number, script in enumerate(scripts)
        ]
        router = await enter(FakeRouter({d.endpoint_id: d.address for d in decoders}))
        tools = await enter(FakeTools({"zoom": text("a crop")}, delay_s=0.02))
        made = [
            (await enter(aggregator(router, tools, journal=str(journal), **QUICK, **knobs)))[1]
            for _ in range(2)
        ]

        async def build(config: GatewayConfig, server: grpc.aio.Server) -> Gateway:
            return Gateway(config, server)

        config = replace(
            GatewayConfig(),
            listen="127.0.0.1:0",
            drain_grace_s=0.1,
            aggregator_address=", ".join(a.address for a in made),
            failover_timeout_s=5.0,
        )
        gateway = await enter(serving(config, build))
        channel = await enter(open_channel(gateway.address))
        yield Twins(made, ContemplationServiceStub(channel), decoders, tools, router)


async def crash(running: Running) -> None:
    """As far as others can see, the process is killed: nothing is written or said any more."""
    dead = runtime(running)

    async def nothing(rows: object) -> frozenset[str]:
        raise JournalError("this process is dead")

    dead.journal.append = nothing
    with suppress(AttributeError):  # where it is not asked of the server
        dead.journal.shared = True
    for runner in list(dead._runners.values()):
        runner.fence()
    await running.server.stop(None)
    dead._ownership.stopped = True
    if (lock := getattr(dead.journal, "_lock_file", None)) is not None:
        lock.close()  # as the kernel does
    dead.journal.beat = no_beat


async def no_beat() -> None: ...


WORK = every("a ", "b ", Call("zoom"), *(f"w{i} " for i in range(30)), End("3"))


@pytest.mark.parametrize("after", [1, 2, 4, 5, 7, 9, 12, 15])
async def test_the_clients_stream_goes_on_at_the_heir(tmp_path: Path, after: int) -> None:
    """Invariants 1, 2 and 3, with a death after so many events."""
    await dies_and_goes_on(tmp_path / "journal.db", after)


@pytest.mark.parametrize("after", [2, 9])
async def test_a_journal_in_nats_does_as_well(tmp_path: Path, after: int) -> None:
    pytest.importorskip("nats", reason="no nats-py")
    with nats_server(tmp_path) as url:
        await dies_and_goes_on(url, after)


async def dies_and_goes_on(journal: Path | str, after: int) -> None:
    async with twins(journal, WORK, WORK) as m:
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=spec(agent_count=4)), timeout=20)
        events = [(await call.read()).event]
        id_ = events[0].accepted.contemplation_id
        while len(events) < after:
            events.append((await call.read()).event)
        owner = m.owner_of(id_)
        await crash(owner)
        events += await rest(call)
        assert check_grammar(events).verdict.key == "3"
        assert not events[-1].verdict.degraded
        assert check_tokens(events) == dict.fromkeys(range(4), 32)
        lost = [e.agent_lost for e in events if e.HasField("agent_lost")]
        assert {e.reason for e in lost} <= {"OWNER_LOST"}
        epochs = [gang.owner_epoch for d in m.decoders for gang in d.opened]
        assert max(epochs) == 2
        heir = m.other(owner)
        attached = await rest(
            ContemplationServiceStub(channel := open_channel(heir.address)).Attach(
                pb.AttachRequest(contemplation_id=id_), timeout=5
            )
        )
        await channel.close()
        assert attached == events


async def test_the_heirs_span_is_the_gateways_child_as_the_owners_was(tmp_path: Path) -> None:
    """What the owner had not sent yet dies with it; the heir's must not hang on that."""
    store = tmp_path / "traces.sqlite"
    async with twins(tmp_path / "journal.db", WORK, trace_store=str(store)) as m:
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=spec(agent_count=2)), timeout=20)
        id_ = await first(call)
        await crash(m.owner_of(id_))
        await until(lambda: any(runtime(a).runner_of(id_) for a in m.aggregators))
        await rest(call)
    spans = TraceStore(store).spans(TraceStore(store).find(id_) or "")
    by_id = {span.span_id: span for span in spans}
    owners, heirs = (s for s in spans if s.name == Span.CONTEMPLATION)
    assert heirs.attributes[Attr.ATTEMPT] == 2
    served = by_id[owners.parent_id]  # by the owner
    assert served.name == "ContemplationService/Contemplate"
    assert heirs.parent_id == served.parent_id
    assert by_id[served.parent_id].name == "ContemplationService/Contemplate"  # the gateway's


async def test_deaths_can_follow_each_other(tmp_path: Path) -> None:
    journal, hold = tmp_path / "journal.db", Hold()
    script = every("a ", "b ", hold, "c ", End("3"))
    question = spec(agent_count=2, on_disconnect=pb.ON_DISCONNECT_CONTINUE)
    async with twins(journal, script) as m:
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=question), timeout=20)
        id_ = await first(call)
        for _ in range(2):
            await until(lambda: any(runtime(a).runner_of(id_) for a in m.aggregators))
            await crash(m.owner_of(id_))
        call.cancel()
    async with twins(journal, saying("3", tokens=3)) as m:
        await until(lambda: any(runtime(a).runner_of(id_) for a in m.aggregators))
        attached = m.gateway.Attach(pb.AttachRequest(contemplation_id=id_), timeout=10)
        events = await rest(attached)
        assert check_grammar(events).verdict.key == "3"
        assert check_tokens(events) == {0: 3, 1: 3}
        assert m.decoders[0].opened[0].owner_epoch == 3


async def test_who_does_not_own_it_says_who_does_and_the_gateway_goes_there(
    tmp_path: Path,
) -> None:
    hold = Hold()
    async with twins(tmp_path / "journal.db", every("a", hold, End("3"))) as m:
        question = spec(request_id=str(uuid.uuid4()))
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=question), timeout=10)
        id_ = await first(call)
        owner = m.owner_of(id_)
        async with open_channel(m.other(owner).address) as channel:
            stub = ContemplationServiceStub(channel)
            wrong = stub.Attach(pb.AttachRequest(contemplation_id=id_), timeout=5)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await wrong.read()
        error = from_rpc_error(caught.value)
        assert isinstance(error, NotOwner)
        assert error.metadata["owner"] == owner.address
        for _ in range(2):  # whichever the gateway begins with
            again = m.gateway.Contemplate(pb.ContemplateRequest(spec=question), timeout=10)
            assert await first(again) == id_
            again.cancel()
            got = await m.gateway.GetContemplation(
                pb.GetContemplationRequest(contemplation_id=id_), timeout=5
            )
            assert got.summary.state == pb.ContemplationSummary.STATE_RUNNING
        await m.gateway.CancelContemplation(
            pb.CancelContemplationRequest(contemplation_id=id_), timeout=5
        )
        assert kinds(await rest(call))[-1] == "cancelled"


async def test_a_hung_owner_is_fenced_and_the_client_does_not_notice(tmp_path: Path) -> None:
    hold = Hold()
    async with twins(tmp_path / "journal.db", every("a ", "b ", hold, "c ", End("3"))) as m:
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=spec(agent_count=2)), timeout=20)
        events = [(await call.read()).event]
        id_ = events[0].accepted.contemplation_id
        owner = m.owner_of(id_)
        heir = m.other(owner)
        runtime(owner).journal.beat = no_beat
        await until(lambda: runtime(heir).runner_of(id_) is not None)
        # Both think that they own it; only the heir's words count.
        hold.open.set()
        events += await rest(call)
        assert check_grammar(events).verdict.key == "3"
        assert check_tokens(events) == {0: 3, 1: 3}
        await until(lambda: not runtime(owner)._runners)


async def test_a_client_that_does_not_come_back_is_not_worked_for(tmp_path: Path) -> None:
    async with twins(tmp_path / "journal.db", every("a", Hold()), reattach_timeout_s=0.2) as m:
        owner = None
        async with open_channel(m.aggregators[0].address) as channel:
            stub = ContemplationServiceStub(channel)
            call = stub.Contemplate(pb.ContemplateRequest(spec=spec()), timeout=10)
            id_ = await first(call)
            owner = m.owner_of(id_)
            await crash(owner)
            call.cancel()
        heir = m.other(owner)
        await until(lambda: runtime(heir).runner_of(id_) is not None)
        async with asyncio.timeout(3):
            await runtime(heir).wait_idle()
        attach = m.gateway.Attach(pb.AttachRequest(contemplation_id=id_), timeout=5)
        assert (await rest(attach))[-1].cancelled.reason == "DISCONNECTED"


async def test_a_client_that_leaves_after_a_takeover_stops_its_agents(tmp_path: Path) -> None:
    async with twins(tmp_path / "journal.db", every("a", Hold())) as m:
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=spec()), timeout=10)
        id_ = await first(call)
        owner = m.owner_of(id_)
        heir = m.other(owner)
        await crash(owner)
        await until(lambda: (r := runtime(heir).runner_of(id_)) and r._num_listeners)
        call.cancel()
        async with asyncio.timeout(3):
            await runtime(heir).wait_idle()


async def test_without_the_first_event_in_the_filter_a_takeover_works_too(tmp_path: Path) -> None:
    hold = Hold()
    async with twins(tmp_path / "journal.db", every("a ", hold, "b ", End("3"))) as m:
        request = pb.ContemplateRequest(
            spec=spec(), filter=pb.EventFilter(excluded_events=["accepted", "deltas"])
        )
        call = m.gateway.Contemplate(request, timeout=10)
        events = [(await call.read()).event]
        assert kinds(events) != ["accepted"]
        [owner] = [a for a in m.aggregators if runtime(a)._runners]
        await crash(owner)
        hold.open.set()
        events += await rest(call)
        assert kinds(events)[-1] == "verdict"
        assert not {"accepted", "deltas"} & set(kinds(events))
        numbers = [event.event_number for event in events]
        assert numbers == sorted(set(numbers))


async def test_without_an_heir_the_client_is_told_in_time(tmp_path: Path) -> None:
    async with twins(tmp_path / "journal.db", every("a", Hold())) as m:
        call = m.gateway.Contemplate(pb.ContemplateRequest(spec=spec()), timeout=20)
        await first(call)
        for running in m.aggregators:
            await crash(running)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the aggregator does not answer" in (caught.value.details() or "")
