"""What goes into and comes out of the state machine of a contemplation.

Inputs are what happened; effects are what the shell is to do; events are what the client sees.
``payload`` fields hold a message the core hands on without looking inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cogitate.aggregator.core.parts import (
    AgentOrder,
    Call,
    Delta,
    Picture,
    PlacedGang,
    Result,
    Segment,
    Spec,
)

# What is taken over from there; everything defined here is meant for others anyhow.
__all__ = ["AgentOrder", "Call", "Delta", "Picture", "PlacedGang", "Result", "Segment", "Spec"]

# -- inputs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """The router placed the agents."""

    attempt: int
    gangs: tuple[PlacedGang, ...]
    policy: str
    payload: Any = None


class Failure(NamedTuple):
    """Why there is no answer; ``retry_after_s`` says when asking again may help, if known."""

    reason: str
    message: str
    retryable: bool
    retry_after_s: float | None = None


class LostAttempt(NamedTuple):
    """An attempt that ended before its agent did; ``resumed`` unless the agent ended with it."""

    agent_id: int
    attempt: int
    endpoint_id: str
    reason: str
    resumed: bool


NO_ANSWER = Failure("NO_QUORUM", "no agent gave an answer", True)


@dataclass(frozen=True, slots=True)
class Denied:
    """The router has no place; ``retry_after_s`` says when it may have one, None for never.

    ``is_final``: it was in the router's queue as long as it may, or was not let in.
    """

    attempt: int
    reason: str
    message: str
    retry_after_s: float | None = None
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Queued:
    """The router has no room yet; an answer follows. ``expected_s`` None: not known how soon."""

    attempt: int
    ahead: int
    expected_s: float | None = None


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
class Stepped:
    """One engine step of a gang."""

    gang_id: str
    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """An agent paused on a call."""

    gang_id: str
    agent_id: int
    attempt: int
    call: Call


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
    reason: str = ""  # of a kill or an error, in the endpoint's word
    num_prompt: int = 0  # positions of calls of its own, beside the gang's prompt
    num_cached: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vector of an agent's answer, of length 1; empty if ``failure`` says why there is none."""

    agent_id: int
    vector: tuple[float, ...]
    failure: str = ""


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
class Straggling:
    """Agents are much slower than their siblings: they may be hedged."""

    agent_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RetriesRefused:
    """There may be no more attempts just now: of a question, these agents get no place."""

    attempt: int
    agent_ids: tuple[int, ...]
    message: str


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
    | Queued
    | AskAgain
    | Admitted
    | Prefilled
    | Stepped
    | ToolCalled
    | ToolReturned
    | AgentEnded
    | Embedded
    | GrantUsedUp
    | GangLost
    | Straggling
    | RetriesRefused
    | DeadlinePassed
    | MoneySpent
    | CancelRequested
    | ShuttingDown
    | OwnerChanged
)

# -- effects ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declare:
    """Ask the router for places; ``failed`` names endpoints not to use again.

    ``anew`` asks for a lease, else for other places under the lease there is. ``prefilled_at`` is
    an endpoint that has most of the agents' prompt in its prefix cache; empty: none. One that
    ``is_retry`` makes further attempts, which are counted; ``slow_at`` are endpoints that are slow.
    """

    attempt: int
    agent_ids: tuple[int, ...]
    failed: tuple[tuple[str, str], ...] = ()
    anew: bool = True
    role: str = "solver"
    prefilled_at: str = ""
    is_retry: bool = False
    slow_at: tuple[str, ...] = ()


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
    """Run a tool call; ToolReturned answers. ``pictures`` follow the conversation's."""

    agent_id: int
    call: Call
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Embed:
    """Ask the model for an answer's vector; Embedded answers."""

    agent_id: int
    answer: str


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
    | Embed
    | Inject
    | CloseGang
    | BreakOff
    | Emit
)
