"""One contemplation's shell: turns effects into calls and what comes back into inputs."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
from cogitate.aggregator import endings, recording, wire
from cogitate.aggregator.agent_spans import AgentSpans
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.door import Door, Kind
from cogitate.aggregator.core.lengths import Lengths
from cogitate.aggregator.core.races import HEDGED
from cogitate.aggregator.course import Course, Turn
from cogitate.aggregator.embedder import Embedder
from cogitate.aggregator.event_log import EventLog, JournalWriter, is_ending
from cogitate.aggregator.gang_client import Channels, GangClient
from cogitate.aggregator.guard import Guard
from cogitate.aggregator.journal import Row
from cogitate.aggregator.lease_client import LeaseClient
from cogitate.aggregator.orders import Orders
from cogitate.aggregator.sharing import Neighbourhoods, Sharing
from cogitate.aggregator.tool_client import ToolClient
from cogitate.aggregator.vigil import Vigil
from cogitate.kit import telemetry
from cogitate.kit.auth import tenant_scope
from cogitate.kit.channels import deadline_scope
from cogitate.kit.errors import CogitateError
from cogitate.kit.telemetry import Attr, Span
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import journal_pb2
from cogitate.v1 import router_service_pb2 as router_pb
from opentelemetry.trace import Span as OtelSpan

logger = logging.getLogger(__name__)

# Gangs that end in order have this long for their last message.
CLOSE_S = 0.5
# At the deadline the answer may not wait for a slow endpoint: kills have this long then.
DEADLINE_ACK_S = 0.1
# The wire's least int32.
LOWEST_PRIORITY = -(2**31)
# How soon a router that is down is asked again, for the sake of agents that already worked.
ROUTER_RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Whom a runner talks to; shared by all runners."""

    config: AggregatorConfig
    writer: JournalWriter
    lease: LeaseClient
    tools: ToolClient
    channels: Channels
    neighbourhoods: Neighbourhoods
    embedder: Embedder
    guard: Guard
    lengths: Lengths
    door: Door


class Runner:
    """Runs one contemplation to its ending. ``put`` may be called by anybody in the loop."""

    def __init__(
        self,
        neighbours: Neighbours,
        course: Course,
        events: EventLog,
        span: OtelSpan,
        epoch: int = 1,
    ) -> None:
        """An epoch above 1 goes on with what others began: ``course`` is a replay then."""
        self._n, self._course, self.events, self.span = neighbours, course, events, span
        self._request, self.spec, self.machine = course.request, course.spec, course.machine
        self.epoch, self._is_fenced = epoch, False
        self._spans = AgentSpans(span, course.spec)
        self._inputs: asyncio.Queue[tuple[m.Input, recording.Source]] = asyncio.Queue()
        self._gangs: dict[str, GangClient] = {}
        # Questions to router and tools, void once the outcome stands; and timers, void at the end.
        self._questions: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.Task[None]] = set()
        self._num_listeners = 0
        self._flushed = -math.inf
        self._is_spent = False
        self._orders = Orders(
            neighbours.config, neighbours.tools, neighbours.lengths, course, epoch
        )
        self._sharing = Sharing(neighbours.neighbourhoods, len(self._orders.conversation))
        self._vigil = Vigil(neighbours.guard, neighbours.config, self.machine)
        self._task: asyncio.Task[None] | None = None

    def put(self, item: m.Input, source: recording.Source = None) -> None:
        """Queues an input, with the message it was made of if there is one."""
        self._inputs.put_nowait((item, source))

    def fence(self) -> None:
        """Another aggregator has the contemplation: everything stops here, without an ending."""
        self._is_fenced = True
        if self._task is not None:
            self._task.cancel()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While a client that asked for it listens; the last one to leave may cancel it."""
        self._num_listeners += 1
        try:
            yield
        finally:
            self._num_listeners -= 1
            self.left()

    def left(self) -> None:
        """Cancels if nobody listens any more, unless it is to go on."""
        goes_on = self._request.on_disconnect == pb.ON_DISCONNECT_CONTINUE
        if not self._num_listeners and not goes_on:
            self.put(m.CancelRequested("DISCONNECTED"))

    def tool_returned(
        self, call_id: str, result: common.ToolResult, seconds: float = 0.0, executed: bool = False
    ) -> None:
        """Queues the result of a call, of the tool-executor's or of the client's."""
        item = m.ToolReturned(call_id, wire.to_result(result, self._course.question))
        source = journal_pb2.JournalToolReturned(call_id=call_id, result=result, executed=executed)
        source.duration.FromNanoseconds(int(seconds * 1e9))
        self.put(item, source)

    def awaits_client(self, call_id: str) -> bool:
        """Whether agents wait for the client to answer this call."""
        run = self.machine.tools.by_call_id.get(call_id)
        return run is not None and run.result is None and run.call.name in self.spec.client_tools

    async def run(self, tenant: str, timeout_s: float) -> None:
        """Runs to the ending, within the deadline."""
        self._task = asyncio.current_task()
        self._kind = kind_of(self._request, self.spec, tenant)
        # The contemplation's own limits, not those of the call that started it.
        with deadline_scope(None), tenant_scope(tenant), telemetry.use(self.span):
            try:
                with deadline_scope(timeout_s + self._n.config.kill_ack_timeout_s + CLOSE_S):
                    await self._run(timeout_s)
            except Exception as error:
                logger.error("contemplation failed: %s", telemetry.stack_of(error))
            finally:
                if not (self.events.has_ending or self._is_fenced):
                    # So that an accepted contemplation always ends, whatever broke.
                    self._write(self._course.break_off(endings.broken(), time.time_ns()))
                self._n.lease.release(self.spec.contemplation_id)
                if self.machine.decision is not None:
                    self._orders.learn()
                self._vigil.ended()
                self._spans.end()
                self.span.end()

    async def _run(self, timeout_s: float) -> None:
        self._ends_at = time.monotonic() + timeout_s
        async with asyncio.TaskGroup() as tasks:
            self._start(tasks, self._timers, self._later(timeout_s, m.DeadlinePassed()))
            self._start(tasks, self._timers, self._flush_often())
            self._start(tasks, self._timers, self._look_often())
            self._begin(tasks)
            while not self.machine.ended:
                item, source = await self._inputs.get()
                self._vigil.heard(item)
                self._handle(recording.to_entry(item, source), item, tasks)
                self._spans.observe(item, self.machine)
                self._watch_money()
                self._flush_if_due()
                if self.machine.decision is not None:
                    _cancel(self._questions)
            _cancel(self._timers)
            await self._end_gangs()

    def _begin(self, tasks: asyncio.TaskGroup) -> None:
        if self.epoch == 1:
            started = journal_pb2.JournalInput(started=journal_pb2.JournalStarted())
            self._handle(started, None, tasks)
            return
        self.put(m.OwnerChanged(self.epoch))
        self._start(tasks, self._timers, self._await_client())

    async def _await_client(self) -> None:
        """Its client has to find the new owner first."""
        await asyncio.sleep(self._n.config.reattach_timeout_s)
        self.left()

    def _start(
        self,
        tasks: asyncio.TaskGroup,
        kind: set[asyncio.Task[None]],
        work: Coroutine[Any, Any, None],
    ) -> None:
        task = tasks.create_task(work)
        kind.add(task)
        task.add_done_callback(kind.discard)

    async def _later(self, delay_s: float, item: m.Input) -> None:
        await asyncio.sleep(delay_s)
        self.put(item)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(self._n.config.flush_interval_s)
            self._watch_money()
            self._flush_if_due()

    async def _look_often(self) -> None:
        """Looks who is slow, unless there is something that was not looked at yet."""
        while True:
            await asyncio.sleep(self._n.config.pulse_interval_s)
            if self._inputs.empty():
                for item in self._vigil.look():
                    self.put(item)

    def _watch_money(self) -> None:
        limit = self._request.budget.max_cost_micro_usd
        if not limit or self._is_spent:
            return
        seconds = (time.time_ns() - self._course.accept_ns) / 1e9
        if endings.cost(self.machine, seconds) >= limit:
            self._is_spent = True
            self.put(m.MoneySpent())

    def _flush_if_due(self) -> None:
        """Sends the text that was collected, the first of an interval at once."""
        now = time.monotonic()
        if now - self._flushed < self._n.config.flush_interval_s:
            return
        flushed = journal_pb2.JournalInput(flushed=journal_pb2.JournalFlushed())
        turn = self._course.take(flushed, None, time.time_ns())
        if turn.events:
            self._flushed = now
            self._write(turn)

    async def _end_gangs(self) -> None:
        """Lets the streams end in order, then breaks off what does not."""
        running = {gang.task for gang in self._gangs.values() if gang.task is not None}
        if running:
            await asyncio.wait(running, timeout=CLOSE_S)
        for gang in self._gangs.values():
            gang.break_off()

    # -- effects -----------------------------------------------------------------------------

    def _handle(
        self, entry: journal_pb2.JournalInput, item: m.Input | None, tasks: asyncio.TaskGroup
    ) -> None:
        """Gives the machine an input; journals it with its events, then does what it asks for."""
        turn = self._course.take(entry, item, time.time_ns())
        self._write(turn)
        self._perform(turn.effects, tasks)

    def _write(self, turn: Turn) -> None:
        ended = bool(turn.events) and is_ending(turn.events[-1])
        row = Row(
            id=self.spec.contemplation_id,
            epoch=self.epoch,
            sequence=turn.sequence,
            entry=turn.entry.SerializeToString(),
            events=[(event.event_number, event.SerializeToString()) for event in turn.events],
            end_ns=turn.events[-1].event_time.ToNanoseconds() if ended else None,
        )
        self._n.writer.write(self.events, row, turn.events)

    def _perform(self, effects: Sequence[m.Effect], tasks: asyncio.TaskGroup) -> None:
        for effect in effects:
            if isinstance(effect, m.Emit):
                self._spans.emitted(effect)
                self._vigil.emitted(effect)
            elif isinstance(effect, m.Declare):
                self._start(tasks, self._questions, self._place(effect))
            elif isinstance(effect, m.AskLater):
                again = m.AskAgain(effect.agent_ids)
                self._start(tasks, self._questions, self._later(effect.after_s, again))
            elif isinstance(effect, m.OpenGang):
                self._open(effect, tasks)
            elif isinstance(effect, m.Prepare):
                self._prepare(effect, tasks)
            elif isinstance(effect, m.RunTool):
                self._start(tasks, self._questions, self._run_tool(effect))
            elif isinstance(effect, m.Embed):
                self._start(tasks, self._questions, self._embed(effect))
            elif isinstance(effect, m.Kill):
                self._send(effect.gang_id, wire.kill(effect))
                if effect.reason != HEDGED:  # whose agents go on elsewhere, acknowledged or not
                    self._start(tasks, self._timers, self._overdue(effect))
            elif isinstance(effect, m.Grant):
                self._send(effect.gang_id, wire.grant(effect))
            elif isinstance(effect, m.SetThreshold):
                self._send(effect.gang_id, wire.set_threshold(effect))
            elif isinstance(effect, m.Inject):
                self._send(effect.gang_id, wire.inject(effect))
            elif isinstance(effect, m.CloseGang | m.BreakOff):
                self._end_gang(effect)

    def _send(self, gang_id: str, command: decoder_pb.DecodeRequest) -> None:
        if gang := self._gangs.get(gang_id):
            gang.send(command)

    def _end_gang(self, effect: m.CloseGang | m.BreakOff) -> None:
        self._vigil.closed(effect.gang_id)
        gang = self._gangs.get(effect.gang_id)
        if gang is None:
            return  # an earlier owner's: it ended with that process
        if isinstance(effect, m.CloseGang):
            gang.close()
        else:
            gang.break_off()

    async def _overdue(self, effect: m.Kill) -> None:
        """A gang that does not acknowledge is taken for lost."""
        timeout_s = self._n.config.kill_ack_timeout_s
        await asyncio.sleep(
            min(timeout_s, DEADLINE_ACK_S) if effect.reason == "DEADLINE" else timeout_s
        )
        self.put(m.GangLost(effect.gang_id, "DEADLINE_EXCEEDED", "the kill was not acknowledged"))

    # -- places ------------------------------------------------------------------------------

    async def _place(self, effect: m.Declare) -> None:
        if not (effect := self._affordable(effect)).agent_ids:
            return
        left_s = max(0.0, self._ends_at - time.monotonic())
        try:
            with (
                telemetry.span(Span.LEASE, {Attr.ATTEMPT: effect.attempt}),
                self._n.guard.detour(effect.slow_at) as detour,
            ):
                asked = self._orders.lease(effect, detour, left_s)
                response = await self._n.lease.place(
                    self.spec.contemplation_id,
                    asked,
                    self._on_lease,
                    self._n.config.place_timeout_s,
                )
                detour.used.update(gang.endpoint_id for gang in response.granted.gangs)
        except CogitateError as error:
            retry_after_s = None if effect.anew else ROUTER_RETRY_S
            self.put(m.Denied(effect.attempt, error.reason, str(error), retry_after_s))
            return
        if asked.declare.HasField("max_wait_duration"):
            self._tell_door(response, len(effect.agent_ids), left_s)
        if response.HasField("denied"):
            self.put(wire.to_denied(response.denied))
            return
        self._n.lease.confirm(
            router_pb.ConfirmPlacement(
                contemplation_id=self.spec.contemplation_id,
                attempt=effect.attempt,
                # Nobody is hedged where it is slow.
                gangs=[g for g in response.granted.gangs if g.endpoint_id not in effect.slow_at],
            )
        )
        self.put(wire.to_granted(response.granted))

    def _tell_door(self, response: router_pb.LeaseResponse, agents: int, left_s: float) -> None:
        """What one that could wait is told holds for all who want as much."""
        denied = response.denied
        if response.HasField("granted"):
            self._n.door.admitted(self._kind)
        elif denied.reason == "REJECTED" and denied.HasField("waited_duration"):
            wait_s, now = denied.retry_delay.ToNanoseconds() / 1e9, time.monotonic()
            self._n.door.refused(self._kind, agents, left_s, denied.message, wait_s, now)

    def _affordable(self, effect: m.Declare) -> m.Declare:
        """What of a question the retry budget allows; the machine is told of the rest."""
        if not effect.is_retry:
            return effect
        taken = self._n.guard.retries.take(len(effect.agent_ids), time.monotonic())
        if refused := effect.agent_ids[taken:]:
            self.put(m.RetriesRefused(effect.attempt, refused, self._n.guard.refusal))
        return replace(effect, agent_ids=effect.agent_ids[:taken])

    def _on_lease(self, response: router_pb.LeaseResponse) -> None:
        """An endpoint that is gone takes its gangs with it; a draining one finishes them."""
        if response.HasField("queued"):
            self._n.door.admitted(self._kind)
            self.put(wire.to_queued(response.queued))
            return
        news = response.news
        if news.state not in ("EXPIRED", "GONE", "EJECTED"):
            return
        for gang in self.machine.places.gangs.values():
            if gang.endpoint_id == news.endpoint_id:
                message = "the endpoint stopped reporting"
                self.put(m.GangLost(gang.gang_id, "UNAVAILABLE", message))

    # -- gangs and tools ---------------------------------------------------------------------

    def _open(self, effect: m.OpenGang, tasks: asyncio.TaskGroup) -> None:
        self._vigil.opened(effect)
        opening = self._orders.opening(effect)
        opening.attempt = effect.attempt
        opening.agents.extend(
            wire.to_agent_spec(
                order,
                self._orders.sampling,
                self.spec.seed,
                self._spans.start(order.agent_id, order.attempt),
            )
            for order in effect.agents
        )
        self._stream(effect.gang, opening, self.put, tasks)

    def _prepare(self, effect: m.Prepare, tasks: asyncio.TaskGroup) -> None:
        """Opens a gang whose one agent waits for a call, and closes it: it ends when that is due.

        It comes after all that is to be answered, hence the lower priority.
        """
        opening = self._orders.opening(effect)
        opening.attempt = 1
        opening.priority = max(LOWEST_PRIORITY, opening.priority - 1)
        idle = m.AgentOrder(0, 1, 0.0, None, 0, pending_call_id="prepare")
        trace = telemetry.traceparent_of(self.span)
        opening.agents.append(
            wire.to_agent_spec(idle, self._orders.sampling, self.spec.seed, trace)
        )

        def heard(item: m.Input, source: decoder_pb.DecodeResponse | None) -> None:
            if isinstance(item, m.Prefilled | m.GangLost):
                self.put(item, source)

        self._stream(effect.gang, opening, heard, tasks).close()

    def _stream(
        self,
        placed: m.PlacedGang,
        opening: decoder_pb.OpenGang,
        on_input: Callable[[m.Input, decoder_pb.DecodeResponse | None], None],
        tasks: asyncio.TaskGroup,
    ) -> GangClient:
        channel: grpc.aio.Channel = self._n.channels.to(placed.payload.address)
        gang = self._gangs[placed.gang_id] = GangClient(placed.gang_id, channel, opening, on_input)
        self._sharing.join(placed.payload, gang)
        gang.task = tasks.create_task(gang.run())
        return gang

    async def _run_tool(self, effect: m.RunTool) -> None:
        began = time.monotonic()
        attributes = {Attr.TOOL_CALL_ID: effect.call.call_id}
        if effect.call.name in self._orders.allowed:
            # Anything else is text the model made up, and stays out of the trace.
            attributes[Attr.TOOL_NAME] = effect.call.name
        parent = self._spans.traceparent(effect.agent_id)
        with telemetry.span(Span.TOOL, attributes, parent=parent):
            result, ran = await self._n.tools.run(
                self.spec.contemplation_id,
                wire.to_call(effect.call),
                self._orders.allowed,
                [*self._orders.images, *map(wire.from_picture, effect.pictures)],
                self.epoch,
                self._orders.tables(effect.call.name),
            )
        self.tool_returned(effect.call.call_id, result, time.monotonic() - began, ran)

    async def _embed(self, effect: m.Embed) -> None:
        try:
            vector = await self._n.embedder.embed(effect.answer)
        except CogitateError as error:
            self.put(m.Embedded(effect.agent_id, (), str(error)))
        else:
            self.put(m.Embedded(effect.agent_id, vector))


def kind_of(request: pb.ContemplationSpec, spec: m.Spec, tenant: str) -> Kind:
    """What room the contemplation competes for."""
    limits = request.constraints.SerializeToString(deterministic=True)
    return Kind(tenant, spec.model, request.priority, limits)


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()
