"""The spans of one gang (itself, its prefill, each decode segment), and its agents' latencies.

A segment is one stretch of an agent's decoding, from where it may begin or go on to its next pause
or its end: a tool runs while none is open.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from cogitate.agent_decoder.core import events as ev
from cogitate.kit import metrics, telemetry
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr, Attributes, Span
from cogitate.v1 import agent_decoder_service_pb2 as pb
from opentelemetry.trace import Span as OtelSpan


@dataclass(slots=True)
class _Agent:
    """One attempt of an agent. Times of spans are nanoseconds since the epoch, others monotonic."""

    attempt: int
    parent: str
    arrived_s: float
    since_ns: int  # from when it may decode; 0 while it stands still, or if that is not known
    span: OtelSpan | None = None  # of the segment
    first_s: float = 0.0  # when the segment's first token was told
    num_tokens: int = 0  # of the segment
    has_sampled: bool = False
    decoding_s: float = 0.0  # between the first and the last token of each segment
    num_intervals: int = 0  # between tokens of one segment
    waits: bool = False  # it began waiting for a call, and nobody has answered it


class GangSpans:
    """Opens and closes spans as events pass by. Decode spans hang under the agent's own span.

    Times are those of the telling: tokens that travel together count as sampled together.
    """

    def __init__(self, gang: pb.OpenGang, endpoint_id: str, provider: str) -> None:
        self._gang = telemetry.start_span(
            Span.GANG,
            {
                Attr.CONTEMPLATION_ID: gang.contemplation_id,
                Attr.GANG_ID: gang.gang_id,
                Attr.ENDPOINT_ID: endpoint_id,
                Attr.PROVIDER: provider,
                Attr.MODEL: gang.model,
                Attr.ATTEMPT: gang.attempt,
                Attr.AGENT_COUNT: len(gang.agents),
            },
        )
        self._labels: Attributes = {
            Attr.OPERATION: "chat",
            Attr.MODEL: gang.model,
            Attr.PROVIDER_NAME: provider,
        }
        self._agents: dict[int, _Agent] = {}
        self._is_prefilled = False
        self._now_s, self._now_ns = time.monotonic(), time.time_ns()
        self.add(gang.agents)

    def add(self, agents: Iterable[pb.AgentSpec]) -> None:
        """Learns of agents, when they arrived, and whom their spans hang under."""
        self._now_s, self._now_ns = time.monotonic(), time.time_ns()
        for agent in agents:
            if earlier := self._agents.get(agent.agent_id):
                self._close(earlier, agent.agent_id, "SUPERSEDED")
            attempt = max(1, agent.attempt)
            parent = agent.traceparent or telemetry.traceparent_of(self._gang)
            waits = bool(agent.resume_state.pending_call_id)
            since_ns = self._now_ns if self._is_prefilled and not waits else 0
            self._agents[agent.agent_id] = _Agent(
                attempt, parent, self._now_s, since_ns, waits=waits
            )

    def found_conversation(self, where: str) -> None:
        """Learns where the conversation was: in the opening, at another endpoint, or here."""
        self._gang.set_attribute(Attr.CONVERSATION_FROM, where)

    def observe(self, events: Iterable[ev.Event]) -> None:
        """Opens and closes spans by what was told at once."""
        self._now_s, self._now_ns = time.monotonic(), time.time_ns()
        for event in events:
            if isinstance(event, ev.Delta):
                self._token(event)
            elif isinstance(event, ev.ToolCall):
                self._pause(event.agent_id, "TOOL_CALL")
            elif isinstance(event, ev.AwaitingGrant):
                self._pause(event.agent_id, "AWAITING_GRANT")
            elif isinstance(event, ev.Paused):
                self._pause(event.agent_id, "PAUSED")
            elif isinstance(event, ev.Injected):
                self._go_on(event.agent_id)
            elif isinstance(event, ev.Finished):
                self._finish(event)
            elif isinstance(event, ev.Prefilled):
                self._prefilled(event)
            elif isinstance(event, ev.GangDone):
                self._gang.set_attribute(Attr.STEP_COUNT, event.num_steps)
                self._gang.set_attribute(Attr.OUTPUT_TOKENS, event.num_sampled)

    def end(self) -> None:
        """Ends what is open; may be called in any state."""
        self._now_s, self._now_ns = time.monotonic(), time.time_ns()
        for agent in self._agents.values():
            if agent.span is not None:
                agent.span.set_attribute(Attr.OUTPUT_TOKENS, agent.num_tokens)
                agent.span.end()
        self._agents.clear()
        self._gang.end()

    def _prefilled(self, event: ev.Prefilled) -> None:
        metrics.record(Metric.QUEUE_DURATION, event.queue_s, self._labels, span=self._gang)
        span = telemetry.start_span(
            Span.PREFILL,
            {
                Attr.INPUT_TOKENS: event.num_positions,
                Attr.CACHED_TOKENS: event.num_cached,
                Attr.STEP_COUNT: event.num_steps,
                Attr.AGENT_COUNT: len(self._agents),
            },
            parent=telemetry.traceparent_of(self._gang),
            start_time=self._now_ns - int(event.prefill_s * 1e9),
        )
        span.end(end_time=self._now_ns)
        self._is_prefilled = True
        for agent in self._agents.values():
            agent.since_ns = 0 if agent.waits else self._now_ns

    def _token(self, event: ev.Delta) -> None:
        agent = self._agents.get(event.agent_id)
        if agent is None or agent.attempt != event.attempt:
            return
        if agent.span is None:
            self._open(agent, event.agent_id)
        agent.num_tokens += 1
        if not agent.has_sampled:
            agent.has_sampled = True
            first_s = self._now_s - agent.arrived_s
            metrics.record(Metric.TIME_TO_FIRST_TOKEN, first_s, self._labels, span=agent.span)

    def _open(self, agent: _Agent, agent_id: int) -> None:
        agent.span = telemetry.start_span(
            Span.DECODE,
            {Attr.AGENT_ID: str(agent_id)},
            parent=agent.parent,
            start_time=agent.since_ns or self._now_ns,
        )
        agent.first_s, agent.num_tokens = self._now_s, 0

    def _close(self, agent: _Agent, agent_id: int, reason: str) -> None:
        """Ends the segment, one without tokens if the agent might have decoded and did not."""
        if agent.span is None and agent.since_ns:
            self._open(agent, agent_id)
        if agent.span is not None:
            agent.span.set_attribute(Attr.OUTPUT_TOKENS, agent.num_tokens)
            agent.span.set_attribute(Attr.REASON, reason)
            agent.span.end(end_time=self._now_ns)
            agent.decoding_s += self._now_s - agent.first_s
            agent.num_intervals += max(0, agent.num_tokens - 1)
        agent.span, agent.since_ns = None, 0

    def _pause(self, agent_id: int, reason: str) -> None:
        if agent := self._agents.get(agent_id):
            self._close(agent, agent_id, reason)

    def _go_on(self, agent_id: int) -> None:
        agent = self._agents.get(agent_id)
        if agent is not None and agent.span is None:
            agent.since_ns, agent.waits = self._now_ns, False

    def _finish(self, event: ev.Finished) -> None:
        agent = self._agents.get(event.agent_id)
        if agent is None or agent.attempt != event.attempt:
            return  # of an attempt whose place another took
        del self._agents[event.agent_id]
        last = agent.span or self._gang
        self._close(agent, event.agent_id, event.kill_reason or event.finish.value)
        if agent.waits:
            return  # it never could decode: there was no request to measure
        labels = dict(self._labels)
        if event.finish is ev.Finish.ERROR:
            labels[Attr.ERROR_TYPE] = event.kill_reason or "ERROR"
        metrics.record(Metric.REQUEST_DURATION, self._now_s - agent.arrived_s, labels, span=last)
        if agent.num_intervals and event.finish is not ev.Finish.ERROR:
            mean_s = agent.decoding_s / agent.num_intervals
            metrics.record(Metric.TIME_PER_OUTPUT_TOKEN, mean_s, self._labels, span=last)
