"""Whose key it is, and what that tenant may: models, tools, providers, how much at once.

Invariants:
1. A tenant is never let do what its grant leaves out (test_gateway_tenants: what_is_left_out).
2. No more contemplations run at once than granted, and none is counted after it ended
   (test_gateway_tenants: concurrency).
3. Of a rate of r a minute no more than r are let in at once, nor r + r·t/60 in t seconds
   (test_gateway_tenants: rate).

All limits hold for one gateway; several share none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cogitate.gateway.core.spec import Spec
from cogitate.kit.errors import InvalidRequest, PermissionDenied, Rejected

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Tenants that asked nothing for so long begin anew; their buckets are full by then.
FORGET_S = 120.0


@dataclass(frozen=True)
class Grant:
    """What one tenant may; an empty set is everything, 0 is no limit."""

    tenant: str
    models: frozenset[str] = frozenset()
    tools: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    max_contemplation_count: int = 0
    max_requests_per_minute: int = 0


def check_name(tenant: str) -> None:
    """Raises InvalidRequest if this cannot be a tenant's name."""
    if not NAME.fullmatch(tenant):
        raise InvalidRequest(
            "a tenant's name is 1 to 64 letters, digits, dots, dashes or underscores",
            field="tenant",
        )


def check(spec: Spec, grant: Grant) -> None:
    """Raises PermissionDenied naming what the tenant may not ask for; `spec.model` is filled in."""
    if grant.models and spec.model not in grant.models:
        raise _denied("model", spec.model, grant.models, "spec.model")
    for tool in spec.allowed_tools:
        if grant.tools and tool not in grant.tools | {"none"}:
            raise _denied("tool", tool, grant.tools, "spec.allowed_tools")
    for provider in spec.constraints.providers:
        if grant.providers and provider not in grant.providers:
            raise _denied("provider", provider, grant.providers, "spec.constraints.providers")


def _denied(what: str, asked: str, granted: Iterable[str], where: str) -> PermissionDenied:
    names = ", ".join(sorted(granted))
    return PermissionDenied(
        f"this key may not use the {what} {asked[:64]}; it may use: {names}", field=where
    )


@dataclass(slots=True)
class _Use:
    """What a tenant uses now."""

    running: int = 0
    tokens: float = 0.0  # requests it may make at once
    seen_s: float = 0.0


@dataclass
class Allowances:
    """Counts what tenants use. Times are monotonic seconds, given by the caller."""

    _uses: dict[str, _Use] = field(default_factory=dict)

    def take_request(self, grant: Grant, now_s: float) -> None:
        """Counts a request. Raises Rejected with the time until there is room for one."""
        if not (rate := grant.max_requests_per_minute):
            return
        use = self._use(grant, now_s)
        use.tokens = min(rate, use.tokens + max(0.0, now_s - use.seen_s) * rate / 60)
        use.seen_s = now_s
        if use.tokens < 1:
            raise _limited(
                f"this key may make {rate} requests a minute", (1 - use.tokens) * 60 / rate
            )
        use.tokens -= 1

    def begin(self, grant: Grant, now_s: float) -> None:
        """Counts a contemplation that begins; `end` must follow. Raises Rejected."""
        use = self._use(grant, now_s)
        most = grant.max_contemplation_count
        if most and use.running >= most:
            raise _limited(f"this key may have {most} contemplations at once", None)
        use.running += 1

    def end(self, grant: Grant) -> None:
        """A contemplation that began has ended."""
        self._uses[grant.tenant].running -= 1

    def running(self, tenant: str) -> int:
        """How many contemplations of a tenant run."""
        return self._uses[tenant].running if tenant in self._uses else 0

    def _use(self, grant: Grant, now_s: float) -> _Use:
        if grant.tenant not in self._uses:
            idle = [
                name
                for name, use in self._uses.items()
                if not use.running and now_s - use.seen_s > FORGET_S
            ]
            for name in idle:
                del self._uses[name]
            full = float(grant.max_requests_per_minute)
            self._uses[grant.tenant] = _Use(tokens=full, seen_s=now_s)
        return self._uses[grant.tenant]


def _limited(message: str, retry_after_s: float | None) -> Rejected:
    return Rejected(message, reason="TENANT_LIMIT", retry_after_s=retry_after_s)
