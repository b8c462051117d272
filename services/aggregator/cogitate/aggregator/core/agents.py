"""What the state machine knows of each agent and of the tool calls they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cogitate.aggregator.core.messages import AgentOrder, Call, Delta, Result, Segment
from cogitate.aggregator.core.strategies import AgentPlan


@dataclass(slots=True)
class AgentState:
    """One agent over all its attempts. ``open`` until it has voted, was killed or is given up."""

    plan: AgentPlan
    granted: int
    attempt: int = 1
    gang_id: str = ""  # empty while it has no place
    open: bool = True
    num_sampled: int = 0
    num_losses: int = 0
    starved: bool = False
    killing: str = ""  # the reason it is being stopped for
    build_digest: str = ""
    pending_call: Call | None = None
    proved_answer: str = ""
    segments: list[Segment] = field(default_factory=list)

    def record(self, delta: Delta) -> None:
        """Books sampled tokens, so that the agent can go on elsewhere."""
        self.num_sampled = delta.token_offset + len(delta.token_ids)
        if self.segments and self.segments[-1].token_ids:
            last = self.segments[-1].token_ids
            self.segments[-1] = Segment(token_ids=last + delta.token_ids)
        else:
            self.segments.append(Segment(token_ids=delta.token_ids))

    def forget(self) -> None:
        """Starts over: what it wrote is lost."""
        self.segments.clear()
        self.num_sampled = 0
        self.pending_call = None
        self.build_digest = ""

    def order(self) -> AgentOrder:
        """How to start or resume it."""
        return AgentOrder(
            agent_id=self.plan.agent_id,
            attempt=self.attempt,
            temperature=self.plan.temperature,
            hint_index=self.plan.hint_index,
            granted=self.granted,
            segments=tuple(self.segments),
            num_sampled=self.num_sampled,
            pending_call_id=self.pending_call.call_id if self.pending_call else "",
            build_digest=self.build_digest,
        )


@dataclass(slots=True)
class ToolRun:
    """One execution and the agents that wait for it."""

    call: Call
    waiting: list[tuple[int, Call]] = field(default_factory=list)
    result: Result | None = None


@dataclass(slots=True)
class ToolRuns:
    """Identical calls of a contemplation run once (single-flight, also after the end)."""

    by_content: dict[tuple[str, str], ToolRun] = field(default_factory=dict)
    by_call_id: dict[str, ToolRun] = field(default_factory=dict)
    num_calls: int = 0

    def join(self, agent_id: int, call: Call) -> tuple[ToolRun, bool]:
        """Adds a call; True if it is the first of its kind and must be run."""
        self.num_calls += 1
        key = (call.name, call.arguments_json)
        run = self.by_content.get(key)
        if run is None:
            run = ToolRun(call, [(agent_id, call)])
            self.by_content[key] = self.by_call_id[call.call_id] = run
            return run, True
        run.waiting.append((agent_id, call))
        return run, False


@dataclass(slots=True)
class Accounts:
    """Tokens by what became of them: generated = used + killed + lost."""

    used: int = 0
    killed: int = 0
    lost: int = 0
    injected: int = 0
    prompt: int = 0
    cached: int = 0

    @property
    def generated(self) -> int:
        """All tokens the engines sampled."""
        return self.used + self.killed + self.lost


@dataclass(slots=True)
class DeltaBuffer:
    """Collects text between flushes: one event then covers several engine steps."""

    deltas: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, delta: Delta) -> None:
        """Merges with what the agent wrote before, if it is the same kind of text."""
        entry = self.deltas.get(delta.agent_id)
        if entry is None:
            self.deltas[delta.agent_id] = {
                "agent_id": delta.agent_id,
                "attempt": delta.attempt,
                "token_offset": delta.token_offset,
                "token_count": len(delta.token_ids),
                "text": delta.text,
                "is_answer": delta.is_answer,
                "logprob_sum": delta.logprob_sum,
            }
            return
        entry["token_count"] += len(delta.token_ids)
        entry["text"] += delta.text
        entry["logprob_sum"] += delta.logprob_sum

    def splits(self, delta: Delta) -> bool:
        """Whether this delta cannot be merged with what is held."""
        entry = self.deltas.get(delta.agent_id)
        return entry is not None and (
            entry["is_answer"] != delta.is_answer or entry["attempt"] != delta.attempt
        )

    def take(self) -> list[dict[str, Any]]:
        """Empties the buffer, by agent id."""
        taken = [self.deltas[agent_id] for agent_id in sorted(self.deltas)]
        self.deltas.clear()
        return taken
