"""The real Envoy asks the router where requests go: real decoders, streams, deaths, both modes."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.fakes.decoder_nursery import Nursery
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.envoy import (
    Config,
    Envoy,
    envoy_binary,
    picker_filter,
    pointed_at,
    running_envoy,
    shipped,
)
from tests.fakes.http_echo import EchoServer
from tests.fakes.pool import QUIET, Pool, Through, gang, idle, reported, router_process

pytestmark = pytest.mark.integration
NAMES = ("a", "b", "c")


@dataclass
class Front:
    """Envoy, the router it asks, and the decoders behind it."""

    envoy: Envoy
    router: str
    strike_router: Callable[[int], None]
    pool: Pool

    async def where(self, asked: Any, **headers: str) -> str:
        """Sends a whole gang; returns the endpoint that ran it."""
        stream = Through(self.envoy.address, **headers)
        try:
            endpoint = await stream.where(asked)
            await stream.send(close={})
            await stream.end()
            return endpoint
        finally:
            await stream.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    envoy_binary()  # skips
    with Nursery(QUIET) as made:
        yield made


@asynccontextmanager
async def front(
    folder: Path,
    nursery: Nursery,
    change: Callable[[Config], None] = lambda config: None,
    router_flags: tuple[str, ...] = (),
    step_s: float = 0.002,
) -> AsyncIterator[Front]:
    """Three decoders of 8 sequences, which all have reported."""
    async with AsyncExitStack() as stack:
        flags = ("--picker", "--keda-scaler", *router_flags)
        router, process = await stack.enter_async_context(router_process(folder, *flags))
        made = Pool(folder, nursery, ("--router-addresses", router, "--max-sequence-count", "8"))
        stack.callback(made.end)
        for name in NAMES:
            await made.add(name, step_s=step_s)
        await reported(router, *NAMES)
        config = pointed_at(
            shipped(), router=[router], decoders=[made.addresses[name] for name in NAMES]
        )
        change(config)
        envoy = stack.enter_context(running_envoy(folder, config))
        yield Front(envoy, router, process.send_signal, made)


async def test_streams_go_where_the_router_says_and_elsewhere_when_it_dies(
    tmp_path: Path, nursery: Nursery
) -> None:
    # Streams that outlast `picker_settle_s`, on a fast machine, too.
    async with front(tmp_path, nursery, step_s=0.01) as mesh:
        # Picks follow bookings, not only reports: six that come at once go to all three.
        streams = [Through(mesh.envoy.address, x_cogitate_agents="4") for _ in range(6)]
        try:
            asked = [gang(f"c{i}", tokens=200, agents=4, seed=i) for i in range(6)]
            used = await asyncio.gather(*(s.where(g) for s, g in zip(streams, asked, strict=True)))
            assert set(used) == set(NAMES) and max(Counter(used).values()) <= 3
            for stream in streams:
                await stream.send(close={})
            seen = await asyncio.gather(*(stream.end() for stream in streams))
            assert all(r[-1].HasField("gang_finished") for r in seen)
            assert all(len(s.tokens(agent)) == 200 for s in streams for agent in range(4))
            assert all(len(r) > 20 for r in seen), "step by step, not at once"
        finally:
            for stream in streams:
                await stream.close()

        await idle(mesh.router)  # every place was taken, and reports come only now and then
        mesh.pool.kill("b")
        for i in range(12):
            assert await mesh.where(gang(f"d{i}", tokens=4)) in ("a", "c")
        await reported(mesh.router, "a", "c")

        assert mesh.envoy.stats("cluster.router.upstream_rq_total")


async def test_a_pick_that_cannot_be_reached_falls_back_in_order(
    tmp_path: Path, nursery: Nursery
) -> None:
    """An endpoint that reports and does not listen: the client sees nothing of it."""
    async with front(tmp_path, nursery) as mesh:
        # The fake says it is idle and fast; who listens there is nobody.
        async with FakeEndpoint("ghost", mesh.router, address="127.0.0.1:9", provider="g") as ghost:
            ghost.load.step_duration.FromMilliseconds(1)
            ghost.load.prefill_tokens_per_s = 1e6
            await reported(mesh.router, *NAMES, "ghost")
            found = [await mesh.where(gang(f"c{i}", tokens=4)) for i in range(4)]
        assert set(found) <= set(NAMES)


async def test_headers_say_what_is_wanted(tmp_path: Path, nursery: Nursery) -> None:
    async with front(tmp_path, nursery, router_flags=("--picker-settle-s", "2")) as mesh:
        only = mesh.pool.addresses["c"]
        for _ in range(3):
            found = await mesh.where(
                gang("s", tokens=4), x_gateway_destination_endpoint_subset=only
            )
            assert found == "c"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.where(
                gang("s", tokens=4), x_gateway_destination_endpoint_subset="10.0.0.1:1"
            )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "none of the 1 endpoints in question" in (caught.value.details() or "")

        # More than any endpoint holds, more than is free now, another model, no number.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.where(gang("m", tokens=4), x_gateway_model_name="other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        status = rpc_status.from_call(caught.value)
        assert status is not None and "there is: mini" in status.message
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info) and info.reason == "UNKNOWN_MODEL"

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.where(gang("n", tokens=4), x_cogitate_agents="many")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "x-cogitate-agents must be a whole number" in (caught.value.details() or "")

        await asyncio.sleep(2.2)  # picks from before have settled
        streams = [Through(mesh.envoy.address, x_cogitate_agents="8") for _ in NAMES]
        try:
            held = [gang(f"h{i}", tokens=4000, agents=8) for i in range(3)]
            used = [await s.where(g) for s, g in zip(streams, held, strict=True)]
            assert sorted(used) == list(NAMES), "each is full with one"
            await asyncio.sleep(2.2)  # it is reports that have them now
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await mesh.where(gang("f", tokens=4))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status = rpc_status.from_call(caught.value)
            assert status is not None
            kinds = [d.TypeName() for d in status.details]
            assert kinds == ["google.rpc.ErrorInfo", "google.rpc.RetryInfo"]
        finally:
            for stream in streams:
                await stream.close()


async def post(address: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    """An OpenAI-like request; returns status, headers and body."""

    def ask() -> tuple[int, dict[str, str], Any]:
        request = urllib.request.Request(
            f"http://{address}/v1/chat/completions",
            data=json.dumps({"model": "mini", "messages": [], "pad": "x" * 100_000}).encode(),
            headers={"content-type": "application/json"}
            | {k.replace("_", "-"): v for k, v in headers.items()},
        )
        try:
            answer = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            told = {k.lower(): v for k, v in answer.headers.items()}
            return answer.status, told, json.loads(answer.read() or b"null")

    return await asyncio.to_thread(ask)


async def test_http_requests_are_picked_alike(tmp_path: Path) -> None:
    async with router_process(tmp_path, "--picker") as (router, _):
        with EchoServer("x") as x, EchoServer("y") as y:
            config = pointed_at(shipped(), router=[router], decoders=[x.address, y.address])
            with running_envoy(tmp_path, config) as envoy:
                status, headers, body = await post(envoy.address)
                assert status == 503 and headers["retry-after"] == "1"
                assert body["error"]["message"] == "no endpoint reports to this router"
                assert body["error"]["code"] == "no_endpoint"
                async with (
                    FakeEndpoint("x", router, address=x.address, max_sequence_count=1) as busy,
                    FakeEndpoint("y", router, address=y.address, max_sequence_count=1) as idle,
                ):
                    await reported(router, "x", "y")
                    busy.load.running_sequence_count = 1
                    await asyncio.sleep(0.3)
                    status, _, body = await post(envoy.address, x_gateway_model_name="mini")
                    assert (status, body["server"]) == (200, "y")
                    assert body["length"] > 100_000, "the body went through"
                    assert body["destination"] == y.address
                    idle.load.running_sequence_count = 1
                    await asyncio.sleep(0.3)
                    status, headers, body = await post(envoy.address)
                    assert status == 429 and int(headers["retry-after"]) >= 1
                    assert body["error"]["type"] == "rate_limit_error"
                    status, _, body = await post(envoy.address, x_gateway_model_name="no")
                    assert (status, body["error"]["code"]) == (404, "unknown_model")


@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED"])
async def test_bodies_that_are_sent_to_the_picker_pass_whole(tmp_path: Path, mode: str) -> None:
    """The first is how gateways configure an InferencePool: the picker sends back every piece."""
    async with router_process(tmp_path, "--picker") as (router, _):
        with EchoServer("x") as x:
            config = pointed_at(shipped(), router=[router], decoders=[x.address])
            trailers = "SEND" if mode == "FULL_DUPLEX_STREAMED" else "SKIP"
            picker_filter(config)["processing_mode"] = {
                "request_header_mode": "SEND",
                "response_header_mode": "SEND",
                "request_body_mode": mode,
                "response_body_mode": mode,
                "request_trailer_mode": trailers,
                "response_trailer_mode": trailers,
            }
            with running_envoy(tmp_path, config) as envoy:
                async with FakeEndpoint("x", router, address=x.address):
                    await reported(router, "x")
                    status, _, body = await post(envoy.address)
                    assert (status, body["server"]) == (200, "x")
                    assert body["length"] > 100_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
async def test_a_picker_that_died_or_hangs_fails_open_or_closed_as_configured(
    tmp_path: Path, nursery: Nursery, is_open: bool, number: signal.Signals
) -> None:
    def change(config: Config) -> None:
        picker_filter(config)["failure_mode_allow"] = is_open

    async with front(tmp_path, nursery, change, step_s=0.01) as mesh:
        stream = Through(mesh.envoy.address)
        try:
            assert await stream.where(gang("long", tokens=200)) in NAMES
            mesh.strike_router(number)
            # What runs is not touched: nothing of it goes by the router.
            await stream.send(close={})
            seen = await stream.end()
            assert seen[-1].HasField("gang_finished") and len(stream.tokens(0)) == 200
        finally:
            await stream.close()
        if is_open:
            used = {await mesh.where(gang(f"o{i}", tokens=4)) for i in range(9)}
            assert used == set(NAMES), "by turns"
            return
        for i in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await mesh.where(gang(f"o{i}", tokens=4))
            # INTERNAL is grpcio's own word where the answer overtakes the first message.
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
