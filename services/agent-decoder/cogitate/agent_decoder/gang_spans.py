"""The spans of one gang: the gang, its prefill, and each agent's decoding."""

from __future__ import annotations

import time
from collections.abc import Iterable

from cogitate.agent_decoder.core import events as ev
from cogitate.kit import telemetry
from cogitate.kit.telemetry import Attr, Span
from cogitate.v1 import agent_decoder_service_pb2 as pb
from opentelemetry.trace import Span as OtelSpan


class GangSpans:
    """Opens spans as events pass by. An agent's decode spans hang under the agent's own span.

    A decode span is one stretch between pauses: the tool runs while none is open.
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
        self._parents: dict[int, str] = {}
        self._open: dict[int, OtelSpan] = {}
        self.add(gang.agents)

    def add(self, agents: Iterable[pb.AgentSpec]) -> None:
        """Learns whom the agents' spans hang under."""
        for agent in agents:
            self._parents[agent.agent_id] = agent.traceparent

    def observe(self, events: Iterable[ev.Event]) -> None:
        """Opens and closes spans by one step's events."""
        for event in events:
            if isinstance(event, ev.Prefilled):
                self._prefilled(event)
            elif isinstance(event, ev.Delta):
                self._decoding(event.agent_id)
            elif isinstance(event, ev.ToolCall | ev.AwaitingGrant | ev.Paused):
                self._paused(event.agent_id, event.num_sampled)
            elif isinstance(event, ev.Finished):
                self._paused(event.agent_id, event.num_sampled)
            elif isinstance(event, ev.GangDone):
                self._gang.set_attribute(Attr.STEP_COUNT, event.num_steps)
                self._gang.set_attribute(Attr.OUTPUT_TOKENS, event.num_sampled)

    def end(self) -> None:
        """Ends what is open; may be called in any state."""
        for span in self._open.values():
            span.end()
        self._open.clear()
        self._gang.end()

    def _prefilled(self, event: ev.Prefilled) -> None:
        now = time.time_ns()
        span = telemetry.start_span(
            Span.PREFILL,
            {Attr.INPUT_TOKENS: event.num_positions, Attr.CACHED_TOKENS: event.num_cached},
            parent=telemetry.traceparent_of(self._gang),
            start_time=now - int(event.prefill_s * 1e9),
        )
        span.end(end_time=now)

    def _decoding(self, agent_id: int) -> None:
        if agent_id not in self._open:
            parent = self._parents.get(agent_id) or telemetry.traceparent_of(self._gang)
            self._open[agent_id] = telemetry.start_span(
                Span.DECODE, {Attr.AGENT_ID: str(agent_id)}, parent=parent
            )

    def _paused(self, agent_id: int, num_sampled: int) -> None:
        if (span := self._open.pop(agent_id, None)) is not None:
            span.set_attribute(Attr.OUTPUT_TOKENS, num_sampled)
            span.end()
