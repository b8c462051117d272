"""A sequence: the positions of one agent, or of a gang's common prefix, and where they live.

Invariants (``tests/property/test_scheduler.py``):

1. ``num_computed`` positions have their KV in ``block_table``; the rest waits in ``pending``.
2. Blocks shared with siblings are full and never written; a partial block is copied at a fork.
3. A sequence is in exactly one state, and only RUNNING sequences are scheduled.
4. An agent with no computed position owns no memory: it waits for room, fresh or preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cogitate.agent_decoder.core.constraint import Matcher
from cogitate.agent_decoder.core.sampling import Row, SamplingParams, uniforms
from cogitate.agent_decoder.core.transcript import Transcript, Turn


class State(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    AWAITING_GRANT = "awaiting_grant"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Position:
    """One position to compute: a token, or a row of an image's embedding in a token's place."""

    token_id: int
    embedding: Any = None  # (hidden,) float32 array, finite, or None


@dataclass(slots=True)
class Sequence:
    """Positions with their blocks. ``pending`` are the next to compute, oldest first."""

    pending: deque[Position]
    block_table: list[int] = field(default_factory=list)
    num_computed: int = 0
    state: State = State.WAITING

    @property
    def num_positions(self) -> int:
        """Computed and pending positions together."""
        return self.num_computed + len(self.pending)


# DeepConf uses 2048 tokens with models that write 20,000; answers here are a hundred times shorter.
CONFIDENCE_WINDOW = 32
# Random numbers made at once: one costs as much as all of them.
DRAWS_AHEAD = 64


@dataclass(slots=True)
class Agent:
    """One agent of a gang."""

    agent_id: int
    attempt: int
    params: SamplingParams
    seed: int
    transcript: Transcript
    sequence: Sequence
    granted: int  # tokens it may sample before it needs another grant
    stop_ids: frozenset[int]  # tokens that end its turn
    end_ids: frozenset[int]  # of these, those that the model ends every turn with
    matcher: Matcher | None = None  # of the grammar its answer must follow
    opening: tuple[Position, ...] = ()
    sampled: list[int] = field(default_factory=list)
    # What was injected, in order: (tokens sampled before it, positions, origin).
    injections: list[tuple[int, tuple[Position, ...], Any]] = field(default_factory=list)
    paused: bool = False  # by command: until something is injected that answers no call
    num_injected: int = 0
    num_calls: int = 0
    pending_call_id: str = ""
    last_turn: Turn = Turn.NONE  # what its newest token did
    logprob_sum: float = 0.0
    confidences: deque[float] = field(default_factory=lambda: deque(maxlen=CONFIDENCE_WINDOW))
    lowest_confidence: float = float("inf")
    num_unheld: int | None = None  # tokens from before the gang's threshold; None: it has none
    _draws: list[float] = field(default_factory=list)
    _draws_from: int = 0

    @property
    def mean_logprob(self) -> float:
        """Mean log probability of its sampled tokens; 0 before the first."""
        return self.logprob_sum / len(self.sampled) if self.sampled else 0.0

    @property
    def group_confidence(self) -> float:
        """Mean token confidence over the last window."""
        return sum(self.confidences) / len(self.confidences) if self.confidences else 0.0

    @property
    def may_stop(self) -> bool:
        """Whether its next token may end it."""
        return len(self.sampled) >= self.params.min_tokens

    def row(self) -> Row:
        """What its next token is sampled with."""
        index = len(self.sampled) - self._draws_from
        if not 0 <= index < len(self._draws):
            self._draws_from, index = len(self.sampled), 0
            self._draws = uniforms(self.seed, self.agent_id, self._draws_from, DRAWS_AHEAD)
        banned = frozenset() if self.may_stop else self.stop_ids
        allowed = None
        if self.matcher is not None and self.transcript.is_answer:
            allowed = self.matcher.allowed()
        elif self.matcher is not None:
            banned |= self.end_ids  # a turn without an answer would be none of the grammar's
        return Row(self.params, self.sampled, self._draws[index], banned, allowed)

    @property
    def runs(self) -> bool:
        """Whether it waits for nothing but memory and its turn."""
        return self.sequence.state in (State.WAITING, State.RUNNING)

    @property
    def waits_for_room(self) -> bool:
        """Whether it could go on if it had memory."""
        return not self.sequence.num_computed and self.runs

    def positions(self) -> Iterator[Position]:
        """All its own positions, in order: opening, sampled tokens, what was injected."""
        yield from self.opening
        at = 0
        for count, positions, _ in self.injections:
            yield from map(Position, self.sampled[at:count])
            yield from positions
            at = count
        yield from map(Position, self.sampled[at:])

    def observe(self, token_id: int, logprob: float | None, confidence: float | None) -> None:
        """Books one sampled token; what is not known of it counts as 0, or not at all."""
        self.sampled.append(token_id)
        self.logprob_sum += logprob or 0.0
        if confidence is None:
            return
        self.confidences.append(confidence)
        if len(self.confidences) == CONFIDENCE_WINDOW:
            self.lowest_confidence = min(self.lowest_confidence, self.group_confidence)
