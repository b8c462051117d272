"""RouterService over real sockets, with scripted endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from cogitate.kit import lifecycle
from cogitate.kit.channels import from_rpc_error, open_channel
from cogitate.router.config import RouterConfig
from cogitate.router.server import build
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb2
from cogitate.v1 import router_service_pb2 as router_pb2
from cogitate.v1 import router_service_pb2_grpc as router_grpc
from google.protobuf.duration_pb2 import Duration

from tests.fakes.endpoint import FakeEndpoint

pytestmark = pytest.mark.contract

EXPIRY_S = 0.4


@asynccontextmanager
async def router(**knobs: object) -> AsyncIterator[str]:
    """Runs a router and yields its address."""
    config = RouterConfig(
        **{  # type: ignore[arg-type]
            "report_interval_s": 0.05,
            "report_expiry_s": EXPIRY_S,
            "drain_grace_s": 2.0,
            "vision_encoder_address": "127.0.0.1:2",
            **knobs,
        }
    )
    async with lifecycle.serving(config, build, name="router") as running:
        yield running.address


class LeaseStream:
    """An aggregator's side of a lease stream."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> LeaseStream:
        self._channel = open_channel(self._address)
        self._call = router_grpc.RouterServiceStub(self._channel).Lease()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def send(self, **command: object) -> None:
        await self._call.write(router_pb2.LeaseRequest(**command))  # type: ignore[arg-type]

    async def read(self) -> router_pb2.LeaseResponse:
        async with asyncio.timeout(5):
            response = await self._call.read()
        if response is grpc.aio.EOF:
            code = await self._call.code()
            raise AssertionError(f"the stream ended: {code}")
        return response

    async def end(self) -> None:
        await self._call.done_writing()
        async with asyncio.timeout(5):
            assert await self._call.read() is grpc.aio.EOF

    async def error(self) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                async with asyncio.timeout(5):
                    assert await self._call.read() is not grpc.aio.EOF
        return caught.value


def declare(contemplation_id: str = "c1", agents: int = 4, **fields: object):
    """Returns a declaration of one gang."""
    gang = router_pb2.GangSpec(
        model="mini", role="solver", agent_ids=range(agents), tokens_per_agent=64
    )
    return router_pb2.DeclareGangs(
        **{  # type: ignore[arg-type]
            "contemplation_id": contemplation_id,
            "attempt": 1,
            "gangs": [gang],
            **fields,
        }
    )


async def fleet_of(address: str) -> router_pb2.GetFleetResponse:
    async with open_channel(address) as channel:
        stub = router_grpc.RouterServiceStub(channel)
        return await stub.GetFleet(router_pb2.GetFleetRequest(), timeout=5)


async def until_fleet(address: str, condition) -> router_pb2.GetFleetResponse:
    """Asks until the fleet is as wanted; the caller's pytest timeout bounds it."""
    while True:
        fleet = await fleet_of(address)
        if condition(fleet):
            return fleet
        await asyncio.sleep(0.01)


async def test_a_gang_is_placed_with_its_reasons_and_the_vision_encoder() -> None:
    async with router() as address, FakeEndpoint("a", address), FakeEndpoint("b", address):
        async with LeaseStream(address) as lease:
            constraints = router_pb2.PlacementConstraints(min_failure_domain_count=2)
            await lease.send(declare=declare(agents=5, constraints=constraints))
            granted = (await lease.read()).granted
    assert granted.contemplation_id == "c1"
    assert granted.attempt == 1
    assert granted.policy == "gang"
    assert granted.vision_encoder_address == "127.0.0.1:2"
    assert {gang.endpoint_id for gang in granted.gangs} == {"a", "b"}
    assert sorted(a for gang in granted.gangs for a in gang.agent_ids) == [0, 1, 2, 3, 4]
    assert len({gang.gang_id for gang in granted.gangs}) == 2
    for gang in granted.gangs:
        assert gang.address == "127.0.0.1:1"
        assert gang.provider == f"provider-{gang.endpoint_id}"
        assert (gang.model, gang.role) == ("mini", "solver")
        assert "of 5 agents" in gang.reason
        assert gang.predicted_duration.ToTimedelta().total_seconds() > 0


def wait(seconds: float) -> Duration:
    return Duration(nanos=round(seconds * 1e9) % 10**9, seconds=int(seconds))


async def test_a_declaration_waits_for_room_and_is_served_when_there_is() -> None:
    async with router() as address, FakeEndpoint("a", address, max_sequence_count=8):
        async with LeaseStream(address) as lease:
            await lease.send(declare=declare("busy", 8))
            assert (await lease.read()).granted.contemplation_id == "busy"
            await lease.send(declare=declare("next", 8, max_wait_duration=wait(20)))
            queued = (await lease.read()).queued
            assert (queued.contemplation_id, queued.attempt, queued.ahead_count) == ("next", 1, 0)
            assert not queued.HasField("expected_duration")
            assert (await fleet_of(address)).queued_count == 1
            await lease.send(release=router_pb2.ReleaseLease(contemplation_id="busy"))
            assert (await lease.read()).granted.contemplation_id == "next"
            assert (await fleet_of(address)).queued_count == 0


async def test_a_wait_ends_with_its_reason_its_length_and_when_to_ask_again() -> None:
    async with router() as address, FakeEndpoint("a", address, max_sequence_count=8):
        async with LeaseStream(address) as lease:
            await lease.send(declare=declare("busy", 8))
            await lease.read()
            await lease.send(declare=declare("next", 8, max_wait_duration=wait(0.1)))
            assert (await lease.read()).HasField("queued")
            denied = (await lease.read()).denied
    assert (denied.contemplation_id, denied.reason) == ("next", "EVICTED")
    assert "room for 0 of 8 agents" in denied.message
    assert denied.waited_duration.ToMilliseconds() >= 100
    assert denied.HasField("retry_delay")


async def test_who_leaves_the_queue_is_not_served() -> None:
    async with router() as address, FakeEndpoint("a", address, max_sequence_count=8):
        async with LeaseStream(address) as lease, LeaseStream(address) as other:
            await lease.send(declare=declare("busy", 8))
            await lease.read()
            for stream, name in ((lease, "leaves"), (other, "goes"), (lease, "stays")):
                await stream.send(declare=declare(name, 8, max_wait_duration=wait(20)))
                assert (await stream.read()).HasField("queued")
            await lease.send(release=router_pb2.ReleaseLease(contemplation_id="leaves"))
            await other.end()
            await until_fleet(address, lambda fleet: fleet.queued_count == 1)
            await lease.send(release=router_pb2.ReleaseLease(contemplation_id="busy"))
            assert (await lease.read()).granted.contemplation_id == "stays"


async def test_a_full_queue_refuses_at_once() -> None:
    async with router(max_queue_count=1) as address:
        async with FakeEndpoint("a", address, max_sequence_count=8), LeaseStream(address) as lease:
            for name, kind in (("busy", "granted"), ("waits", "queued"), ("late", "denied")):
                asked = declare(name, 8, tenant="t", max_wait_duration=wait(20))
                await lease.send(declare=asked)
                answer = await lease.read()
                assert answer.WhichOneof("event") == kind
    assert (answer.denied.reason, answer.denied.waited_duration.seconds) == ("REJECTED", 0)
    assert answer.denied.HasField("waited_duration")
    assert answer.denied.HasField("retry_delay")


async def test_an_unused_endpoint_has_a_reason() -> None:
    async with router() as address, FakeEndpoint("a", address):
        async with FakeEndpoint("text", address, models=["other"]), LeaseStream(address) as lease:
            await lease.send(declare=declare(agents=1))
            granted = (await lease.read()).granted
    assert [gang.endpoint_id for gang in granted.gangs] == ["a"]
    assert [(r.endpoint_id, r.reason) for r in granted.rejected] == [
        ("text", "it does not serve the model mini")
    ]


async def test_an_empty_fleet_denies_with_a_delay() -> None:
    async with router(retry_delay_s=0.25) as address, LeaseStream(address) as lease:
        await lease.send(declare=declare())
        denied = (await lease.read()).denied
    assert (denied.contemplation_id, denied.attempt) == ("c1", 1)
    assert denied.reason == "NO_ENDPOINT"
    assert denied.retry_delay == Duration(nanos=250_000_000)


async def test_an_unknown_model_is_denied_for_good_and_the_known_ones_named() -> None:
    async with router() as address, FakeEndpoint("a", address, models=["x", "y"]):
        async with LeaseStream(address) as lease:
            await lease.send(declare=declare())
            denied = (await lease.read()).denied
    assert denied.reason == "UNKNOWN_MODEL"
    assert denied.message.endswith("there is: x, y")
    assert not denied.HasField("retry_delay")


async def test_many_leases_share_a_stream_and_end_with_it() -> None:
    async with router() as address, FakeEndpoint("a", address):
        async with LeaseStream(address) as lease:
            for n in range(3):
                await lease.send(declare=declare(f"c{n}", agents=2))
            answers = [await lease.read() for _ in range(3)]
            assert [a.granted.contemplation_id for a in answers] == ["c0", "c1", "c2"]
            fleet = await fleet_of(address)
            assert fleet.lease_count == 3
            assert fleet.endpoints[0].booked_agent_count == 6
            await lease.send(release=router_pb2.ReleaseLease(contemplation_id="c1"))
            await until_fleet(address, lambda f: f.lease_count == 2)
        fleet = await until_fleet(address, lambda f: f.lease_count == 0)
        assert fleet.endpoints[0].booked_agent_count == 0


async def test_answers_are_sent_before_a_half_closed_stream_ends() -> None:
    async with router() as address, FakeEndpoint("a", address), LeaseStream(address) as lease:
        await lease.send(declare=declare())
        assert (await lease.read()).HasField("granted")
        await lease.end()
        await until_fleet(address, lambda f: f.lease_count == 0)


async def test_a_malformed_command_is_denied_and_its_neighbours_go_on() -> None:
    async with router() as address, FakeEndpoint("a", address), LeaseStream(address) as lease:
        await lease.send(declare=declare("good"))
        assert (await lease.read()).HasField("granted")
        await lease.send(declare=declare("bad", gangs=[]))
        denied = (await lease.read()).denied
        assert (denied.contemplation_id, denied.reason) == ("bad", "INVALID_REQUEST")
        assert denied.message == "gangs are missing or too many"
        [wrong] = declare().gangs
        wrong.prefilled_endpoint_id = "no such/id"
        await lease.send(declare=declare("worse", gangs=[wrong]))
        assert (await lease.read()).denied.message == "prefilled_endpoint_id is malformed"
        assert (await fleet_of(address)).lease_count == 1


async def test_a_killed_endpoint_is_news_at_once_and_its_agents_get_new_places() -> None:
    async with router() as address, FakeEndpoint("b", address), LeaseStream(address) as lease:
        async with FakeEndpoint("a", address) as endpoint:
            excluded = router_pb2.PlacementConstraints(excluded_endpoint_ids=["b"])
            await lease.send(declare=declare(agents=2, constraints=excluded))
            granted = (await lease.read()).granted
            await lease.send(
                confirm=router_pb2.ConfirmPlacement(
                    contemplation_id="c1", attempt=1, gangs=granted.gangs
                )
            )
            started = asyncio.get_running_loop().time()
            await endpoint.kill()
            news = (await lease.read()).news
            assert asyncio.get_running_loop().time() - started < EXPIRY_S
            assert (news.endpoint_id, news.state) == ("a", "GONE")
            assert list(news.contemplation_ids) == ["c1"]
        await lease.send(declare=declare(agents=2, attempt=2))
        granted = (await lease.read()).granted
        assert [gang.endpoint_id for gang in granted.gangs] == ["b"]


async def test_a_silent_endpoint_expires_within_the_knob_and_comes_back() -> None:
    async with router() as address, FakeEndpoint("a", address) as endpoint:
        async with LeaseStream(address) as lease:
            await lease.send(declare=declare())
            await lease.read()
            started = asyncio.get_running_loop().time()
            endpoint.freeze()
            news = (await lease.read()).news
            assert asyncio.get_running_loop().time() - started < 2 * EXPIRY_S
            assert (news.state, list(news.contemplation_ids)) == ("EXPIRED", ["c1"])
            assert (await fleet_of(address)).endpoints[0].state == "STALE"
            await lease.send(declare=declare("c2"))
            denied = (await lease.read()).denied
            assert denied.rejected[0].reason == "its reports stopped"
            assert denied.HasField("retry_delay")
            endpoint.thaw()
            assert (await lease.read()).news.state == "BACK"


async def test_a_drain_notice_reaches_the_holders_and_stops_new_gangs() -> None:
    async with router() as address, FakeEndpoint("a", address) as endpoint:
        async with LeaseStream(address) as lease:
            await lease.send(declare=declare())
            await lease.read()
            notice = router_pb2.DrainNotice(
                remaining_duration=Duration(seconds=7), reason="PREEMPTION"
            )
            await endpoint.send(drain=notice)
            news = (await lease.read()).news
            assert (news.state, news.remaining_duration.seconds) == ("DRAINING", 7)
            await lease.send(declare=declare("c2"))
            assert (await lease.read()).denied.rejected[0].reason == "it is draining"


async def test_a_process_that_failed_is_avoided_and_its_successor_is_not() -> None:
    async with router() as address, LeaseStream(address) as lease:
        failure = router_pb2.EndpointFailure(endpoint_id="a", reason="UNAVAILABLE")
        replace = router_pb2.ReplaceAgents(
            contemplation_id="c1", attempt=2, gangs=declare().gangs, failures=[failure]
        )
        async with FakeEndpoint("a", address) as endpoint:
            await lease.send(declare=declare())
            await lease.read()
            await lease.send(replace=replace)
            denied = (await lease.read()).denied
            assert denied.rejected[0].reason == "it failed this contemplation"
            assert denied.HasField("retry_delay")
            await endpoint.kill()
        async with FakeEndpoint("a", address):
            replace.ClearField("failures")
            replace.attempt = 3
            await lease.send(replace=replace)
            answer = await lease.read()
            while answer.HasField("news"):
                answer = await lease.read()
            assert [gang.endpoint_id for gang in answer.granted.gangs] == ["a"]


async def test_bookings_of_another_router_are_taken_over_by_confirmation() -> None:
    async with router() as address, FakeEndpoint("a", address), LeaseStream(address) as lease:
        placed = router_pb2.PlacedGang(gang_id="7", endpoint_id="a", agent_ids=[0, 1, 2])
        confirm = router_pb2.ConfirmPlacement(contemplation_id="c9", attempt=4, gangs=[placed])
        await lease.send(confirm=confirm)
        fleet = await until_fleet(address, lambda f: f.lease_count == 1)
        assert fleet.endpoints[0].booked_agent_count == 3


async def test_absurd_loads_are_unknown_and_never_win() -> None:
    async with router() as address, FakeEndpoint("good", address):
        async with FakeEndpoint("bad", address) as bad, LeaseStream(address) as lease:
            await until_fleet(address, lambda f: all(e.HasField("load") for e in f.endpoints))
            for load in (
                decoder_pb2.EndpointLoad(running_sequence_count=-5, free_block_count=10),
                decoder_pb2.EndpointLoad(prefill_tokens_per_s=float("nan")),
                decoder_pb2.EndpointLoad(step_batch_size=float("inf")),
                decoder_pb2.EndpointLoad(free_block_count=10**9),
                decoder_pb2.EndpointLoad(step_duration=Duration(seconds=-1)),
                decoder_pb2.EndpointLoad(application_utilization=float("nan")),
                decoder_pb2.EndpointLoad(lost_token_count=-1),
            ):
                bad.load = load
                await bad.send(load=load)
                await until_fleet(address, lambda f: not f.endpoints[0].HasField("load"))
                await lease.send(declare=declare(agents=8))
                granted = (await lease.read()).granted
                assert [gang.endpoint_id for gang in granted.gangs] == ["good"]
                assert granted.rejected[0].reason.startswith("its load is unknown")
                await lease.send(release=router_pb2.ReleaseLease(contemplation_id="c1"))


async def test_every_field_of_a_load_is_shown_as_it_was_reported() -> None:
    told = decoder_pb2.EndpointLoad(draining=False)
    for number, field in enumerate(told.DESCRIPTOR.fields, 1):
        if field.message_type is None and field.name != "draining":
            # A share is no more than 1; a batch no larger than what runs.
            setattr(told, field.name, number if "count" in field.name else number / 64)
    for duration in (told.step_duration, told.decode_duration, told.prefill_duration):
        duration.FromMilliseconds(7)
    async with router() as address, FakeEndpoint("a", address, total_block_count=100) as endpoint:
        endpoint.load = told
        await endpoint.send(load=told)
        fleet = await until_fleet(address, lambda f: f.endpoints[0].load.lost_token_count > 0)
        assert fleet.endpoints[0].load == told
        assert fleet.endpoints[0].speed.per_prompt_position_s > 0


async def test_the_report_interval_is_told() -> None:
    async with router(report_interval_s=0.125) as address, FakeEndpoint("a", address) as endpoint:
        assert endpoint.interval_s == 0.125


async def test_reports_must_begin_with_a_good_description() -> None:
    async with router() as address:
        for fields, field in (
            ({"endpoint_id": "../x"}, "endpoint_id"),
            ({"models": []}, "models"),
            ({"max_sequence_count": 0}, "max_sequence_count"),
            ({"total_block_count": -1}, "description"),
        ):
            async with FakeEndpoint("a", address, **fields) as endpoint:
                error = await endpoint.ended()
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert from_rpc_error(error).field == field


async def test_one_endpoint_more_than_the_limit_is_refused() -> None:
    async with router(max_endpoint_count=1) as address, FakeEndpoint("a", address):
        async with FakeEndpoint("b", address) as one_more:
            error = await one_more.ended()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [e.description.endpoint_id for e in (await fleet_of(address)).endpoints] == ["a"]


async def test_one_lease_more_than_the_limit_is_denied_with_a_delay() -> None:
    async with router(max_lease_count=1) as address, FakeEndpoint("a", address):
        async with LeaseStream(address) as lease:
            await lease.send(declare=declare("c1"))
            assert (await lease.read()).HasField("granted")
            await lease.send(declare=declare("c2"))
            denied = (await lease.read()).denied
            assert denied.reason == "REJECTED"
            assert denied.HasField("retry_delay")


async def test_a_drained_router_ends_its_streams_at_once() -> None:
    running = router(drain_grace_s=30.0)
    address = await running.__aenter__()
    async with FakeEndpoint("a", address) as endpoint, LeaseStream(address) as lease:
        await lease.send(declare=declare())
        await lease.read()
        async with asyncio.timeout(10):
            await running.__aexit__(None, None, None)
        error = await endpoint.ended()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert (await lease.error()).code() is grpc.StatusCode.UNAVAILABLE


async def flood(lease: LeaseStream, address: str) -> None:
    """Declares without reading any answer until the router stops taking commands."""
    n = 0
    leases = -1
    while (fleet := await fleet_of(address)).lease_count != leases:
        leases = fleet.lease_count
        for _ in range(100):
            n += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await lease.send(declare=declare(f"c{n}", agents=1))


async def test_a_reader_that_stalls_loses_its_stream_and_its_leases() -> None:
    async with router(outbox_count=2, write_stall_s=1.0) as address:
        async with FakeEndpoint("a", address, max_sequence_count=10**6, total_block_count=0):
            async with LeaseStream(address) as lease:
                await flood(lease, address)
                fleet = await until_fleet(address, lambda f: f.lease_count == 0)
                assert fleet.endpoints[0].booked_agent_count == 0
                error = await lease.error()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_rpc_error(error).reason == "EVICTED"


async def test_news_that_find_no_room_end_the_stream() -> None:
    async with router(outbox_count=1, write_stall_s=60.0) as address:
        async with FakeEndpoint("a", address, max_sequence_count=10**6, total_block_count=0) as a:
            async with LeaseStream(address) as lease:
                await flood(lease, address)
                for draining in (True, False, True):
                    await a.send(load=decoder_pb2.EndpointLoad(draining=draining))
                await until_fleet(address, lambda f: f.lease_count == 0)
