"""Who may do what: keys by gRPC and HTTP, over real sockets."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from cogitate.client import AsyncClient
from cogitate.client import PermissionDenied as Refused
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit import auth
from cogitate.v1 import contemplation_service_pb2 as pb2
from cogitate.v1 import gateway_service_pb2
from google.protobuf import message_factory

from tests.fakes.front import Mesh, endless, happy, mesh

pytestmark = pytest.mark.contract

ASKED: list[Any] = [{"role": "user", "content": "What?"}]
WRONG = ("", "cog_" + "x" * 43, "' OR 1=1--", "Bearer")
SERVICES = (
    pb2.DESCRIPTOR.services_by_name["ContemplationService"],
    gateway_service_pb2.DESCRIPTOR.services_by_name["GatewayService"],
)


@asynccontextmanager
async def guarded(
    folder: Path, script: Any = happy, **grants: Any
) -> AsyncIterator[tuple[Mesh, dict[str, str], KeyStore]]:
    """A gateway that asks for keys, those of ada and bob, and their file."""
    store = KeyStore(folder / "keys", create=True)
    keys = {name: store.create(Grant(name, **grants))[1] for name in ("ada", "bob")}
    knobs = {"api_keys": str(folder / "keys"), "http_listen": "127.0.0.1:0"}
    async with mesh(script, **knobs) as m:
        yield m, keys, store


def with_key(m: Mesh, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{m.http}/v1", api_key=key or "x", max_retries=0)


async def code_of(channel: grpc.aio.Channel, method: Any, metadata: Any) -> grpc.StatusCode:
    """The status of a call of any method, with an empty request."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    request = message_factory.GetMessageClass(method.input_type)()
    raw = request.SerializeToString()
    sides = (method.client_streaming, method.server_streaming)
    kind = "_".join("stream" if streaming else "unary" for streaming in sides)
    call: Any = getattr(channel, kind)(path)
    made = call(iter([raw]) if sides[0] else raw, metadata=metadata, timeout=5)
    try:
        if sides[1]:
            async for _ in made:
                pass
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_every_method_of_grpc_asks_for_a_key(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (m, keys, _):
        async with grpc.aio.insecure_channel(m.address) as channel:
            for method in [one for service in SERVICES for one in service.methods]:
                for wrong in (None, *WRONG):
                    metadata = () if wrong is None else (("authorization", f"Bearer {wrong}"),)
                    code = await code_of(channel, method, metadata)
                    assert code is grpc.StatusCode.UNAUTHENTICATED, (method.name, wrong)
                good = (("authorization", f"Bearer {keys['ada']}"),)
                twice = await code_of(channel, method, (*good, *good))
                assert twice is grpc.StatusCode.UNAUTHENTICATED
                code = await code_of(channel, method, good)
                assert code is not grpc.StatusCode.UNAUTHENTICATED, method.name
        assert not m.aggregator.requests


async def test_every_route_of_http_asks_for_a_key_before_it_is_looked_for(tmp_path: Path) -> None:
    paths = (
        "/v1/chat/completions", "/v1/responses", "/v1/responses/resp_1", "/v1/models",
        "/v1/responses/resp_1/cancel", "/v1/models/mini", "/openapi.json", "/nothing",
        "/page", "/page/", "/page/nothing.js", "/page/../config.py", "//", "/index.html",
    )  # fmt: skip

    def status(path: str, verb: str, key: str | None) -> tuple[int, Any]:
        request = urllib.request.Request(f"http://{m.http}{path}", method=verb)
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            if verb != "HEAD":
                assert json.loads(error.read())["error"]["type"]
            return error.code, error.headers

    async with guarded(tmp_path) as (m, keys, _):
        for path in paths:
            for verb in ("GET", "POST", "DELETE", "PUT", "OPTIONS"):
                for wrong in (None, *WRONG[1:]):
                    code, headers = await asyncio.to_thread(status, path, verb, wrong)
                    assert (code, headers["www-authenticate"]) == (401, "Bearer"), (path, verb)
                code, _ = await asyncio.to_thread(status, path, verb, keys["ada"])
                assert code != 401, (path, verb)
        assert (await asyncio.to_thread(status, "/healthz", "GET", None))[0] == 200


async def test_a_key_is_a_tenant_whatever_the_caller_says(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (m, keys, _):
        claimed = (("x-cogitate-tenant", "bob"),)
        async with AsyncClient(m.address, api_key=keys["ada"], metadata=claimed) as client:
            await client.ask("What?")
        async with with_key(m, keys["bob"]) as bob:
            await bob.chat.completions.create(
                model="mini", messages=ASKED, extra_headers={"x-cogitate-tenant": "ada"}
            )
        told = [metadata[auth.TENANT_METADATA_KEY] for metadata in m.aggregator.metadata]
        assert told == ["ada", "bob"]
        async with AsyncClient(m.address, api_key="cog_wrong") as stranger:
            with pytest.raises(Refused, match="no such key"):
                await stranger.ask("What?")


async def test_a_revoked_key_is_shut_out_at_once(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (m, keys, store):
        async with with_key(m, keys["ada"]) as ada:
            await ada.chat.completions.create(model="mini", messages=ASKED)
            store.revoke(next(key.id for key in store.keys() if key.grant.tenant == "ada"))
            with pytest.raises(openai.AuthenticationError):
                await ada.chat.completions.create(model="mini", messages=ASKED)
        async with with_key(m, keys["bob"]) as bob:
            await bob.models.list()


async def test_what_is_not_granted_is_refused_and_what_is_unsaid_is_narrowed(
    tmp_path: Path,
) -> None:
    narrow = {
        "models": frozenset({"mini"}),
        "tools": frozenset({"calculator"}),
        "providers": frozenset({"aurora"}),
    }
    async with guarded(tmp_path, **narrow) as (m, keys, _):
        async with with_key(m, keys["ada"]) as ada:
            create = ada.chat.completions.create
            for body in (
                {"model": "big"},
                {"extra_body": {"cogitate": {"tools": ["python"]}}},
                {"extra_body": {"cogitate": {"providers": ["borealis"]}}},
            ):
                with pytest.raises(openai.PermissionDeniedError, match="this key may not use"):
                    await create(**{"model": "mini", "messages": ASKED, **body})  # type: ignore[call-overload]
            await create(model="mini", messages=ASKED)
        (request,) = m.aggregator.requests
        assert list(request.spec.allowed_tools) == ["calculator"]
        assert list(request.spec.constraints.providers) == ["aurora"]


async def test_a_tenant_has_no_more_at_once_than_granted_and_costs_others_nothing(
    tmp_path: Path,
) -> None:
    async with guarded(tmp_path, endless, max_contemplation_count=2) as (m, keys, _):
        async with with_key(m, keys["ada"]) as ada, with_key(m, keys["bob"]) as bob:
            ask: Any = {"model": "mini", "messages": ASKED, "stream": True}
            held = [await ada.chat.completions.create(**ask) for _ in range(2)]
            with pytest.raises(openai.RateLimitError, match="2 contemplations at once"):
                await ada.chat.completions.create(**ask)
            async with AsyncClient(m.address, api_key=keys["ada"]) as client:
                with pytest.raises(Exception, match="2 contemplations at once"):
                    await client.ask("What?")
            await (await bob.chat.completions.create(**ask)).close()
            await held[0].close()
            async with asyncio.timeout(5):
                while True:
                    try:
                        await (await ada.chat.completions.create(**ask)).close()
                        break
                    except openai.RateLimitError:
                        await asyncio.sleep(0.05)
            await held[1].close()


async def test_a_tenants_rate_is_kept_and_the_wait_told(tmp_path: Path) -> None:
    async with guarded(tmp_path, max_requests_per_minute=3) as (m, keys, _):
        async with with_key(m, keys["ada"]) as ada, with_key(m, keys["bob"]) as bob:
            for _ in range(3):
                await ada.models.list()
            with pytest.raises(openai.RateLimitError) as caught:
                await ada.models.list()
            assert 0 < float(caught.value.response.headers["retry-after-ms"]) <= 20_000
            await bob.models.list()
