"""What the engine says about a gang, in order. The runtime turns these into messages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cogitate.agent_decoder.core.starts import InjectedPositions, SampledTokens


class Finish(Enum):
    """Why an agent ended; names as in cogitate.v1.FinishReason."""

    STOP = "STOP"
    LENGTH = "LENGTH"
    CANCELLED = "CANCELLED"
    BUDGET = "BUDGET"
    CONFIDENCE = "CONFIDENCE"
    ERROR = "ERROR"
    CONTENT_FILTER = "CONTENT_FILTER"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The gang has its memory and begins."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The gang can never or not now be taken; ``retry_after_s`` is None for never."""

    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The common prefix is computed."""

    num_positions: int
    queue_s: float
    prefill_s: float
    num_cached: int = 0  # of these positions, found computed
    num_steps: int = 0  # that computed the rest


@dataclass(frozen=True, slots=True)
class Delta:
    """What one agent produced in a step."""

    agent_id: int
    attempt: int
    token_offset: int
    token_id: int
    text: str
    logprob: float | None  # None where the engine is not told
    group_confidence: float
    is_answer: bool
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An agent paused on a call."""

    agent_id: int
    attempt: int
    call_id: str
    name: str
    arguments_json: str
    raw_text: str
    num_sampled: int


@dataclass(frozen=True, slots=True)
class Injected:
    """An injection is in; the agent goes on."""

    agent_id: int
    call_id: str
    num_positions: int


@dataclass(frozen=True, slots=True)
class Paused:
    """An agent that ran stands still by command."""

    agent_id: int
    num_sampled: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All an agent needs to go on elsewhere, as of its newest token."""

    agent_id: int
    attempt: int
    segments: tuple[SampledTokens | InjectedPositions, ...]
    num_sampled: int
    withheld: str
    pending_call_id: str
    mean_logprob: float
    lowest_confidence: float
    group_confidence: float


@dataclass(frozen=True, slots=True)
class AwaitingGrant:
    """An agent used up its grant."""

    agent_id: int
    num_sampled: int


@dataclass(frozen=True, slots=True)
class Finished:
    """An agent's end, exactly one for each agent and attempt."""

    agent_id: int
    attempt: int
    finish: Finish
    answer: str
    num_sampled: int
    num_injected: int
    mean_logprob: float
    lowest_confidence: float
    group_confidence: float
    kill_reason: str = ""
    num_unheld: int | None = None  # tokens from before the threshold; None where there was none
    num_prompt: int = 0  # positions of calls of its own, beside what Prefilled told
    num_cached: int = 0

    @classmethod
    def unstarted(cls, agent_id: int, attempt: int, reason: str) -> Finished:
        """The end of an agent that could not be taken; ``reason`` is an error's."""
        return cls(agent_id, attempt, Finish.ERROR, "", 0, 0, 0.0, 0.0, 0.0, reason)


@dataclass(frozen=True, slots=True)
class Draining:
    """The endpoint will go away."""

    remaining_s: float


@dataclass(frozen=True, slots=True)
class GangDone:
    """All agents ended and the gang was closed: the engine's own account."""

    num_prompt: int
    num_sampled: int
    num_injected: int
    num_steps: int
    decode_s: float
    num_cached: int = 0  # of the prompt's positions
    cost_micro_usd: int = 0  # where a provider charges by the token


Event = (
    Admitted
    | Refused
    | Prefilled
    | Delta
    | ToolCall
    | Injected
    | Paused
    | Snapshot
    | AwaitingGrant
    | Finished
    | Draining
    | GangDone
)
