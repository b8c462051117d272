"""What goes into and comes out of the state machine of a contemplation.

Inputs are what happened; effects are what the shell is to do; events are what the client sees.
``payload`` fields hold a message the core hands on without looking inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cogitate.aggregator.core.ballots import Ballot


@dataclass(frozen=True, slots=True)
class Spec:
    """What was asked, checked."""

    contemplation_id: str
    model: str
    effort: str  # INSTANT, THINKING or CONTEMPLATING
    num_agents: int
    strategy: str
    quorum: str
    equivalence: str
    seed: int
    temperature: float | None
    budget_tokens: int  # 0: no limit
    max_tokens: int  # of one agent; 0: the model's default
    client_tools: frozenset[str] = frozenset()
    payload: Any = None


@dataclass(frozen=True, slots=True)
class PlacedGang:
    """One endpoint's share of the agents."""

    gang_id: str
    endpoint_id: str
    provider: str
    region: str
    agent_ids: tuple[int, ...]
    reason: str
    payload: Any = None


# -- inputs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """The router placed the agents."""

    attempt: int
    gangs: tuple[PlacedGang, ...]
    policy: str
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Denied:
    """The router has no place."""

    attempt: int
    reason: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """An endpoint took a gang."""

    gang_id: str
    build_digest: str
    hints: dict[int, str]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A gang's prompt is computed."""

    gang_id: str
    num_prompt: int
    num_cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one agent wrote."""

    agent_id: int
    attempt: int
    token_offset: int
    token_ids: tuple[int, ...]
    text: str
    is_answer: bool
    logprob_sum: float


@dataclass(frozen=True, slots=True)
class Stepped:
    """One engine step of a gang."""

    gang_id: str
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """An agent paused on a call."""

    gang_id: str
    agent_id: int
    attempt: int
    call: Call


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's result; ``proved_answer`` is empty unless the tool proved one."""

    is_error: bool
    proved_answer: str
    payload: Any


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """A tool that was run has its result."""

    call_id: str
    result: Result


@dataclass(frozen=True, slots=True)
class AgentEnded:
    """An agent ended on its endpoint, by itself or killed."""

    gang_id: str
    agent_id: int
    attempt: int
    finish: str
    answer: str
    num_sampled: int
    num_injected: int
    mean_logprob: float = 0.0
    lowest_confidence: float = 0.0
    group_confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class GrantUsedUp:
    """An agent waits for tokens."""

    gang_id: str
    agent_id: int


@dataclass(frozen=True, slots=True)
class GangLost:
    """An endpoint refused a gang, broke off or vanished."""

    gang_id: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The contemplation's time is over."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The client wants no answer any more: DISCONNECTED or REQUESTED."""

    reason: str


Input = (
    Granted
    | Denied
    | Admitted
    | Prefilled
    | Stepped
    | ToolCalled
    | ToolReturned
    | AgentEnded
    | GrantUsedUp
    | GangLost
    | DeadlinePassed
    | CancelRequested
)

# -- effects ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an agent's own sequence: sampled tokens, or a tool result."""

    token_ids: tuple[int, ...] = ()
    result: Any = None


@dataclass(frozen=True, slots=True)
class AgentOrder:
    """How to start an agent on an endpoint."""

    agent_id: int
    attempt: int
    temperature: float | None
    hint_index: int | None
    granted: int  # 0: no limit but its own
    segments: tuple[Segment, ...] = ()
    num_sampled: int = 0
    pending_call_id: str = ""
    build_digest: str = ""


@dataclass(frozen=True, slots=True)
class Declare:
    """Ask the router for places; ``failed`` names endpoints not to use again."""

    attempt: int
    agent_ids: tuple[int, ...]
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OpenGang:
    """Open a Decode stream."""

    gang: PlacedGang
    attempt: int
    agents: tuple[AgentOrder, ...]


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop agents of a gang."""

    gang_id: str
    agent_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Raise agents' token grants to these totals."""

    gang_id: str
    totals: dict[int, int]


@dataclass(frozen=True, slots=True)
class RunTool:
    """Run a tool call; ToolReturned answers."""

    agent_id: int
    call: Call


@dataclass(frozen=True, slots=True)
class Inject:
    """Give an agent its result."""

    gang_id: str
    agent_id: int
    call_id: str
    payload: Any


@dataclass(frozen=True, slots=True)
class CloseGang:
    """No more commands for a gang."""

    gang_id: str


@dataclass(frozen=True, slots=True)
class Emit:
    """Journal and publish an event: a field name of ContemplationEvent and its content."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """The ending was emitted: release everything."""


Effect = Declare | OpenGang | Kill | Grant | RunTool | Inject | CloseGang | Emit | End


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict before it becomes a message."""

    answer: str
    key: str
    proved: bool
    abstained: bool
    degraded_reasons: tuple[str, ...]
    decision: str
    ballots: tuple[Ballot, ...]
