"""The operator's listener: `AdminService`, at a port of its own and with credentials of its own."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
from cogitate.gateway import wire
from cogitate.gateway.accounts import Accounts
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core.budgets import Budget, Use, renews
from cogitate.gateway.core.tenants import Allowances, Grant, check_name
from cogitate.gateway.doors import Doors, bearer
from cogitate.gateway.keys import PREFIX, Key, KeyStore
from cogitate.kit import access, identity, listening
from cogitate.kit.channels import server_options
from cogitate.kit.errors import InvalidRequest, PermissionDenied, Unauthenticated
from cogitate.kit.interceptors import server_interceptors
from cogitate.kit.orca import ServerLoad
from cogitate.v1 import admin_service_pb2 as pb2
from cogitate.v1 import admin_service_pb2_grpc as pb2_grpc

MAX_RPCS: Final = 16
LEAST_KEY_BYTES: Final = 32


class AdminListener:
    """Serves `AdminService` at `admin_listen`; `address` is where, once bound."""

    def __init__(self, config: GatewayConfig, doors: Doors, drain: Callable[[], None]) -> None:
        """Binds. Raises InvalidRequest if nobody could be told from anybody else, and OSError."""
        if doors.keys is None or doors.accounts is None:
            raise InvalidRequest("admin_listen needs api_keys, the file that it administers")
        mine = identity.current()
        hashed = _key_hash(config.admin_key_file) if config.admin_key_file else None
        if mine is None and hashed is None:
            raise InvalidRequest("admin_listen needs admin_key_file, or tls_dir for certificates")
        by_name = access.by_certificate(mine.papers().trust_domain) if mine is not None else None

        def allow(context: Any, method: str) -> None:
            if by_name is not None:
                by_name(context, method)
            if hashed is not None:
                _check_key(context, hashed)

        # Nothing else is served here: no health, no reflection, nothing of tenants'.
        self._server = grpc.aio.server(
            interceptors=server_interceptors(config, ServerLoad(config), lambda: True, allow),
            options=server_options(config),
            maximum_concurrent_rpcs=MAX_RPCS,
        )
        servicer = Admin(doors.keys, doors.accounts, doors.allowances, drain)
        pb2_grpc.add_AdminServiceServicer_to_server(servicer, self._server)
        self.address = listening.bind(self._server, config.admin_listen)

    async def start(self) -> None:
        """Begins to accept."""
        await self._server.start()

    async def stop(self) -> None:
        """Ends what runs."""
        await self._server.stop(None)


class Admin(pb2_grpc.AdminServiceServicer):
    """Owns whether a drain was asked for; the files are the rest of the state."""

    def __init__(
        self,
        keys: KeyStore,
        accounts: Accounts,
        allowances: Allowances,
        drain: Callable[[], None],
    ) -> None:
        self._keys, self._accounts = keys, accounts
        self._allowances, self._drain = allowances, drain
        self._draining = False

    async def CreateKey(self, request: pb2.CreateKeyRequest, context: Any) -> pb2.CreateKeyResponse:
        grant = request.grant
        if min(grant.max_contemplation_count, grant.max_requests_per_minute_count) < 0:
            raise InvalidRequest("a limit must not be negative", field="grant")
        expires_s = None
        if request.HasField("expire_time"):
            expires_s = request.expire_time.seconds + request.expire_time.nanos / 1e9
            if expires_s <= time.time():
                raise InvalidRequest("expire_time must be in the future", field="expire_time")
        granted = Grant(
            grant.tenant,
            models=frozenset(grant.models),
            tools=frozenset(grant.tools),
            providers=frozenset(grant.providers),
            max_contemplation_count=grant.max_contemplation_count,
            max_requests_per_minute=grant.max_requests_per_minute_count,
        )
        key, text = self._keys.create(granted, expires_s=expires_s)
        return pb2.CreateKeyResponse(key=_key(key), key_text=text)

    async def ListKeys(self, request: pb2.ListKeysRequest, context: Any) -> pb2.ListKeysResponse:
        return pb2.ListKeysResponse(keys=map(_key, self._keys.keys()))

    async def RevokeKey(self, request: pb2.RevokeKeyRequest, context: Any) -> pb2.RevokeKeyResponse:
        self._keys.revoke(request.key_id)
        return pb2.RevokeKeyResponse()

    async def ListTenants(
        self, request: pb2.ListTenantsRequest, context: Any
    ) -> pb2.ListTenantsResponse:
        names = [request.tenant] if request.tenant else self._accounts.tenants()
        return pb2.ListTenantsResponse(tenants=map(self._account, names))

    async def SetBudget(self, request: pb2.SetBudgetRequest, context: Any) -> pb2.SetBudgetResponse:
        asked = request.budget
        budget = Budget(
            asked.tokens_per_day_count,
            asked.tokens_per_month_count,
            asked.micro_usd_per_day,
            asked.micro_usd_per_month,
        )
        self._accounts.set_budget(request.tenant, budget)
        return pb2.SetBudgetResponse(account=self._account(request.tenant))

    async def DrainGateway(
        self, request: pb2.DrainGatewayRequest, context: Any
    ) -> pb2.DrainGatewayResponse:
        if not self._draining:  # a second signal would cut off what runs
            self._draining = True
            self._drain()
        return pb2.DrainGatewayResponse()

    def _account(self, tenant: str) -> pb2.TenantAccount:
        check_name(tenant)
        budget, uses = self._accounts.budget(tenant), self._accounts.use(tenant)
        now_s = time.time()
        return pb2.TenantAccount(
            tenant=tenant,
            budget=pb2.TenantBudget(
                tokens_per_day_count=budget.tokens_per_day,
                tokens_per_month_count=budget.tokens_per_month,
                micro_usd_per_day=budget.micro_usd_per_day,
                micro_usd_per_month=budget.micro_usd_per_month,
            ),
            day=_use(uses["day"], renews("day", now_s)),
            month=_use(uses["month"], renews("month", now_s)),
            running_contemplation_count=self._allowances.running(tenant),
        )


def _use(use: Use, renews_at: datetime) -> pb2.PeriodUse:
    told = pb2.PeriodUse(
        spent_token_count=use.spent.tokens,
        spent_micro_usd=use.spent.micro_usd,
        granted_token_count=use.granted.tokens,
        granted_micro_usd=use.granted.micro_usd,
        contemplation_count=use.contemplations,
    )
    wire.set_seconds(told.renew_time, renews_at.timestamp())
    return told


def _key(key: Key) -> pb2.KeyDescription:
    grant = key.grant
    told = pb2.KeyDescription(
        key_id=key.id,
        grant=pb2.KeyGrant(
            tenant=grant.tenant,
            models=sorted(grant.models),
            tools=sorted(grant.tools),
            providers=sorted(grant.providers),
            max_contemplation_count=grant.max_contemplation_count,
            max_requests_per_minute_count=grant.max_requests_per_minute,
        ),
    )
    wire.set_seconds(told.create_time, key.created_s)
    if key.expires_s is not None:
        wire.set_seconds(told.expire_time, key.expires_s)
    if key.revoked_s is not None:
        wire.set_seconds(told.revoke_time, key.revoked_s)
    return told


def _key_hash(path: str) -> bytes:
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise InvalidRequest(f"admin_key_file cannot be read: {error.strerror}") from None
    if len(key) < LEAST_KEY_BYTES:
        raise InvalidRequest(f"the key in admin_key_file needs {LEAST_KEY_BYTES} bytes at least")
    return hashlib.sha256(key).digest()


def _check_key(context: Any, hashed: bytes) -> None:
    found = [v for k, v in context.invocation_metadata() or () if k == "authorization"]
    text = bearer(str(found[0])) if len(found) == 1 else ""
    given = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    if hmac.compare_digest(given, hashed):
        return
    if text.startswith(PREFIX):
        raise PermissionDenied("a tenant's key opens nothing here")
    raise Unauthenticated("the operator's key is needed, as `Authorization: Bearer …`")
