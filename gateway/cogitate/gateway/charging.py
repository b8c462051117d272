"""Charges tenants for contemplations, by the counters of how each ended.

A stream that ends with its contemplation is booked at once. Any other (the client left, the gateway
was killed, it waits for tools) is asked after until it has ended, by every gateway of the file.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cogitate.gateway.accounts import Accounts, Open
from cogitate.gateway.core.budgets import Amount
from cogitate.kit import auth, tasks
from cogitate.kit.errors import CogitateError, NotFound
from cogitate.v1 import contemplation_service_pb2 as pb2

logger = logging.getLogger(__name__)

Ask = Callable[[str, Any], Awaitable[Any]]

# When a contemplation whose stream is gone is asked after, and how often all are after that.
SOON_S: Final = (0.1, 0.5, 2.0)
SWEEP_S: Final = 15.0
# A question nobody has heard of for so long never became a contemplation.
LOST_S: Final = 60.0
_PAGE: Final = 1000


class Charge:
    """One question on its way; `id` and `last` are what was heard of it.

    `sent` says that an aggregator may have it.
    """

    def __init__(self, charging: Charging, tenant: str, request_id: str, *, is_new: bool) -> None:
        self._charging, self.tenant, self.request_id = charging, tenant, request_id
        self._is_new = is_new
        self.id, self.last, self.sent = "", b"", False

    def accepted(self, id: str) -> None:
        """It became this contemplation."""
        self.id = id
        if self._is_new:
            self._charging.accounts.accepted(self.tenant, self.request_id, id)

    def refused(self, error: CogitateError) -> None:
        """It was answered with an error; one that leaves no doubt that nothing runs ends it."""
        self.sent = self.sent and error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")

    def leave(self) -> None:
        """The stream is over, however it ended."""
        never_was = self._is_new and not self.sent and not self.id
        self._charging.leave(self, never_was=never_was)


class Charging:
    """Owns who is streaming here, and what is asked after."""

    def __init__(self, accounts: Accounts, ask: Ask) -> None:
        """``ask`` makes a short call of the contemplation service, for the current tenant."""
        self.accounts, self._ask = accounts, ask
        self._streaming: set[tuple[str, str]] = set()
        self._beside = tasks.Supervisor()

    def start(self) -> None:
        """Begins to look after what others left open."""
        self._beside.spawn(self._sweep(), name="charging")

    async def stop(self) -> None:
        """Ends it; what is open stays in the file."""
        await self._beside.stop()

    def begin(self, tenant: str, spec: pb2.ContemplationSpec) -> Charge:
        """Grants a question its part of the tenant's budget, and binds it to that.

        Raises BudgetExceeded, Rejected, AlreadyExists.
        """
        spec.request_id = spec.request_id or str(uuid.uuid4())
        asked = Amount(spec.budget.max_tokens, spec.budget.max_cost_micro_usd)
        granted, is_new = self.accounts.begin(tenant, spec.request_id, asked)
        if granted != asked:
            spec.budget.max_tokens = granted.tokens
            spec.budget.max_cost_micro_usd = granted.micro_usd
        self._streaming.add((tenant, spec.request_id))
        return Charge(self, tenant, spec.request_id, is_new=is_new)

    def leave(self, charge: Charge, *, never_was: bool) -> None:
        """Books what is known by now, and asks after the rest."""
        tenant, request_id = charge.tenant, charge.request_id
        self._streaming.discard((tenant, request_id))
        spent = spent_by(pb2.ContemplateResponse.FromString(charge.last).event)
        if spent is None and not never_was:
            self._beside.spawn(self._soon(tenant, request_id), name="charge")
            return
        try:
            if spent is None:
                self.accounts.release(tenant, request_id)
            else:
                self.accounts.book(tenant, request_id, spent)
        except sqlite3.Error as error:
            logger.warning("a contemplation is booked later: %s", error)

    async def _soon(self, tenant: str, request_id: str) -> None:
        for delay_s in SOON_S:
            await asyncio.sleep(delay_s)
            one = self.accounts.find_open(tenant, request_id)
            if one is None or await self._settle(one):
                return

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.accounts.forget_old()
                for one in self.accounts.open(older_s=SWEEP_S):
                    if (one.tenant, one.request_id) not in self._streaming:
                        await self._settle(one)
            except sqlite3.Error as error:
                logger.warning("what tenants spent is booked later: %s", error)

    async def _settle(self, one: Open) -> bool:
        """Books a contemplation if it has ended; says whether it is open no more."""
        with auth.tenant_scope(one.tenant):
            try:
                id = one.id or await self._find(one)
                if not id:
                    if time.time() - one.begun_s > LOST_S:
                        self.accounts.release(one.tenant, one.request_id)
                    return False
                request = pb2.GetContemplationRequest(contemplation_id=id)
                found: pb2.GetContemplationResponse = await self._ask("GetContemplation", request)
                spent = spent_by(found.ending)
            except NotFound:
                # Deleted, or older than the journal keeps: then what it was granted is spent.
                spent = one.granted
            except CogitateError as error:
                logger.debug("a contemplation cannot be asked after: %s", error.reason)
                return False
        if spent is None:
            return False
        self.accounts.book(one.tenant, one.request_id, spent)
        return True

    async def _find(self, one: Open) -> str:
        """Returns the contemplation that a question became whose stream ended before it said so."""
        request = pb2.ListContemplationsRequest(page_size=_PAGE)
        listed: pb2.ListContemplationsResponse = await self._ask("ListContemplations", request)
        for summary in listed.contemplations:
            accepted_s = summary.accept_time.seconds
            if accepted_s and not -5 <= accepted_s - one.begun_s <= LOST_S:
                continue
            get = pb2.GetContemplationRequest(contemplation_id=summary.contemplation_id)
            try:
                found: pb2.GetContemplationResponse = await self._ask("GetContemplation", get)
            except NotFound:
                continue
            if found.spec.request_id == one.request_id:
                self.accounts.accepted(one.tenant, one.request_id, summary.contemplation_id)
                return summary.contemplation_id
        return ""


def spent_by(ending: pb2.ContemplationEvent) -> Amount | None:
    """Returns what a contemplation cost by its last event, or None if that is no ending."""
    match ending.WhichOneof("event"):
        case "verdict":
            ledger = ending.verdict.certificate.ledger
        case "failed":
            ledger = ending.failed.ledger
        case "cancelled":
            ledger = ending.cancelled.ledger
        case _:
            return None
    return Amount(ledger.generated_token_count, ledger.cost_micro_usd)
