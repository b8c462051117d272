"""The spans of a contemplation's agents, and the ballots, kills and verdict as events."""

from __future__ import annotations

from typing import Any

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.kit import telemetry
from cogitate.kit.telemetry import Attr, Span
from opentelemetry.trace import Span as OtelSpan


class AgentSpans:
    """One span an agent, over all its attempts, under the contemplation's."""

    def __init__(self, root: OtelSpan, spec: m.Spec) -> None:
        self._root, self._spec = root, spec
        self._open: dict[int, OtelSpan] = {}

    def start(self, agent_id: int, attempt: int) -> str:
        """Opens the agent's span if it is not; returns its traceparent."""
        if agent_id not in self._open:
            self._open[agent_id] = telemetry.start_span(
                Span.AGENT,
                {
                    Attr.OPERATION: "invoke_agent",
                    Attr.AGENT_ID: str(agent_id),
                    Attr.MODEL: self._spec.model,
                },
                parent=self._root,
            )
        self._open[agent_id].set_attribute(Attr.ATTEMPT, attempt)
        return self.traceparent(agent_id)

    def traceparent(self, agent_id: int) -> str:
        """What the agent's calls hang under."""
        return telemetry.traceparent_of(self._open.get(agent_id) or self._root)

    def observe(self, item: m.Input, machine: Contemplation) -> None:
        """Ends an agent's span when its endpoint says it ended, and it does not go on elsewhere."""
        agent = machine.agents.get(item.agent_id) if isinstance(item, m.AgentEnded) else None
        if not isinstance(item, m.AgentEnded) or agent is None or agent.open:
            return
        if span := self._open.pop(item.agent_id, None):
            span.set_attribute(Attr.OUTPUT_TOKENS, item.num_sampled)
            span.set_attribute(Attr.FINISH_REASONS, item.finish.lower())
            span.end()

    def emitted(self, effect: m.Emit) -> None:
        """Marks what the client is told on the contemplation's span."""
        fields: dict[str, Any] = effect.fields
        if effect.kind == "ballot_cast":
            attributes = {
                Attr.AGENT_ID: str(fields["ballot"].agent_id),
                Attr.WINNER_COUNT: fields["leader_count"],
            }
            telemetry.event(Span.BALLOT, attributes, on=self._root)
        elif effect.kind == "agent_killed":
            attributes = {
                Attr.AGENT_ID: str(fields["agent_id"]),
                Attr.REASON: fields["reason"],
            }
            telemetry.event(Span.KILL, attributes, on=self._root)
        elif effect.kind == "verdict":
            telemetry.event(Span.VERDICT, on=self._root)
        elif effect.kind in ("failed", "cancelled"):
            self._root.set_attribute(Attr.REASON, fields["reason"])

    def end(self) -> None:
        """Ends what is open."""
        for span in self._open.values():
            span.end()
        self._open.clear()
