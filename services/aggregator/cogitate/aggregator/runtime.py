"""Accepts contemplations, keeps their logs, and lets clients attach.

State owned here: the runners and logs of contemplations in memory, and the journal behind them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator

from cogitate.aggregator import admission
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.event_log import EventLog, JournalWriter
from cogitate.aggregator.gang_client import Channels
from cogitate.aggregator.journal import Journal, Record
from cogitate.aggregator.lease_client import LeaseClient
from cogitate.aggregator.runner import Neighbours, Runner
from cogitate.aggregator.tool_client import ToolClient
from cogitate.kit import telemetry
from cogitate.kit.auth import current_tenant
from cogitate.kit.channels import remaining_s
from cogitate.kit.errors import AlreadyExists, InvalidRequest, NotFound, OutOfRange, Rejected
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import Attr, Span
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from opentelemetry.trace import Span as OtelSpan

# Kept from the caller's deadline for the answer's way back.
DEADLINE_MARGIN_S = 0.05
EXPIRY_CHECK_S = 60.0


class Runtime:
    """All contemplations of this aggregator."""

    def __init__(self, config: AggregatorConfig) -> None:
        self.config = config
        self.draining = False
        self.journal = Journal(config.journal, fsync=config.journal_fsync)
        self._writer = JournalWriter(self.journal)
        self._neighbours = Neighbours(
            config,
            self._writer,
            LeaseClient(config.router_address),
            ToolClient(config.tool_executor_address, config.tool_timeout_s),
            Channels(),
        )
        self._runners: dict[str, Runner] = {}
        self._logs: OrderedDict[str, tuple[str, EventLog]] = OrderedDict()
        self._tasks = Supervisor()
        self._writing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Ends what an earlier process left unfinished, then serves."""
        await asyncio.to_thread(self._fail_unfinished)
        self._neighbours.lease.start()
        self._writing = asyncio.create_task(self._writer.run(), name="journal")
        self._tasks.spawn(self._expire(), name="expire")

    async def wait_idle(self) -> None:
        """Returns when no contemplation runs."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Cancels what runs; every contemplation gets its ending in the journal."""
        for runner in self._runners.values():
            runner.put(m.CancelRequested("REQUESTED"))
        try:
            async with asyncio.timeout(self.config.kill_ack_timeout_s + 1.0):
                await self._idle.wait()
        except TimeoutError:
            pass
        await self._tasks.stop()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._neighbours.lease.stop()
        await self._neighbours.tools.close()
        await self._neighbours.channels.close()
        await asyncio.to_thread(self.journal.close)

    # -- starting ----------------------------------------------------------------------------

    async def accept(self, request: pb.ContemplationSpec) -> tuple[EventLog, Runner | None]:
        """Journals and starts a contemplation; a known request id joins the one it named."""
        tenant = current_tenant()
        if request.request_id:
            known = await asyncio.to_thread(self.journal.find_request, tenant, request.request_id)
            if known is not None:
                if known.spec != _canonical(request):
                    raise AlreadyExists("this request id was used with another request")
                log = await self.log_of(known.id)
                return log, self._runners.get(known.id)
        if self.draining:
            raise Rejected("this aggregator is draining; ask another", retry_after_s=1.0)
        if len(self._runners) >= self.config.max_contemplation_count:
            raise Rejected(
                f"{self.config.max_contemplation_count} contemplations are running already",
                retry_after_s=1.0,
            )
        contemplation_id = str(uuid.uuid4())
        spec = admission.to_spec(request, contemplation_id, self.config)
        return await self._start(request, spec, tenant)

    async def _start(
        self, request: pb.ContemplationSpec, spec: m.Spec, tenant: str
    ) -> tuple[EventLog, Runner]:
        timeout_s = self._timeout_s(request)
        span = telemetry.start_span(
            Span.CONTEMPLATION,
            {
                Attr.CONTEMPLATION_ID: spec.contemplation_id,
                Attr.MODEL: spec.model,
                Attr.AGENT_COUNT: spec.num_agents,
                Attr.STRATEGY: spec.strategy,
                Attr.QUORUM: spec.quorum,
            },
        )
        log = EventLog(spec.contemplation_id)
        event = pb.ContemplationEvent(accepted=_accepted(request, spec, span))
        log.add(event)
        now = event.event_time.ToNanoseconds()
        record = Record(
            spec.contemplation_id, tenant, request.request_id, _canonical(request), now, None, 1,
            None, event.SerializeToString(),
        )  # fmt: skip
        await asyncio.to_thread(self.journal.accept, record)
        log.publish(1)
        runner = Runner(self._neighbours, request, spec, log, span)
        self._runners[spec.contemplation_id] = runner
        self._idle.clear()
        self._remember(tenant, log)
        self._tasks.spawn(self._run(runner, spec, tenant, timeout_s), name="contemplation")
        return log, runner

    async def _run(self, runner: Runner, spec: m.Spec, tenant: str, timeout_s: float) -> None:
        try:
            await runner.run(tenant, timeout_s)
        finally:
            del self._runners[spec.contemplation_id]
            if not self._runners:
                self._idle.set()

    def _timeout_s(self, request: pb.ContemplationSpec) -> float:
        limits = [self.config.max_duration_s]
        if request.budget.HasField("deadline_time"):
            limits.append(request.budget.deadline_time.ToNanoseconds() / 1e9 - time.time())
        remaining = remaining_s()
        if remaining is not None and request.on_disconnect != pb.ON_DISCONNECT_CONTINUE:
            limits.append(remaining - DEADLINE_MARGIN_S)
        if min(limits) <= 0:
            raise InvalidRequest("the deadline is over already", field="spec.budget.deadline_time")
        return min(limits)

    # -- reading -----------------------------------------------------------------------------

    async def log_of(self, contemplation_id: str) -> EventLog:
        """The log, from memory or from the journal. Raises NotFound, also for another tenant."""
        tenant = current_tenant()
        held = self._logs.get(contemplation_id)
        if held is not None and held[0] == tenant:
            return held[1]
        record = await self.record_of(contemplation_id)
        log = EventLog(record.id)
        for raw in await asyncio.to_thread(self.journal.events, record.id, 0):
            log.events.append(pb.ContemplationEvent.FromString(raw))
        log.publish(len(log.events))
        self._remember(tenant, log)
        return log

    async def record_of(self, contemplation_id: str) -> Record:
        """The journal's record. Raises NotFound, also for another tenant: no oracle."""
        record = await asyncio.to_thread(self.journal.get, contemplation_id)
        if record is None or record.tenant != current_tenant():
            raise NotFound("there is no such contemplation", field="contemplation_id")
        return record

    async def attach(
        self, contemplation_id: str, after: int
    ) -> AsyncIterator[pb.ContemplationEvent]:
        """Events after a number. Raises OutOfRange beyond the last."""
        if after < 0:
            raise InvalidRequest(
                "after_event_number cannot be negative", field="after_event_number"
            )
        log = await self.log_of(contemplation_id)
        if after > log.published:
            raise OutOfRange(
                f"the last event is number {log.published}",
                metadata={"last_event_number": str(log.published)},
            )
        return log.read(after)

    async def page(self, size: int, token: str) -> tuple[list[Record], str]:
        """The tenant's contemplations, newest first, and the token of the next page."""
        try:
            before = int(token) if token else time.time_ns() + 1
        except ValueError:
            raise InvalidRequest("the page token is malformed", field="page_token") from None
        records = await asyncio.to_thread(self.journal.page, current_tenant(), size + 1, before)
        more = len(records) > size
        return records[:size], str(records[size - 1].accept_ns) if more else ""

    def runner_of(self, contemplation_id: str) -> Runner | None:
        """The runner, if the contemplation runs here."""
        return self._runners.get(contemplation_id)

    async def forget(self, contemplation_id: str) -> None:
        """Removes an ended contemplation everywhere."""
        self._logs.pop(contemplation_id, None)
        await asyncio.to_thread(self.journal.delete, [contemplation_id])

    def _remember(self, tenant: str, log: EventLog) -> None:
        """Keeps a log in memory; running ones are never dropped."""
        self._logs[log.contemplation_id] = (tenant, log)
        surplus = len(self._logs) - self.config.max_kept_contemplation_count - len(self._runners)
        for id_ in [i for i in self._logs if i not in self._runners][: max(0, surplus)]:
            del self._logs[id_]

    # -- housekeeping ------------------------------------------------------------------------

    def _fail_unfinished(self) -> None:
        """Agents of a dead process are gone; its contemplations still get their one ending."""
        for record in self.journal.unfinished():
            event = pb.ContemplationEvent(
                event_number=record.last_event + 1,
                first_event_number=record.last_event + 1,
                failed=pb.Failed(
                    code=14,
                    reason="UNAVAILABLE",
                    message="the aggregator was restarted; ask again",
                    retryable=True,
                ),
            )
            now = time.time_ns()
            event.event_time.FromNanoseconds(now)
            raw = event.SerializeToString()
            self.journal.append([(record.id, event.event_number, raw)])
            self.journal.end(record.id, now, raw)

    async def _expire(self) -> None:
        while True:
            before = time.time_ns() - int(self.config.journal_retention_s * 1e9)
            expired = await asyncio.to_thread(self.journal.expired, before)
            for id_ in expired:
                self._logs.pop(id_, None)
            await asyncio.to_thread(self.journal.delete, expired)
            await asyncio.sleep(EXPIRY_CHECK_S)


def _canonical(request: pb.ContemplationSpec) -> bytes:
    return request.SerializeToString(deterministic=True)


def _accepted(request: pb.ContemplationSpec, spec: m.Spec, span: OtelSpan) -> pb.Accepted:
    trace_id = format(span.get_span_context().trace_id, "032x")
    return pb.Accepted(
        contemplation_id=spec.contemplation_id,
        model=spec.model,
        strategy=spec.strategy,
        quorum=spec.quorum,
        agent_count=spec.num_agents,
        seed=spec.seed,
        trace=common.TraceRef(trace_id=trace_id),
        effort=common.Effort.Value(f"EFFORT_{spec.effort}"),
        images=admission.images_of(request),
    )
