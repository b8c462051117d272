"""The real Envoy as the public door: real gateways behind it, clients of every kind before it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.v1 import common_pb2, gateway_service_pb2, gateway_service_pb2_grpc
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import contemplation_service_pb2_grpc as pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from tests.fakes import certificates
from tests.fakes.aggregator import Step, Wait
from tests.fakes.envoy import Config, cluster_of, envoy_binary
from tests.fakes.envoy_front import NOBODY, Door, door, filter_of, front_config, lines_of
from tests.fakes.envoy_hooks import Hooks
from tests.fakes.front import Mesh, endless, happy, mesh
from tests.fakes.serving import FakeServer
from tests.fakes.vision import png

pytestmark = pytest.mark.integration

CONTEMPLATE = "/cogitate.v1.ContemplationService/Contemplate"
INFO = "/cogitate.v1.GatewayService/GetServerInfo"
QUESTION = "What is the secret of the red door?"
PAUSE_S = 0.25
MIB = 1 << 20


@pytest.fixture(autouse=True)
def envoy() -> None:
    envoy_binary()  # skips


class Gateway(FakeServer):
    """Looks healthy, and answers as it is told; counts what it was asked."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__()
        self.code, self.attempts, self.metadata = code, 0, {}

    def register(self, server: Any) -> None:
        probes = health.HealthServicer()
        probes.set("cogitate.v1.ContemplationService", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(probes, server)
        gateway_service_pb2_grpc.add_GatewayServiceServicer_to_server(self, server)
        pb2_grpc.add_ContemplationServiceServicer_to_server(self, server)

    async def _refuse(self, context: Any) -> None:
        self.attempts += 1
        self.metadata = dict(context.invocation_metadata())
        await context.abort(self.code, "as told")

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        await self._refuse(context)

    async def Ask(self, request: Any, context: Any) -> Any:
        await self._refuse(context)

    async def Contemplate(self, request: Any, context: Any) -> Any:
        yield pb2.ContemplateResponse(event=pb2.ContemplationEvent(accepted=pb2.Accepted()))
        await self._refuse(context)

    def __getattr__(self, name: str) -> Any:
        if name[0].isupper():
            return None  # the other methods are not called
        raise AttributeError(name)


def question(image: bytes = b"") -> pb2.ContemplateRequest:
    request = pb2.ContemplateRequest()
    message = request.spec.conversation.add(role=common_pb2.ROLE_USER)
    message.parts.add(text=QUESTION)
    if image:
        message.parts.add().image.data = image
    return request


def slowly(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Three events with pauses between, then the verdict."""
    accepted, *rest = happy(request)
    rounds = [pb2.ContemplationEvent(round_started=pb2.RoundStarted(round_number=1))] * 3
    paused = [step for one in rounds for step in (Wait(PAUSE_S), one)]
    return (accepted, *paused, Wait(PAUSE_S), rest[-1])


def as_it_is(config: Config) -> None:
    """Changes nothing."""


@asynccontextmanager
async def front(
    folder: Path, change: Callable[[Config], None] = as_it_is, script: Any = happy, **knobs: Any
) -> AsyncIterator[tuple[Door, Mesh]]:
    """A gateway behind Envoy."""
    async with mesh(script, http_listen="127.0.0.1:0", **knobs) as made:
        config = front_config(folder, [made.address], [made.http])
        change(config)
        async with door(folder, config) as opened:
            yield opened, made


def contemplation(channel: grpc.aio.Channel) -> Any:
    return pb2_grpc.ContemplationServiceStub(channel)


def gateway(channel: grpc.aio.Channel) -> Any:
    return gateway_service_pb2_grpc.GatewayServiceStub(channel)


async def asked_info(door: Door, **metadata: str) -> Any:
    async with door.channel() as channel:
        return await gateway(channel).GetServerInfo(
            gateway_service_pb2.GetServerInfoRequest(), timeout=10, metadata=[*metadata.items()]
        )


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def until(fact: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0.05)


def without_probes(config: Config) -> None:
    """No health checks: what cannot be reached is only found out by trying."""
    del cluster_of(config, "gateways-grpc")["health_checks"]


# -- streams ---------------------------------------------------------------------------------------


async def test_events_pass_one_by_one_in_every_protocol(tmp_path: Path) -> None:
    """A buffered stream would come in one piece, at the end."""
    async with front(tmp_path, script=slowly) as (door, _):
        ways = {
            "gRPC": _by_grpc, "gRPC-Web": _by_grpc_web, "JSON": _by_json,
            "Connect": _by_connect, "SSE": _by_sse,
        }  # fmt: skip
        for name, way in ways.items():
            times = await way(door)
            gaps = [after - before for before, after in itertools.pairwise(times)]
            assert sum(gap > PAUSE_S / 2 for gap in gaps) >= 3, (name, gaps)


async def _by_grpc(door: Door) -> list[float]:
    async with door.channel() as channel:
        call, times, numbers = contemplation(channel).Contemplate(question(), timeout=20), [], []
        async for response in call:
            times.append(time.monotonic())
            numbers.append(response.event.event_number)
        assert numbers == [1, 2, 3, 4, 5]
        return times


async def _by_grpc_web(door: Door) -> list[float]:
    raw, times, frames = question().SerializeToString(), [], b""
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with door.http() as client:
        body = struct.pack(">BI", 0, len(raw)) + raw
        async with client.stream("POST", CONTEMPLATE, content=body, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("application/grpc-web")
            async for part in answer.aiter_raw():
                times.append(time.monotonic())
                frames += part
    assert b"grpc-status:0" in frames.replace(b" ", b"")
    assert b"endpoint-load-metrics" not in frames, "how busy gateways are is no stranger's affair"
    return times


async def _by_json(door: Door) -> list[float]:
    """JSON at gRPC's path, a line for each event: nothing but curl is needed."""
    body = {"spec": {"conversation": [{"role": "ROLE_USER", "parts": [{"text": QUESTION}]}]}}
    times, events = [], []
    async with door.http(http2=True) as client, lines_of(client, CONTEMPLATE, body) as lines:
        async for line in lines:
            times.append(time.monotonic())
            events.append(json.loads(line)["event"])
    assert events[0]["accepted"]["model"] == "mini"
    assert events[-1]["verdict"]["answer"] == "42." and events[-1]["eventNumber"] == "5"
    return times


async def _by_connect(door: Door) -> list[float]:
    raw = json.dumps({"spec": {"conversation": [{"role": "ROLE_USER", "parts": [{"text": "?"}]}]}})
    body, times = struct.pack(">BI", 0, len(raw)) + raw.encode(), []
    headers = {"content-type": "application/connect+json", "connect-protocol-version": "1"}
    async with door.http() as client:
        async with client.stream("POST", CONTEMPLATE, content=body, headers=headers) as answer:
            assert answer.headers["content-type"] == "application/connect+json"
            times += [time.monotonic() async for _ in answer.aiter_raw()]
    return times


async def _by_sse(door: Door) -> list[float]:
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True, "model": "mini",
            "cogitate": {"events": "all"}}  # fmt: skip
    times, last = [], ""
    async with door.http() as client, lines_of(client, "/v1/chat/completions", body) as lines:
        async for line in lines:
            if line.startswith("data: "):
                times.append(time.monotonic())
                last = line
    assert last == "data: [DONE]"
    return times


async def test_http_2_and_http_1_on_one_port_with_the_shipped_page(tmp_path: Path) -> None:
    async with front(tmp_path) as (door, _):
        for http2, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
            async with door.http(http2=http2) as client:
                answer = await client.get("/")
                assert answer.http_version == version and "<html" in answer.text
                models = (await client.get("/v1/models")).json()
                assert [one["id"] for one in models["data"]] == ["mini"]


async def test_json_answers_and_errors_as_the_contract_has_them(tmp_path: Path) -> None:
    async with front(tmp_path) as (door, _), door.http() as client:
        answer = await client.post(INFO, json={})
        assert answer.json()["defaultModel"] == "mini"
        attach = "/cogitate.v1.ContemplationService/Attach"
        answer = await client.post(attach, json={"contemplationId": "none"})
        assert answer.status_code == 404, answer.text
        told = answer.json()
        assert told["code"] == 5 and told["details"][0]["domain"] == "cogitate"
        # The gateway's own Connect is left alone.
        connect = {"connect-protocol-version": "1"}
        assert (await client.post(INFO, json={}, headers=connect)).json()["defaultModel"] == "mini"


async def test_a_clients_cancel_reaches_the_gateway(tmp_path: Path) -> None:
    async with front(tmp_path, script=endless) as (door, made), door.channel() as channel:
        call = contemplation(channel).Contemplate(question(), timeout=60)
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            await made.aggregator.cancelled.wait()


async def test_deadlines_traces_and_request_ids_go_through(tmp_path: Path) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with front(tmp_path, script=endless) as (door, made), door.channel() as channel:
        metadata = [("traceparent", f"00-{trace}-00f067aa0ba902b7-01"), ("x-request-id", "mine")]
        call = contemplation(channel).Contemplate(question(), timeout=1.0, metadata=metadata)
        assert dict(await call.initial_metadata())["x-request-id"] == "mine"
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (left_s,) = made.aggregator.deadlines_s
        assert 0 < left_s <= 1.0, "the client's, less what was spent"
        assert trace in made.aggregator.metadata[0]["traceparent"]
        async with asyncio.timeout(5):
            await made.aggregator.cancelled.wait()


async def test_images_up_to_the_gateways_limit_pass(tmp_path: Path) -> None:
    limit = 2 * MIB
    async with front(tmp_path, max_image_bytes=limit) as (door, made), door.channel() as channel:
        largest = png(8, 8)
        largest += bytes(limit - len(largest))
        stub = contemplation(channel)
        events = [one async for one in stub.Contemplate(question(largest), timeout=30)]
        assert events[-1].event.HasField("verdict") and largest in made.vision.blobs.values()
        error = await refused(_all(stub.Contemplate(question(largest + b"x"), timeout=30)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        async with door.http(http2=True) as client:
            url = "data:image/png;base64," + base64.b64encode(largest).decode()
            part = {"type": "image_url", "image_url": {"url": url}}
            parts = [{"type": "text", "text": QUESTION}, part]
            body = {"model": "mini", "messages": [{"role": "user", "content": parts}]}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
        assert b" 413 " in await _head(door, 32 * MIB + 1)


async def _head(door: Door, length: int) -> bytes:
    """The first line of the answer to a request that says it is so long."""
    host, _, port = door.envoy.address.rpartition(":")
    context = ssl.create_default_context(cafile=str(door.tls / "ca.crt"))
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {length}\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return line


async def _all(call: Any) -> list[Any]:
    return [one async for one in call]


# -- several gateways ------------------------------------------------------------------------------


async def test_only_what_is_idempotent_is_tried_again(tmp_path: Path) -> None:
    async with Gateway() as broken, mesh() as good:
        config = front_config(tmp_path, [broken.address, good.address])
        del cluster_of(config, "gateways-grpc")["outlier_detection"]
        async with door(tmp_path, config) as opened:
            for _ in range(10):
                assert (await asked_info(opened)).default_model == "mini"
            assert broken.attempts > 0, "it was tried, and nobody noticed"

            # Begun or not known not to have begun: told as it is, each tried once.
            steering = {"x-envoy-retry-grpc-on": "unavailable", "x-envoy-max-retries": "5"}
            for method in ("Ask", "Contemplate"):
                broken.attempts, failed = 0, 0
                good.aggregator.requests.clear()
                for _ in range(10):
                    async with opened.channel() as channel:
                        try:
                            await _asked(channel, method, steering)
                        except grpc.aio.AioRpcError as error:
                            assert error.code() is grpc.StatusCode.UNAVAILABLE
                            assert error.details() == "as told"
                            failed += 1
                assert failed == broken.attempts > 0
                assert len(good.aggregator.requests) == 10 - failed


async def _asked(channel: grpc.aio.Channel, method: str, metadata: dict[str, str]) -> None:
    given = {"timeout": 10, "metadata": [*metadata.items()]}
    if method == "Ask":
        await gateway(channel).Ask(gateway_service_pb2.AskRequest(spec=question().spec), **given)
    else:
        await _all(contemplation(channel).Contemplate(question(), **given))


async def test_a_question_that_no_gateway_saw_goes_to_another(tmp_path: Path) -> None:
    async with mesh() as good:
        config = front_config(tmp_path, [NOBODY, good.address])
        without_probes(config)
        async with door(tmp_path, config) as opened:
            async with opened.channel() as channel:
                for _ in range(6):
                    events = await _all(contemplation(channel).Contemplate(question(), timeout=10))
                    assert events[-1].event.HasField("verdict")
            assert opened.envoy.stats("cluster.gateways-grpc.upstream_cx_connect_fail")
        assert len(good.aggregator.requests) == 6


async def test_a_gateway_that_fails_is_ejected_and_clients_mistakes_eject_nobody(
    tmp_path: Path,
) -> None:
    codes = grpc.StatusCode
    async with Gateway() as broken, mesh() as good:
        config = front_config(tmp_path, [broken.address, good.address])
        async with door(tmp_path, config) as opened:

            async def failures(calls: int) -> int:
                request = gateway_service_pb2.AskRequest(spec=question().spec)
                async with opened.channel() as channel:
                    asked = [gateway(channel).Ask(request, timeout=10) for _ in range(calls)]
                    found = await asyncio.gather(*asked, return_exceptions=True)
                return sum(isinstance(one, grpc.aio.AioRpcError) for one in found)

            for broken.code, calls in (
                (codes.INVALID_ARGUMENT, 60),
                (codes.RESOURCE_EXHAUSTED, 60),
                (codes.DEADLINE_EXCEEDED, 24),  # counts, up to 20
            ):
                assert await failures(calls) >= calls / 4
                assert not _ejected(opened), broken.code
            broken.code = codes.UNAVAILABLE
            await failures(60)
            await until(lambda: _ejected(opened), "nobody was ejected")
            seen = _probes(opened)
            await until(lambda: _probes(opened) >= seen + 4, "nobody was probed")
            assert await failures(10) == 0, "it says that it is well, and is left out all the same"


def _probes(door: Door) -> int:
    name = "cluster.gateways-grpc.health_check.success"
    return door.envoy.stats(name).get(name, 0)


def _healthy(door: Door) -> int:
    name = "cluster.gateways-grpc.membership_healthy"
    return door.envoy.stats(name).get(name, 0)


def _ejected(door: Door) -> int:
    name = "cluster.gateways-grpc.outlier_detection.ejections_active"
    return door.envoy.stats(name).get(name, 0)


async def test_a_drained_gateway_ends_what_it_runs_and_gets_nothing_new(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        going = mesh(slowly, drain_grace_s=30.0)
        first = await going.__aenter__()
        second = await stack.enter_async_context(mesh())
        config = front_config(tmp_path, [first.address, second.address])
        opened = await stack.enter_async_context(door(tmp_path, config))
        channel = await stack.enter_async_context(opened.channel())
        stub, running = contemplation(channel), []
        while not first.aggregator.requests:
            call = aiter(stub.Contemplate(question(), timeout=30))
            await anext(call)
            running.append(asyncio.create_task(_all(call)))
        assert _healthy(opened) == 2
        leaving = asyncio.create_task(going.__aexit__(None, None, None))
        await asyncio.sleep(0)
        seen, before = len(second.aggregator.requests), len(first.aggregator.requests)
        for _ in range(6):
            events = await _all(stub.Contemplate(question(), timeout=30))
            assert events[-1].event.HasField("verdict")
        assert len(second.aggregator.requests) == seen + 6
        assert len(first.aggregator.requests) == before
        for events in await asyncio.gather(*running):
            assert events[-1].event.HasField("verdict")
        await leaving
        await until(lambda: _healthy(opened) == 1, "health checks see it, too")


# -- who may, and how much -------------------------------------------------------------------------


def few(config: Config) -> None:
    """One address has three requests, and gets no more."""
    limit = filter_of(config, "local_ratelimit")["typed_config"]
    (descriptor,) = limit["descriptors"]
    descriptor["token_bucket"] = {"max_tokens": 3, "tokens_per_fill": 1, "fill_interval": "600s"}


async def test_an_address_that_asks_too_much_is_told_so_and_others_are_not(tmp_path: Path) -> None:
    async with front(tmp_path, few) as (door, _):
        for _ in range(3):
            await asked_info(door)
        error = await refused(asked_info(door))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with door.http() as client:
            answer = await client.get("/healthz")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        async with door.http(local_address="127.0.0.2") as client:
            # What it says of itself does not count.
            headers = {"x-forwarded-for": "127.0.0.1"}
            assert (await client.get("/healthz", headers=headers)).status_code == 200


@pytest.mark.parametrize("name", ["ext_authz", "ratelimit"])
async def test_the_hooks_ask_a_service_of_yours(tmp_path: Path, name: str) -> None:
    async with Hooks() as hooks:

        def switch_on(config: Config) -> None:
            del filter_of(config, name)["disabled"]
            cluster = cluster_of(config, "authz" if name == "ext_authz" else "ratelimit")
            (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            port = int(hooks.address.rpartition(":")[2])
            endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port

        async with front(tmp_path, switch_on) as (door, made), door.http() as client:
            assert (await asked_info(door, letter="open sesame")).default_model == "mini"
            assert (await client.get("/v1/models", headers={"letter": "open sesame"})).is_success
            hooks.is_over = True
            error = await refused(asked_info(door))
            status = (await client.get("/v1/models")).status_code
            denied = {
                "ext_authz": (grpc.StatusCode.PERMISSION_DENIED, 403),
                "ratelimit": (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
            }
            assert (error.code(), status) == denied[name]

            async with door.channel() as channel:
                await refused(_all(contemplation(channel).Contemplate(question(), timeout=10)))
            assert not made.aggregator.requests
            assert not any(QUESTION.encode() in asked for asked in hooks.asked), "no body is sent"

            await (
                hooks.kill()
            )  # nobody is let in unseen; a limit that nobody counts holds nobody up
            if name == "ext_authz":
                error = await refused(asked_info(door, letter="open sesame"))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            else:
                assert (await asked_info(door)).default_model == "mini"


async def test_strangers_reach_what_is_theirs_alone(tmp_path: Path) -> None:
    async with front(tmp_path) as (door, _), door.channel() as channel:
        for method in (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics",
            "/cogitate.v1.AdminService/ListKeys",
            "/cogitate.v1.RouterService/GetFleet",
        ):
            error = await refused(channel.unary_unary(method)(b"", timeout=5))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, method
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="cogitate.v1.ContemplationService")
        assert (await stub.Check(asked, timeout=5)).status == health_pb2.HealthCheckResponse.SERVING


async def test_the_log_tells_who_and_how_and_not_what(tmp_path: Path) -> None:
    async with front(tmp_path) as (door, _):
        async with door.channel() as channel:
            key = [("authorization", "Bearer a-key-of-a-tenant")]
            await _all(contemplation(channel).Contemplate(question(), timeout=10, metadata=key))
        async with door.http() as client:
            await client.get("/healthz?secret=sesame", headers={"authorization": "Bearer a-key"})
        await until(lambda: len(door.lines()) >= 2, "no lines")
        called, got = door.lines()[:2]
        assert (called["path"], called["grpc_status"]) == (CONTEMPLATE, "OK")
        assert (got["path"], got["status"]) == ("/healthz", 200)
        text = door.envoy.log.read_text()
        assert not any(word in text for word in ("red door", "sesame", "a-key"))


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    async with front(tmp_path) as (door, _):
        await asked_info(door)
        other = certificates.authority("renewed")
        certificates.write(door.tls, certificates.signed(by=other), roots=other.signed.certificate)
        async with asyncio.timeout(20):
            while True:
                try:
                    await asked_info(door)  # trusts the new authority alone
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)


async def test_a_page_of_another_origin_calls_where_it_is_allowed(tmp_path: Path) -> None:
    def allow(config: Config) -> None:
        (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
        routes = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
        policy = routes["typed_per_filter_config"]["envoy.filters.http.cors"]
        policy["allow_origin_string_match"] = [{"exact": "https://app.example"}]

    headers = {"access-control-request-method": "POST", "content-type": "application/json"}
    async with front(tmp_path, allow) as (door, _), door.http() as client:
        for origin, told in (("https://app.example",) * 2, ("https://evil.example", None)):
            asks = {**headers, "origin": origin}
            answer = await client.request("OPTIONS", CONTEMPLATE, headers=asks)
            assert answer.headers.get("access-control-allow-origin") == told
            answer = await client.post(INFO, json={}, headers={"origin": origin})
            assert answer.headers.get("access-control-allow-origin") == told
