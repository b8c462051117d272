"""The operator's listener: who gets in, what it does, and that it is nowhere else."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.client import AsyncClient
from cogitate.client import PermissionDenied as Refused
from cogitate.gateway import server as server_module
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import admin_service_pb2 as pb2
from cogitate.v1.admin_service_pb2_grpc import AdminServiceStub
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from tests.fakes import certificates
from tests.fakes.contract import kind, methods
from tests.fakes.front import Mesh, endless, mesh

pytestmark = pytest.mark.contract

KEY = "an-operators-key-of-forty-letters-or-so!"
METHODS = [one for name, one in methods().items() if ".AdminService/" in name]


@asynccontextmanager
async def administered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **knobs: Any
) -> AsyncIterator[tuple[Mesh, str, list[int]]]:
    """A gateway with a tenant's key and an operator's listener; counts drains instead of ending."""
    drains: list[int] = []
    monkeypatch.setattr(server_module, "_end", lambda: drains.append(1))
    store = KeyStore(folder / "keys", create=True)
    tenants_key = store.create(Grant("ada"))[1]
    (folder / "admin.key").write_text(KEY + "\n")
    given = {
        "api_keys": str(folder / "keys"),
        "admin_listen": "127.0.0.1:0",
        "admin_key_file": str(folder / "admin.key"),
        "http_listen": "127.0.0.1:0",
    } | knobs
    async with mesh(**given) as m:
        yield m, tenants_key, drains


def admin_address(m: Mesh) -> str:
    assert m.service.admin is not None
    return m.service.admin.address


async def status(
    channel: grpc.aio.Channel, method: MethodDescriptor, key: str | None
) -> tuple[grpc.StatusCode, str]:
    request = message_factory.GetMessageClass(method.input_type)()
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    call: Any = getattr(channel, kind(method))(path)
    try:
        await call(request.SerializeToString(), metadata=metadata, timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


async def test_only_the_operators_key_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = grpc.StatusCode
    async with administered(tmp_path, monkeypatch) as (m, tenants_key, drains):
        async with grpc.aio.insecure_channel(admin_address(m)) as channel:
            for method in METHODS:
                for wrong in (None, "", KEY[:-1], KEY + "x", "' OR 1=1--"):
                    found, _ = await status(channel, method, wrong)
                    assert found is codes.UNAUTHENTICATED, (method.name, wrong)
                for tenants in (tenants_key, "cog_" + "x" * 43):
                    found, said = await status(channel, method, tenants)
                    assert (found, said) == (
                        codes.PERMISSION_DENIED, "a tenant's key opens nothing here",
                    )  # fmt: skip
            assert not drains
            for method in METHODS:
                found, _ = await status(channel, method, KEY)
                assert found in (codes.OK, codes.INVALID_ARGUMENT, codes.NOT_FOUND), method.name
            for method in METHODS:  # again, and the second drain changes nothing
                await status(channel, method, KEY)
            assert drains == [1]


async def test_it_is_not_where_tenants_call_nor_is_theirs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with administered(tmp_path, monkeypatch) as (m, tenants_key, drains):
        async with grpc.aio.insecure_channel(m.address) as channel:
            for method in METHODS:
                for key in (KEY, tenants_key, None):
                    found, _ = await status(channel, method, key)
                    assert found is grpc.StatusCode.UNIMPLEMENTED, (method.name, key)
        for method in METHODS:
            path = f"/{method.containing_service.full_name}/{method.name}"
            request = urllib.request.Request(f"http://{m.http}{path}", data=b"{}", method="POST")
            request.add_header("Authorization", f"Bearer {tenants_key}")
            request.add_header("Content-Type", "application/json")
            with pytest.raises(urllib.error.HTTPError) as caught:
                await asyncio.to_thread(urllib.request.urlopen, request, timeout=5)
            assert caught.value.code in (404, 501)
            assert KEY not in caught.value.read().decode()
        async with grpc.aio.insecure_channel(admin_address(m)) as channel:
            unary = [one for one in methods().values() if kind(one) == "unary_unary"]
            for method in unary:
                found, _ = await status(channel, method, KEY)
                assert method in METHODS or found is grpc.StatusCode.UNIMPLEMENTED, method.name
            drains.clear()
        assert not drains


@pytest.mark.parametrize("also_key", [True, False])
async def test_with_certificates_only_admin_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, also_key: bool
) -> None:
    codes = grpc.StatusCode
    knobs: dict[str, Any] = {
        "tls_dir": str(certificates.write(tmp_path / "tls", certificates.signed("gateway")))
    }
    if not also_key:
        knobs["admin_key_file"] = ""
    async with administered(tmp_path, monkeypatch, **knobs) as (m, _, drains):
        roots = certificates.authority().signed.certificate
        for who in ("gateway", "cli", "aggregator", "tool-executor"):
            made = certificates.signed(who)
            shown = grpc.ssl_channel_credentials(roots, made.key, made.certificate)
            async with grpc.aio.secure_channel(admin_address(m), shown) as channel:
                for method in METHODS:
                    found, said = await status(channel, method, KEY)
                    assert found is codes.PERMISSION_DENIED and said.startswith(f"{who} may not")
        async with grpc.aio.insecure_channel(admin_address(m)) as channel:
            assert (await status(channel, METHODS[0], KEY))[0] is codes.UNAVAILABLE
        made = certificates.signed("admin")
        shown = grpc.ssl_channel_credentials(roots, made.key, made.certificate)
        async with grpc.aio.secure_channel(admin_address(m), shown) as channel:
            listing = next(one for one in METHODS if one.name == "ListKeys")
            assert (await status(channel, listing, KEY))[0] is codes.OK
            without = (await status(channel, listing, None))[0]
            assert without is (codes.UNAUTHENTICATED if also_key else codes.OK)
        assert not drains


@asynccontextmanager
async def operator(m: Mesh) -> AsyncIterator[Any]:
    """A stub with the operator's key in every call."""

    class Keyed:
        def __getattr__(self, name: str) -> Any:
            async def call(request: Any) -> Any:
                metadata = (("authorization", f"Bearer {KEY}"),)
                return await getattr(stub, name)(request, metadata=metadata, timeout=5)

            return call

    async with grpc.aio.insecure_channel(admin_address(m)) as channel:
        stub: Any = AdminServiceStub(channel)
        yield Keyed()


async def test_a_key_is_made_opens_and_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with administered(tmp_path, monkeypatch) as (m, _, _), operator(m) as admin:
        request = pb2.CreateKeyRequest()
        request.grant.tenant = "lab"
        request.grant.models.append("mini")
        request.grant.max_contemplation_count = 3
        request.expire_time.seconds = int(time.time()) + 3600
        made = await admin.CreateKey(request)
        assert made.key.grant == request.grant
        assert made.key.expire_time.seconds == request.expire_time.seconds
        async with AsyncClient(m.address, api_key=made.key_text) as lab:
            await lab.ask("What?")
            listed = await admin.ListKeys(pb2.ListKeysRequest())
            assert [key.grant.tenant for key in listed.keys] == ["ada", "lab"]
            assert made.key_text not in str(listed)
            await admin.RevokeKey(pb2.RevokeKeyRequest(key_id=made.key.key_id))
            with pytest.raises(Refused, match="no such key"):
                await lab.ask("What?")
        listed = await admin.ListKeys(pb2.ListKeysRequest())
        assert listed.keys[1].HasField("revoke_time")


async def test_budgets_are_set_and_what_tenants_spend_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with administered(tmp_path, monkeypatch) as (m, key, _), operator(m) as admin:
        m.aggregator.script = endless
        budget = pb2.TenantBudget(tokens_per_day_count=9000, micro_usd_per_month=7)
        request = pb2.SetBudgetRequest(tenant="ada", budget=budget)
        account = (await admin.SetBudget(request)).account
        assert account.budget == budget and account.day.contemplation_count == 0
        async with AsyncClient(m.address, api_key=key) as ada:
            async with ada.contemplate("What?") as stream:
                await anext(stream)
                (now,) = (await admin.ListTenants(pb2.ListTenantsRequest())).tenants
                assert now.running_contemplation_count == 1
                assert (now.day.granted_token_count, now.month.granted_micro_usd) == (4096, 1)
        assert m.aggregator.requests[0].spec.budget.max_tokens == 4096
        unknown = await admin.ListTenants(pb2.ListTenantsRequest(tenant="nobody"))
        assert unknown.tenants[0].budget == pb2.TenantBudget()


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("CreateKey", pb2.CreateKeyRequest()),
        ("CreateKey", pb2.CreateKeyRequest(grant={"tenant": "../x"})),
        ("CreateKey", pb2.CreateKeyRequest(grant={"tenant": "a", "max_contemplation_count": -1})),
        ("CreateKey", pb2.CreateKeyRequest(grant={"tenant": "a"}, expire_time={"seconds": 1})),
        ("SetBudget", pb2.SetBudgetRequest(tenant="a", budget={"micro_usd_per_day": -1})),
        ("SetBudget", pb2.SetBudgetRequest(tenant="a", budget={"tokens_per_day_count": 2**63 - 1})),
        ("SetBudget", pb2.SetBudgetRequest(tenant="' OR 1=1")),
        ("ListTenants", pb2.ListTenantsRequest(tenant="a/b")),
    ],
)
async def test_what_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, request_: Any
) -> None:
    async with administered(tmp_path, monkeypatch) as (m, _, _), operator(m) as admin:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(admin, method)(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len((await admin.ListKeys(pb2.ListKeysRequest())).keys) == 1


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"admin_key_file": ""}, "needs admin_key_file, or tls_dir"),
        ({"api_keys": ""}, "needs api_keys"),
        ({"admin_key_file": "/nowhere/key"}, "cannot be read"),
        ({"admin_key_file": "short"}, "needs 32 bytes"),
    ],
)
async def test_it_does_not_start_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, str], said: str
) -> None:
    if knobs.get("admin_key_file") == "short":
        (tmp_path / "short").write_text(KEY[:31])
        knobs = {"admin_key_file": str(tmp_path / "short")}
    with pytest.raises(InvalidRequest, match=said):
        async with administered(tmp_path, monkeypatch, **knobs):
            pass
