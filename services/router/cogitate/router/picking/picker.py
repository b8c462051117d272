"""Picks an endpoint as an aggregator would get one: by a lease, which ends by itself.

Nobody tells a picker when a request begins or ends. So its lease lasts for `picker_settle_s`, until
which the endpoint's own reports should contain it; what runs longer is seen in those alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

from cogitate.kit.errors import CogitateError, InvalidRequest, NoEndpoint, NotFound, Rejected
from cogitate.router.core.types import (
    Constraints,
    Declare,
    Denied,
    GangNeed,
    Granted,
    Queued,
    Terms,
)
from cogitate.router.holders import Said
from cogitate.router.picking.asking import MODEL, Ask, is_ip_and_port
from cogitate.router.runtime import Runtime

_SWEEP_S = 0.1
_EVICTED = frozenset({"REJECTED", "EVICTED"})


class Picker:
    """A holder of leases for requests that Envoy sends on. Belongs to the router's loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.number = runtime.number()
        self._runtime = runtime
        self._ids = itertools.count(1)
        self._asked: dict[str, asyncio.Future[Granted | Denied]] = {}
        self._granted: deque[tuple[float, str]] = deque()  # when each ends, in order
        self._is_open = False

    async def run(self) -> None:
        """Takes questions, and ends the leases of picks, until it is cancelled."""
        clock = self._runtime.clock
        with self._runtime.holding(self):
            self._is_open = True
            try:
                while True:
                    while self._granted and self._granted[0][0] <= clock.monotonic():
                        self._runtime.release(self._granted.popleft()[1], self, ran=False)
                    await clock.sleep(_SWEEP_S)
            finally:
                self._is_open = False

    async def pick(self, ask: Ask) -> tuple[str, ...]:
        """Returns the address to use and those to fall back to, best first.

        Waits in the queue as long as `picker_wait_s`; cancelled, it holds nothing. Raises NotFound,
        InvalidRequest, NoEndpoint where nothing may serve it, Rejected where all that may are full.
        """
        if not self._is_open:
            raise NoEndpoint("the router is not serving; ask another one", reason="UNAVAILABLE")
        command = self._declare(ask)
        id = command.contemplation_id
        answer = self._asked[id] = asyncio.get_running_loop().create_future()
        try:
            self._runtime.place(command, self, ask.traceparent)
            said = await answer
        finally:
            del self._asked[id]
            if answer.done() and not answer.cancelled() and isinstance(answer.result(), Granted):
                ends_s = self._runtime.clock.monotonic() + self._runtime.config.picker_settle_s
                self._granted.append((ends_s, id))
            else:
                self._runtime.release(id, self)
        if isinstance(said, Denied):
            raise self._error(said, ask)
        return self._addresses(said)

    def tell(self, said: Said) -> bool:
        """Hands an answer to who waits for it. Places in the queue and news are of no use here."""
        if not isinstance(said, Granted | Denied):
            return isinstance(said, Queued)
        answer = self._asked.get(said.contemplation_id)
        if answer is None or answer.done():
            return False
        answer.set_result(said)
        return True

    def _declare(self, ask: Ask) -> Declare:
        config, entries = self._runtime.config, self._runtime.desk.fleet.entries
        if ask.subset is not None and not any(
            e.description.address in ask.subset for e in entries.values()
        ):
            raise NoEndpoint(
                f"none of the {len(ask.subset)} endpoints in question reports to this router",
                retry_after_s=config.retry_delay_s,
            )
        excluded = (
            endpoint_id
            for endpoint_id, entry in entries.items()
            if not is_ip_and_port(entry.description.address)
            or (ask.subset is not None and entry.description.address not in ask.subset)
        )
        need = GangNeed(
            contemplation_id=f"pick:{self.number}:{next(self._ids)}",
            model=ask.model or self._only_model(),
            agent_ids=tuple(range(ask.agents)),
            prefix_tokens=ask.prompt_tokens,
            tokens_per_agent=ask.tokens_per_agent,
            prefix_digest=ask.prefix_digest,
            max_fallbacks=config.picker_fallback_count,
        )
        return Declare(
            contemplation_id=need.contemplation_id,
            attempt=1,
            gangs=(need,),
            terms=Terms(Constraints(excluded=frozenset(excluded))),
            tenant=ask.tenant,
            max_wait_s=config.picker_wait_s,
        )

    def _only_model(self) -> str:
        entries = self._runtime.desk.fleet.entries.values()
        models = {model for entry in entries for model in entry.description.models}
        if len(models) > 1:
            raise InvalidRequest(
                f"several models are served: name one in the header {MODEL}", field=MODEL
            )
        if not models:
            raise NoEndpoint(
                "no endpoint reports to this router",
                retry_after_s=self._runtime.config.retry_delay_s,
            )
        return models.pop()

    def _addresses(self, granted: Granted) -> tuple[str, ...]:
        (gang,) = granted.gangs
        entries, others = self._runtime.desk.fleet.entries, gang.share.fallbacks
        known = (entries[e].description.address for e in others if e in entries)
        return (gang.description.address, *known)

    def _error(self, denied: Denied, ask: Ask) -> CogitateError:
        retry_s = denied.retry_after_s or self._runtime.config.retry_delay_s
        details = {
            "metadata": {"model": ask.model[:64], "agents": str(ask.agents)},
            "retry_after_s": retry_s if denied.retryable else None,
        }
        if denied.reason in _EVICTED or denied.is_full:
            reason = denied.reason if denied.reason in _EVICTED else None
            return Rejected(denied.message, reason=reason, **details)  # type: ignore[arg-type]
        if denied.reason == "UNKNOWN_MODEL":
            return NotFound(denied.message, reason=denied.reason, **details)  # type: ignore[arg-type]
        if denied.reason == "INVALID_REQUEST":
            return InvalidRequest(denied.message, **details)  # type: ignore[arg-type]
        return NoEndpoint(denied.message, **details)  # type: ignore[arg-type]
