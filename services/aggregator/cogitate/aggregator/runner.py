"""One contemplation's shell: turns effects into calls and what comes back into inputs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from cogitate.aggregator import admission, endings, wire
from cogitate.aggregator.agent_spans import AgentSpans
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.event_log import ENDINGS, EventLog, JournalWriter
from cogitate.aggregator.gang_client import Channels, GangClient
from cogitate.aggregator.lease_client import LeaseClient
from cogitate.aggregator.tool_client import ToolClient
from cogitate.kit import telemetry
from cogitate.kit.auth import current_tenant, tenant_scope
from cogitate.kit.channels import deadline_scope
from cogitate.kit.errors import CogitateError
from cogitate.kit.telemetry import Attr, Span
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb
from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger(__name__)

# Positions a question is expected to take, per character of text and per image, until an endpoint
# has rendered it: the router only compares endpoints by it.
CHARACTERS_PER_TOKEN = 3
TOKENS_PER_IMAGE = 64
TOKENS_PER_AGENT = 160
# Gangs that end in order have this long for their last message.
CLOSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Whom a runner talks to; shared by all runners."""

    config: AggregatorConfig
    writer: JournalWriter
    lease: LeaseClient
    tools: ToolClient
    channels: Channels


class Runner:
    """Runs one contemplation to its ending. ``put`` may be called by anybody in the loop."""

    def __init__(
        self,
        neighbours: Neighbours,
        request: pb.ContemplationSpec,
        spec: m.Spec,
        events: EventLog,
        span: OtelSpan,
    ) -> None:
        self._n, self._request, self._spec, self._events = neighbours, request, spec, events
        self.machine = Contemplation(spec)
        self._span = span
        self._spans = AgentSpans(span, spec)
        self._inputs: asyncio.Queue[m.Input] = asyncio.Queue()
        self._gangs: dict[str, GangClient] = {}
        self._tool_seconds: dict[str, float] = {}
        self._num_executions = 0
        self._began = time.monotonic()
        self._allowed = admission.allowed_tools(request)
        self._images = admission.images_of(request)

    def put(self, item: m.Input) -> None:
        """Queues an input."""
        self._inputs.put_nowait(item)

    def awaits_client(self, call_id: str) -> bool:
        """Whether agents wait for the client to answer this call."""
        run = self.machine.tools.by_call_id.get(call_id)
        return run is not None and run.result is None and run.call.name in self._spec.client_tools

    async def run(self, tenant: str, timeout_s: float) -> None:
        """Runs to the ending, within the deadline."""
        # The contemplation's own limits, not those of the call that started it.
        with deadline_scope(None), tenant_scope(tenant), telemetry.use(self._span):
            try:
                with deadline_scope(timeout_s + self._n.config.kill_ack_timeout_s + CLOSE_S):
                    await self._run(timeout_s)
            except Exception as error:
                log.error("contemplation failed: %s", telemetry.stack_of(error))
                self._fail_inside()
            finally:
                self._n.lease.release(self._spec.contemplation_id)
                self._spans.end()
                self._span.end()

    async def _run(self, timeout_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            timers = [
                tasks.create_task(self._later(timeout_s, m.DeadlinePassed())),
                tasks.create_task(self._flush_often()),
            ]
            self._perform(self.machine.start(), tasks)
            while not self.machine.ended:
                item = await self._inputs.get()
                self._spans.observe(item)
                self._perform(self.machine.handle(item), tasks)
            for timer in timers:
                timer.cancel()
            tasks.create_task(self._end_gangs())

    async def _later(self, delay_s: float, item: m.Input) -> None:
        await asyncio.sleep(delay_s)
        self.put(item)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(self._n.config.flush_interval_s)
            for effect in self.machine.flush():
                if isinstance(effect, m.Emit):
                    self._emit(effect)

    async def _end_gangs(self) -> None:
        """Lets the streams end in order, then breaks off what does not."""
        await asyncio.sleep(0)
        deadline = asyncio.get_running_loop().time() + CLOSE_S
        for gang in self._gangs.values():
            remaining = deadline - asyncio.get_running_loop().time()
            await gang.ended_within(max(0.0, remaining))

    # -- effects -----------------------------------------------------------------------------

    def _perform(self, effects: Sequence[m.Effect], tasks: asyncio.TaskGroup) -> None:
        for effect in effects:
            if isinstance(effect, m.Emit):
                self._emit(effect)
            elif isinstance(effect, m.Declare):
                tasks.create_task(self._place(effect))
            elif isinstance(effect, m.OpenGang):
                self._open(effect, tasks)
            elif isinstance(effect, m.RunTool):
                tasks.create_task(self._run_tool(effect))
            elif isinstance(effect, m.Kill):
                self._send(effect.gang_id, wire.kill(effect))
                tasks.create_task(self._overdue(effect))
            elif isinstance(effect, m.Grant):
                self._send(effect.gang_id, wire.grant(effect))
            elif isinstance(effect, m.Inject):
                self._send(effect.gang_id, wire.inject(effect))
            elif isinstance(effect, m.CloseGang) and effect.gang_id in self._gangs:
                self._gangs[effect.gang_id].close()

    def _send(self, gang_id: str, command: decoder_pb.DecodeRequest) -> None:
        if gang := self._gangs.get(gang_id):
            gang.send(command)

    def _emit(self, effect: m.Emit) -> None:
        self._spans.emitted(effect)
        if effect.kind in ENDINGS:
            seconds = time.monotonic() - self._began
            event = endings.build(
                effect.kind, effect.fields, self.machine, seconds, self._num_executions
            )
        else:
            fields = effect.fields
            if effect.kind == "tool_call_finished":
                seconds = self._tool_seconds.get(fields["call_id"], 0.0)
                fields = {**fields, "seconds": seconds}
            event = wire.to_event(effect.kind, fields)
        self._n.writer.write(self._events, event)

    def _fail_inside(self) -> None:
        """The last resort, so that an accepted contemplation always ends."""
        if self.machine.ended:
            return
        self.machine.ended = True
        fields = {"reason": "INTERNAL", "message": "internal error", "retryable": True}
        self._emit(m.Emit("failed", fields))

    async def _overdue(self, effect: m.Kill) -> None:
        """A gang that does not acknowledge is taken for lost."""
        await asyncio.sleep(self._n.config.kill_ack_timeout_s)
        self.put(m.GangLost(effect.gang_id, "DEADLINE_EXCEEDED", "the kill was not acknowledged"))

    # -- places ------------------------------------------------------------------------------

    async def _place(self, effect: m.Declare) -> None:
        try:
            with telemetry.span(Span.LEASE, {Attr.ATTEMPT: effect.attempt}):
                response = await self._n.lease.place(
                    self._spec.contemplation_id,
                    self._lease_request(effect),
                    self._on_news,
                    self._n.config.place_timeout_s,
                )
        except CogitateError as error:
            self.put(m.Denied(effect.attempt, error.reason, str(error), True))
            return
        if response.HasField("denied"):
            denied = response.denied
            retryable = denied.HasField("retry_delay")
            self.put(m.Denied(effect.attempt, denied.reason, denied.message, retryable))
            return
        granted = wire.to_granted(response.granted)
        confirmed = [gang.payload for gang in granted.gangs]
        self._n.lease.confirm(
            router_pb.ConfirmPlacement(
                contemplation_id=self._spec.contemplation_id,
                attempt=effect.attempt,
                gangs=confirmed,
            )
        )
        self.put(granted)

    def _lease_request(self, effect: m.Declare) -> router_pb.LeaseRequest:
        needs = [decoder_pb.CAPABILITY_KILL]
        needs += [decoder_pb.CAPABILITY_VISION] if self._images else []
        needs += [decoder_pb.CAPABILITY_TOOLS] if self._allowed else []
        text = sum(len(part.text) for msg in self._request.conversation for part in msg.parts)
        prefix = text // CHARACTERS_PER_TOKEN + TOKENS_PER_IMAGE * len(self._images)
        gang = router_pb.GangSpec(
            model=self._spec.model,
            role="solver",
            agent_ids=effect.agent_ids,
            required_capabilities=needs,
            prefix_token_count=prefix,
            tokens_per_agent=TOKENS_PER_AGENT,
        )
        failures = [
            router_pb.EndpointFailure(endpoint_id=endpoint, reason=reason)
            for endpoint, reason in effect.failed
        ]
        if effect.attempt > 1:
            replace = router_pb.ReplaceAgents(
                contemplation_id=self._spec.contemplation_id,
                attempt=effect.attempt,
                gangs=[gang],
                failures=failures,
                traceparent=telemetry.current_traceparent(),
            )
            return router_pb.LeaseRequest(replace=replace)
        declare = router_pb.DeclareGangs(
            contemplation_id=self._spec.contemplation_id,
            attempt=effect.attempt,
            owner_epoch=1,
            tenant=current_tenant(),
            gangs=[gang],
            budget=self._request.budget,
            priority=self._request.priority,
            traceparent=telemetry.current_traceparent(),
        )
        declare.constraints.CopyFrom(self._request.constraints)
        if not declare.constraints.min_failure_domain_count and self._spec.num_agents > 1:
            # Losing one provider is to cost agents, not the answer.
            declare.constraints.min_failure_domain_count = 2
        return router_pb.LeaseRequest(declare=declare)

    def _on_news(self, response: router_pb.LeaseResponse) -> None:
        """An endpoint that is gone takes its gangs with it; a draining one finishes them."""
        news = response.news
        if news.state not in ("EXPIRED", "GONE", "EJECTED"):
            return
        for gang in self.machine.gangs.values():
            if gang.endpoint_id == news.endpoint_id:
                self.put(m.GangLost(gang.gang_id, news.state, "the endpoint stopped reporting"))

    # -- gangs and tools ---------------------------------------------------------------------

    def _open(self, effect: m.OpenGang, tasks: asyncio.TaskGroup) -> None:
        placed: router_pb.PlacedGang = effect.gang.payload
        opening = decoder_pb.OpenGang(
            contemplation_id=self._spec.contemplation_id,
            gang_id=effect.gang.gang_id,
            attempt=effect.attempt,
            owner_epoch=1,
            tenant=current_tenant(),
            model=self._spec.model,
            conversation=self._request.conversation,
            effort=common.Effort.Value(f"EFFORT_{self._spec.effort}"),
            role="solver",
            vision_encoder_address=self._n.config.vision_encoder_address,
            lease_id=self._spec.contemplation_id,
            priority=self._request.priority,
            agents=[
                wire.to_agent_spec(
                    order,
                    self._request.sampling_params,
                    self._spec.seed,
                    self._spans.start(order.agent_id, order.attempt),
                )
                for order in effect.agents
            ],
        )
        channel: grpc.aio.Channel = self._n.channels.to(placed.address)
        gang = GangClient(effect.gang.gang_id, channel, opening, self.put)
        self._gangs[effect.gang.gang_id] = gang
        gang.task = tasks.create_task(gang.run())

    async def _run_tool(self, effect: m.RunTool) -> None:
        began = time.monotonic()
        attributes = {Attr.TOOL_CALL_ID: effect.call.call_id}
        if effect.call.name in self._allowed:
            # Anything else is text the model made up, and stays out of the trace.
            attributes[Attr.TOOL_NAME] = effect.call.name
        parent = self._spans.traceparent(effect.agent_id)
        with telemetry.span(Span.TOOL, attributes, parent=parent):
            result, ran = await self._n.tools.run(
                self._spec.contemplation_id, wire.to_call(effect.call), self._allowed, self._images
            )
        self._num_executions += ran
        self._tool_seconds[effect.call.call_id] = time.monotonic() - began
        self.put(m.ToolReturned(effect.call.call_id, wire.to_result(result)))
