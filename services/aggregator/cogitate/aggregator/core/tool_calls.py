"""Tool calls of the agents: joined with identical ones, run once, delivered to all who wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import AgentState, ToolRun, ToolRuns
from cogitate.aggregator.core.answers import key_of
from cogitate.aggregator.core.outbox import Outbox


class ToolCalls:
    """Owns the runs. ``vote`` casts an agent's ballot for an answer a tool proved."""

    def __init__(
        self,
        spec: m.Spec,
        agents: Mapping[int, AgentState],
        outbox: Outbox,
        vote: Callable[[AgentState, str], None],
    ) -> None:
        self.runs = ToolRuns()
        self._spec, self._agents, self._out, self._vote = spec, agents, outbox, vote

    def called(self, agent: AgentState, call: m.Call) -> None:
        """An agent paused on a call. A call id that came before is ignored."""
        if call.call_id in self.runs.seen:
            return
        agent.pending_call = call
        run, first = self.runs.join(agent.agent_id, call, self._pictures(agent, call))
        self._out.emit(
            "tool_call_started",
            agent_id=agent.agent_id,
            call=call,
            shared_call_id="" if first else run.call.call_id,
        )
        if run.result is not None:
            self._deliver(run)
        elif first and call.name in self._spec.client_tools:
            self._out.emit("awaiting_client", agent_ids=(agent.agent_id,), call=call)
        elif first:
            self._out.add(m.RunTool(agent.agent_id, call, run.pictures))

    def _pictures(self, agent: AgentState, call: m.Call) -> tuple[m.Picture, ...]:
        """What tools have shown an agent, up to the picture a call means, if it means one of these.

        They are counted after the question's. The same number is another picture to another agent,
        so such calls are not the same. Calls that mean none are given none: a tool takes so many.
        """
        try:
            index = json.loads(call.arguments_json)["image"] - self._spec.num_images
            return agent.pictures[: index + 1] if index >= 0 else ()
        except (ValueError, RecursionError, LookupError, TypeError):
            return ()  # the tool says what is wrong with it, if anything is

    def returned(self, event: m.ToolReturned) -> None:
        """A run has its result. One that is not known, or that came before, is ignored."""
        run = self.runs.by_call_id.get(event.call_id)
        if run is None or run.result is not None:
            return
        run.result = event.result
        self._deliver(run)

    def _deliver(self, run: ToolRun) -> None:
        """Gives the result to everybody who waits for it."""
        result = run.result
        assert result is not None
        waiting, run.waiting = run.waiting, []
        for agent_id, call in waiting:
            agent = self._agents[agent_id]
            if not agent.open or agent.pending_call != call:
                continue
            self._out.emit(
                "tool_call_finished",
                agent_id=agent_id,
                call_id=call.call_id,
                result=result,
                shared=call.call_id != run.call.call_id,
            )
            agent.pending_call = None
            agent.segments.append(
                m.Segment((), result.payload, result.pictures, num_characters=len(agent.text))
            )
            agent.proved_answer = result.proved_answer or agent.proved_answer
            if self._spec.quorum == "verified" and key_of(
                result.proved_answer, self._spec.equivalence
            ):
                # The proof is the answer: no need to have it written out.
                self._vote(agent, result.proved_answer)
            elif agent.gang_id:
                self._out.add(m.Inject(agent.gang_id, agent_id, call.call_id, result.payload))
