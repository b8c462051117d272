"""Accepts contemplations, keeps their logs, and lets clients attach.

State owned here: the runners and logs of contemplations in memory, and the journal behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from cogitate.aggregator import admission, course, endings, recording, wire
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.door import Door
from cogitate.aggregator.core.lengths import Lengths
from cogitate.aggregator.embedder import Embedder
from cogitate.aggregator.event_log import EventLog, JournalWriter
from cogitate.aggregator.gang_client import Channels
from cogitate.aggregator.guard import Guard
from cogitate.aggregator.journal import Journal, JournalError, Known, Ownership, Record, Row
from cogitate.aggregator.lease_client import LeaseClient
from cogitate.aggregator.ownership import Watch
from cogitate.aggregator.runner import CLOSE_S, Neighbours, Runner, kind_of
from cogitate.aggregator.sharing import Neighbourhoods
from cogitate.aggregator.sqlite_journal import SqliteJournal
from cogitate.aggregator.tool_client import ToolClient
from cogitate.kit import telemetry
from cogitate.kit.auth import current_tenant
from cogitate.kit.errors import (
    AlreadyExists,
    InvalidRequest,
    NoEndpoint,
    NotFound,
    NotOwner,
    OutOfRange,
    Rejected,
)
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import Attr, Span
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import journal_pb2
from opentelemetry.trace import Span as OtelSpan

logger = logging.getLogger(__name__)

EXPIRY_CHECK_S = 60.0
# Events compared at a time when a contemplation is taken over.
_ALL = 2**31 - 1


class Runtime:
    """All contemplations of this aggregator."""

    def __init__(self, config: AggregatorConfig) -> None:
        self.config = config
        self.draining = False
        self.journal = _journal(config)
        self._ownership = Watch(
            self.journal,
            self._adopt,
            watch_interval_s=config.takeover_interval_s,
            beat_interval_s=config.heartbeat_interval_s,
        )
        self._writer = JournalWriter(
            self.journal, config.journal_timeout_s, self._fenced, config.journal_interval_s
        )
        self._neighbours = Neighbours(
            config,
            self._writer,
            LeaseClient([a for part in config.router_address.split(",") if (a := part.strip())]),
            ToolClient(config.tool_executor_address, config.tool_timeout_s),
            Channels(),
            Neighbourhoods(config),
            Embedder.of(config),
            Guard(config),
            Lengths(),
            Door(config.shed_memory_s),
        )
        self._runners: dict[str, Runner] = {}
        self._logs: OrderedDict[str, tuple[str, EventLog]] = OrderedDict()
        self._tasks = Supervisor()
        self._writing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Serves, and goes on with what dead owners left unfinished."""
        await self.journal.open(self.config.advertise_address or self.config.listen)
        self._neighbours.lease.start()
        self._neighbours.guard.export()
        self._writing = asyncio.create_task(self._writer.run(), name="journal")
        self._tasks.spawn(self._ownership.beat(), name="beat")
        self._tasks.spawn(self._ownership.watch(), name="watch")
        self._tasks.spawn(self._expire(), name="expire")

    async def wait_idle(self) -> None:
        """Returns when no contemplation runs."""
        await self._idle.wait()

    def stop_accepting(self) -> None:
        """Takes no more contemplations, neither new ones nor those of the dead."""
        self.draining = self._ownership.stopped = True

    def shut_down(self) -> None:
        """Ends what runs: answers from what exists, else a failure that says to ask again."""
        for runner in self._runners.values():
            runner.put(m.ShuttingDown())

    @property
    def ending_s(self) -> float:
        """How long ``shut_down`` takes at most."""
        return self.config.kill_ack_timeout_s + CLOSE_S + 0.2

    async def stop(self) -> None:
        """Ends what runs; every contemplation gets its ending in the journal."""
        self.stop_accepting()
        self.shut_down()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.ending_s):
                await self._idle.wait()
        await self._tasks.stop()
        if self._writing is not None:
            self._writer.stop()
            await self._writing
        await self._neighbours.lease.stop()
        await self._neighbours.tools.close()
        await self._neighbours.channels.close()
        self._neighbours.embedder.close()
        await self.journal.close()

    # -- starting ----------------------------------------------------------------------------

    async def accept(self, request: pb.ContemplationSpec) -> tuple[EventLog, Runner | None]:
        """Journals and starts a contemplation; a known request id joins the one it named."""
        if (known := await self._known(request)) is not None:
            return known
        self._check_room()
        timeout_s = min(self.config.max_duration_s, admission.remaining_s(request))
        spec = admission.to_spec(request, str(uuid.uuid4()), self.config)
        self._check_door(request, spec, timeout_s)
        await self._check_tools(request)
        tenant = current_tenant()
        runner = self._register(request, spec, tenant)
        # A caller that leaves while the journal is written must not leave half a contemplation.
        starting = self._tasks.spawn(self._start(runner, request, tenant, timeout_s), name="accept")
        try:
            refusal = await asyncio.shield(starting)
        except asyncio.CancelledError:
            runner.left()
            raise
        if refusal is None:
            return runner.events, runner
        if isinstance(refusal, Known):
            # The same request id came twice at once, and the other was faster.
            if (known := await self._known(request)) is not None:
                return known
        raise _unwritable()

    async def _known(self, request: pb.ContemplationSpec) -> tuple[EventLog, Runner | None] | None:
        """The contemplation this request id named before. Raises AlreadyExists."""
        if not request.request_id:
            return None
        tenant = current_tenant()
        record = await self.journal.find_request(tenant, request.request_id)
        if record is None:
            return None
        if _asked(pb.ContemplationSpec.FromString(record.spec)) != _asked(request):
            raise AlreadyExists("this request id was used with another request", field="request_id")
        return await self.log_of(record.id), self._runners.get(record.id)

    async def _check_tools(self, request: pb.ContemplationSpec) -> None:
        """Names nobody knows are a mistake of the request, better told now than by every agent."""
        tools = self._neighbours.tools
        asked = admission.allowed_tools(request) if request.allowed_tools else ()
        if missing := await tools.missing(asked):
            raise InvalidRequest(
                f"unknown tool {missing[0]!r}; there are: {', '.join(sorted(tools.known))}",
                field="spec.allowed_tools",
            )

    def _check_room(self) -> None:
        if self.draining:
            raise Rejected("this aggregator is draining; ask another", retry_after_s=1.0)
        if self._writer.failing:
            raise _unwritable()
        if len(self._runners) >= self.config.max_contemplation_count:
            raise Rejected(
                f"{self.config.max_contemplation_count} contemplations are running already",
                retry_after_s=1.0,
            )

    def _check_door(self, request: pb.ContemplationSpec, spec: m.Spec, timeout_s: float) -> None:
        """Nothing is spent on what the router would refuse: it just refused one like it."""
        agents = spec.initial_agents or spec.num_agents
        kind, now = kind_of(request, spec, current_tenant()), time.monotonic()
        if told := self._neighbours.door.refusal(kind, agents, timeout_s, now):
            message, retry_after_s = told
            raise Rejected(message, retry_after_s=retry_after_s)

    def _register(self, request: pb.ContemplationSpec, spec: m.Spec, tenant: str) -> Runner:
        """Takes a place among those that run, before anything is awaited."""
        span = telemetry.start_span(
            Span.CONTEMPLATION,
            {
                Attr.CONTEMPLATION_ID: spec.contemplation_id,
                Attr.MODEL: spec.model,
                Attr.AGENT_COUNT: spec.num_agents,
                Attr.STRATEGY: spec.strategy,
                Attr.QUORUM: spec.quorum,
                Attr.PROVIDER: self.config.provider,
            },
        )
        now_ns = time.time_ns()
        accepted = pb.ContemplationEvent(
            event_number=1, first_event_number=1, accepted=_accepted(request, spec, span)
        )
        accepted.event_time.FromNanoseconds(now_ns)
        log = EventLog(spec.contemplation_id, self.journal.events)
        log.add(accepted)
        runner = Runner(self._neighbours, course.Course(spec, request, now_ns), log, span)
        self._hold(runner, tenant)
        return runner

    def _hold(self, runner: Runner, tenant: str) -> None:
        self._runners[runner.events.contemplation_id] = runner
        self._idle.clear()
        self._remember(tenant, runner.events)

    def _unregister(self, runner: Runner) -> None:
        id_ = runner.events.contemplation_id
        if self._runners.get(id_) is runner:  # not one that took it back
            del self._runners[id_]
        if not self._runners:
            self._idle.set()

    async def _start(
        self, runner: Runner, request: pb.ContemplationSpec, tenant: str, timeout_s: float
    ) -> JournalError | None:
        """Journals the acceptance and lets it run; returns what the journal said against it."""
        log = runner.events
        accepted = log.held[0]
        accept_ns = accepted.event_time.ToNanoseconds()
        acceptance = journal_pb2.JournalAcceptance(
            spec_json=recording.to_json(runner.spec),
            # Its own spans may die with this process: an heir's are the asker's children, too.
            traceparent=telemetry.asking_traceparent(),
        )
        acceptance.deadline_time.FromNanoseconds(accept_ns + int(timeout_s * 1e9))
        record = Record(
            id=log.contemplation_id,
            tenant=tenant,
            request_id=request.request_id,
            spec=_canonical(request),
            acceptance=acceptance.SerializeToString(),
            accept_ns=accept_ns,
            accepted=accepted.SerializeToString(),
        )
        try:
            await self.journal.accept(record)
        except JournalError as error:
            runner.span.end()
            self._logs.pop(record.id, None)
            self._unregister(runner)
            return error
        log.publish(1)
        self._tasks.spawn(self._run(runner, tenant, timeout_s), name="contemplation")
        return None

    async def _run(self, runner: Runner, tenant: str, timeout_s: float) -> None:
        try:
            await runner.run(tenant, timeout_s)
        finally:
            self._unregister(runner)

    # -- taking over -------------------------------------------------------------------------

    async def _adopt(self, record: Record) -> None:
        """Goes on with a contemplation that was claimed, where its journal ends."""
        try:
            entries = await self.journal.entries(record.id)
            replayed = await asyncio.to_thread(course.replay, record, entries)
            await self._compare(replayed, record)
        except JournalError:
            raise
        except Exception as error:
            # Whatever is wrong with it, it gets its one ending.
            logger.error(
                "contemplation %s cannot be continued: %s", record.id, telemetry.stack_of(error)
            )
            await self._end_lost(record)
            return
        acceptance = journal_pb2.JournalAcceptance.FromString(record.acceptance)
        span = telemetry.start_span(
            Span.CONTEMPLATION,
            {
                Attr.CONTEMPLATION_ID: record.id,
                Attr.ATTEMPT: record.epoch,
                Attr.PROVIDER: self.config.provider,
            },
            parent=acceptance.traceparent or None,
        )
        log = EventLog(record.id, self.journal.events, record.last_event)
        runner = Runner(self._neighbours, replayed.course, log, span, record.epoch)
        self._hold(runner, record.tenant)
        left_s = acceptance.deadline_time.ToNanoseconds() / 1e9 - time.time()
        self._tasks.spawn(self._run(runner, record.tenant, max(0.0, left_s)), name="contemplation")

    async def _compare(self, replayed: course.Replayed, record: Record) -> None:
        """Nothing a client may have seen is told another way. Raises Damaged."""
        raw = await self.journal.events(record.id, 0, _ALL)
        journalled = [wire.to_journalled(event) for event in raw]
        if number := course.first_difference(replayed.events, journalled):
            raise wire.Damaged(f"a replay differs from the journal from event {number} on")

    async def _end_lost(self, record: Record) -> None:
        event = endings.lost()
        event.event_number = event.first_event_number = record.last_event + 1
        now_ns = time.time_ns()
        event.event_time.FromNanoseconds(now_ns)
        events = [(event.event_number, event.SerializeToString())]
        await self.journal.append([Row(record.id, record.epoch, 0, b"", events, now_ns)])

    def _fenced(self, lost: Ownership) -> None:
        """Another aggregator took it over: whoever asks here is sent there."""
        contemplation_id, epoch = lost
        runner = self._runners.get(contemplation_id)
        if runner is not None and runner.epoch == epoch:
            logger.warning("contemplation %s was taken over by another", contemplation_id)
            self._logs.pop(contemplation_id, None)
            runner.fence()

    # -- reading -----------------------------------------------------------------------------

    async def log_of(self, contemplation_id: str) -> EventLog:
        """The log, from memory or from the journal. Raises NotFound, also for another tenant."""
        tenant = current_tenant()
        held = self._logs.get(contemplation_id)
        if held is not None and held[0] == tenant and not held[1].fenced:
            return held[1]
        record = await self.record_of(contemplation_id)
        if record.ending is None:
            owner = await self.journal.address_of(record.owner)
            raise NotOwner(
                "another aggregator has this contemplation, or will have it soon",
                metadata={"owner": owner} if owner else None,
                retry_after_s=self.config.takeover_interval_s,
            )
        log = EventLog.ended_with(record.id, self.journal.events, record.last_event)
        self._remember(tenant, log)
        return log

    async def record_of(self, contemplation_id: str) -> Record:
        """The journal's record. Raises NotFound, also for another tenant's: no oracle."""
        record = await self.journal.get(contemplation_id)
        if record is None or record.tenant != current_tenant():
            raise NotFound("there is no such contemplation", field="contemplation_id")
        return record

    async def attach(
        self, contemplation_id: str, after: int
    ) -> AsyncIterator[pb.ContemplationEvent]:
        """Events after a number. Raises NotFound, and OutOfRange beyond the last."""
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
        before = (2**63 - 1, "")
        if token:
            accept_ns, _, id_ = token.partition("-")
            if not (accept_ns.isascii() and accept_ns.isdigit() and len(accept_ns) < 20):
                raise InvalidRequest("the page token is malformed", field="page_token")
            before = (min(int(accept_ns), 2**63 - 1), id_)
        records = await self.journal.page(current_tenant(), size + 1, before)
        last = records[size - 1] if len(records) > size else None
        return records[:size], f"{last.accept_ns}-{last.id}" if last else ""

    def runner_of(self, contemplation_id: str) -> Runner | None:
        """The runner, if the contemplation runs here."""
        return self._runners.get(contemplation_id)

    @contextmanager
    def listening(self, contemplation_id: str) -> Iterator[None]:
        """While a client reads a contemplation that runs here."""
        runner = self._runners.get(contemplation_id)
        with runner.listening() if runner is not None else contextlib.nullcontext():
            yield

    async def forget(self, contemplation_id: str) -> None:
        """Removes an ended contemplation everywhere."""
        self._logs.pop(contemplation_id, None)
        await self.journal.delete([contemplation_id])

    def _remember(self, tenant: str, log: EventLog) -> None:
        """Keeps a log in memory; running and unwritten ones are never dropped."""
        self._logs[log.contemplation_id] = (tenant, log)
        if self._writer.failing:
            return
        running = self._runners
        ended = [i for i, (_, held) in self._logs.items() if held.ended and i not in running]
        for id_ in ended[: max(0, len(ended) - self.config.max_kept_contemplation_count)]:
            del self._logs[id_]

    # -- housekeeping ------------------------------------------------------------------------

    async def _expire(self) -> None:
        while True:
            before = time.time_ns() - int(self.config.journal_retention_s * 1e9)
            try:
                expired = await self.journal.expired(before)
                await self.journal.delete(expired)
            except JournalError:
                expired = []  # next time
            for id_ in expired:
                self._logs.pop(id_, None)
            await asyncio.sleep(EXPIRY_CHECK_S)


def _journal(config: AggregatorConfig) -> Journal:
    """The journal the configuration names. Raises OSError if it cannot be had."""
    if not config.journal.startswith(("nats://", "tls://")):
        return SqliteJournal(
            config.journal, fsync=config.journal_fsync, hung_s=config.owner_timeout_s
        )
    try:
        from cogitate.aggregator.nats_journal import NatsJournal
    except ModuleNotFoundError:
        raise OSError(
            "a journal in NATS needs nats-py: pip install 'cogitate[aggregator,nats]'"
        ) from None
    return NatsJournal(
        config.journal, hung_s=config.owner_timeout_s, replicas=config.journal_replicas
    )


def _unwritable() -> NoEndpoint:
    return NoEndpoint(
        "the journal cannot be written just now; try again", reason="UNAVAILABLE", retry_after_s=1.0
    )


def _canonical(request: pb.ContemplationSpec) -> bytes:
    return request.SerializeToString(deterministic=True)


def _asked(request: pb.ContemplationSpec) -> bytes:
    """What makes a request the same: not when it ends, which a caller counts anew each time."""
    same = pb.ContemplationSpec()
    same.CopyFrom(request)
    same.budget.ClearField("deadline_time")
    return _canonical(same)


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
