"""What goes into and comes out of the state machine of a contemplation.

Inputs are what happened; effects are what the shell is to do; events are what the client sees.
``payload`` fields hold a message the core hands on without looking inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    initial_agents: int = 0  # begin with so many and widen; 0: all at once
    max_rounds: int = 0  # 0: as many as the strategy has
    patience_s: float = 0.0  # how long an agent may wait for a place
    prepares: bool = False  # the next round's prompt is computed while agents still write


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
    """The router has no place; ``retry_after_s`` says when it may have one, None for never."""

    attempt: int
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class AskAgain:
    """The time of an AskLater is over."""

    agent_ids: tuple[int, ...]


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
    """An endpoint refused a gang, broke off or vanished.

    ``retry_after_s`` is set if it refused because it is full just now.
    """

    gang_id: str
    reason: str
    message: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The contemplation's time is over."""


@dataclass(frozen=True, slots=True)
class MoneySpent:
    """What it cost so far has reached the budget."""


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The client wants no answer any more: DISCONNECTED or REQUESTED."""

    reason: str


@dataclass(frozen=True, slots=True)
class ShuttingDown:
    """This process ends."""


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """Another process goes on from the journal: streams, questions and timers ended with the last.

    ``epoch`` is the new owner's.
    """

    epoch: int


Input = (
    Granted
    | Denied
    | AskAgain
    | Admitted
    | Prefilled
    | Stepped
    | ToolCalled
    | ToolReturned
    | AgentEnded
    | GrantUsedUp
    | GangLost
    | DeadlinePassed
    | MoneySpent
    | CancelRequested
    | ShuttingDown
    | OwnerChanged
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
    opening: str = ""
    max_tokens: int = 0  # 0: as asked
    segments: tuple[Segment, ...] = ()
    num_sampled: int = 0
    pending_call_id: str = ""
    build_digest: str = ""


@dataclass(frozen=True, slots=True)
class Declare:
    """Ask the router for places; ``failed`` names endpoints not to use again.

    ``anew`` asks for a lease, else for other places under the lease there is. ``prefilled_at`` is
    an endpoint that has most of the agents' prompt in its prefix cache; empty: none.
    """

    attempt: int
    agent_ids: tuple[int, ...]
    failed: tuple[tuple[str, str], ...] = ()
    anew: bool = True
    role: str = "solver"
    prefilled_at: str = ""


@dataclass(frozen=True, slots=True)
class AskLater:
    """Wait, then put AskAgain."""

    agent_ids: tuple[int, ...]
    after_s: float


@dataclass(frozen=True, slots=True)
class OpenGang:
    """Open a Decode stream. ``turns`` (speaker, text) follow the conversation."""

    gang: PlacedGang
    attempt: int
    agents: tuple[AgentOrder, ...]
    role: str = "solver"
    turns: tuple[tuple[str, str], ...] = ()
    has_tools: bool = True


@dataclass(frozen=True, slots=True)
class Prepare:
    """Have an endpoint compute a prompt and keep it in its prefix cache; nothing is sampled.

    Prefilled says that it is done, GangLost that the gang's stream ended. BreakOff ends it early.
    """

    gang: PlacedGang
    role: str
    turns: tuple[tuple[str, str], ...]
    has_tools: bool


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
class SetThreshold:
    """Stop agents of a gang whose group confidence falls under this."""

    gang_id: str
    group_confidence: float


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
class BreakOff:
    """Cut a Decode stream: its agents have gone elsewhere."""

    gang_id: str


@dataclass(frozen=True, slots=True)
class Emit:
    """Journal and publish an event: a field name of ContemplationEvent and its content."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


Effect = (
    Declare
    | AskLater
    | OpenGang
    | Prepare
    | Kill
    | Grant
    | SetThreshold
    | RunTool
    | Inject
    | CloseGang
    | BreakOff
    | Emit
)
