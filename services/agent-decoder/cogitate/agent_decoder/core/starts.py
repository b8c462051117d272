"""How gangs and agents begin: what the shell hands to the engine. Embeddings are in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from cogitate.agent_decoder.core.constraint import Grammar
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.transcript import ControlTokens


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Replayed tokens that the agent itself sampled."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InjectedPositions:
    """Replayed positions that were injected."""

    positions: tuple[Position, ...]
    origin: Any = None  # what the shell makes them from again; opaque here


@dataclass(frozen=True, slots=True)
class AgentStart:
    """How an agent begins: fresh, or from what an earlier attempt wrote."""

    agent_id: int
    attempt: int
    params: SamplingParams
    seed: int
    opening: tuple[Position, ...] = ()
    replay: tuple[SampledTokens | InjectedPositions, ...] = ()
    pending_call_id: str = ""
    granted: int = 0  # 0 means up to its sampling limit
    mean_logprob: float = 0.0  # of the replayed tokens
    lowest_confidence: float = float("inf")  # of the replayed tokens
    grammar: Grammar | None = None  # what its answer must follow

    @property
    def num_sampled(self) -> int:
        """Replayed tokens that were sampled."""
        return sum(len(s.token_ids) for s in self.replay if isinstance(s, SampledTokens))

    @property
    def num_injected(self) -> int:
        """Replayed positions that were injected."""
        return sum(len(s.positions) for s in self.replay if isinstance(s, InjectedPositions))


@dataclass(frozen=True, slots=True)
class GangStart:
    """A gang as the engine takes it."""

    prefix: tuple[Position, ...]
    agents: tuple[AgentStart, ...]
    instant: bool = False
    salt: str = ""  # whose prefix cache it may use: its tenant's
    priority: int = 0  # higher is served first
    deadline_s: float = math.inf  # on the engine's clock; among equals the earlier is served first


@dataclass(frozen=True, slots=True)
class GangRules:
    """What the model and the engine fix for every gang."""

    control: ControlTokens
    decode: Callable[[Seq[int]], str]
    marks_answers: bool
    max_model_len: int
    max_injected: int  # positions tool results may add to an agent
