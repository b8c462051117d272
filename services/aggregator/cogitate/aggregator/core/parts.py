"""What inputs and effects of a contemplation's state machine are made of."""

from __future__ import annotations

from collections.abc import Mapping
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
    budget_micro_usd: int = 0  # 0: no limit
    prepares: bool = False  # the next round's prompt is computed while agents still write
    num_images: int = 0  # of the conversation
    max_losses: int = 3  # an agent that lost its endpoint this often is given up


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
    price_per_million: int = 0  # sampled tokens, in millionths of a US dollar; 0: not by the token


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
    # Each token by itself, with its likeliest rivals, where that was asked for and told.
    tokens: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An image by its digest, or a region of it in per mille: x0, y0, x1, y1."""

    digest: str
    box: tuple[int, int, int, int] | None = None
    width_px: int = 0
    height_px: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's result; ``proved_answer`` is empty unless the tool proved one."""

    is_error: bool
    proved_answer: str
    payload: Any
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an agent's own sequence: sampled tokens, or a tool result."""

    token_ids: tuple[int, ...] = ()
    result: Any = None
    pictures: tuple[Picture, ...] = ()  # of the result
    # Of the agent's text before the result: where it came, not what the segment is.
    num_characters: int = field(default=0, compare=False)


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
    mean_logprob: float = 0.0  # of what it sampled
