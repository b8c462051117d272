"""A gang held against many endpoints at once: the formulas of ``estimate`` over arrays.

Arrays have an element for each endpoint that may take agents; a *place* is an index into them.
"""

from __future__ import annotations

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core.board import Board, Floats, Ints
from cogitate.router.core.learning import LEAST_STEP_S
from cogitate.router.core.types import GangNeed
from numpy.typing import NDArray

# Endpoints that are equal to this relative difference, times their sequences, go by their hash.
_EQUAL = 1e-9
_ARRAYS = ("rows", "sequences", "steps", "room", "_start", "_per_agent", "_per_hour")
_MAYBE = ("_per_agent_tokens", "_spot", "_mixed", "_hair", "_curves")


class Scores:
    """What a policy decides on. Nothing of it may be changed.

    `least_room` is no more than any `room` is.
    """

    def __init__(self, board: Board, need: GangNeed, rows: Ints) -> None:
        self.board, self.need, self.rows = board, need, rows
        # Of the whole fleet views do, where parts need copies.
        is_whole = len(rows) == len(board)
        self._at = at = slice(None) if is_whole else rows
        model, prefix = board.model, need.prefix_tokens
        self.sequences = board.number(b.SEQUENCES)[at]
        kinds = _Kinds(board, need)
        self.steps = kinds.of(kinds.steps, board, at)
        self.room = kinds.room(board, at)
        self._start = prefix * board.number(b.PROMPT)[at]
        if cached := cached_rows(board, need):
            self._start[cached if is_whole else np.isin(rows, cached)] = 0.0
        if need.asked_at_s < np.inf:
            waits = board.number(b.PROMPTS_UNTIL)[at] - need.asked_at_s
            self._start += np.maximum(waits, 0.0, out=waits)
        if need.region and model.far_s:
            there = board.index(b.REGION)[at]
            near = (there == board.named(b.REGION, need.region)) | (
                there == board.named(b.REGION, "")
            )
            self._start += np.where(near, 0.0, model.far_s)
        per_position = board.number(b.PER_POSITION)[at]
        fixed = per_position * prefix
        fixed += board.number(b.BASE)[at]
        self._start += self.steps * np.maximum(fixed, LEAST_STEP_S, out=fixed)
        slope = per_position * self.steps
        slope *= 0.5
        slope += board.number(b.SLOPE)[at]
        self._per_agent = self.steps * slope
        self._per_hour = board.number(b.PER_HOUR)[at]
        self._per_agent_tokens: Floats | None = None
        by_token, by_prompt = board.number(b.PER_TOKEN)[at], board.number(b.PER_PROMPT_TOKEN)[at]
        if by_token.any() or by_prompt.any():
            self._per_agent_tokens = (self.steps * by_token + prefix * by_prompt) / 1e6
        spot = board.number(b.SPOT)[at]
        self._spot = spot * (model.spot_losses_per_hour / 7200) if spot.any() else None
        self.least_room = float(self.room.min()) if len(rows) else np.inf
        self._mixed: Floats | None = None
        self._hair: Floats | None = None
        self._curves: Floats | None = None
        self._columns: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, places: Ints | NDArray[np.bool_]) -> Scores:
        """The same of some places only."""
        made = object.__new__(Scores)
        made.board, made.need = self.board, self.need
        for name in _ARRAYS:
            setattr(made, name, getattr(self, name)[places])
        for name in _MAYBE:
            known = getattr(self, name)
            setattr(made, name, None if known is None else known[..., places])
        made._at, made.least_room, made._columns = made.rows, self.least_room, {}
        return made

    def with_room(self, room: Floats) -> Scores:
        """The same with other limits of agents."""
        made = self.part(np.arange(len(self)))
        made.room, made.least_room, made._curves = room, float(room.min()), None
        return made

    @property
    def mixed(self) -> Floats:
        """The last tie rule, in [0, 1)."""
        if self._mixed is None:
            self._mixed = self.board.mixed(self.need.contemplation_id, self._at)
        return self._mixed

    @property
    def domains(self) -> Ints:
        """Index of the failure domain."""
        return self.board.index(b.DOMAIN)[self._at]

    @property
    def providers(self) -> Ints:
        """Index of the provider."""
        return self.board.index(b.PROVIDER)[self._at]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the endpoint's load is known."""
        known: NDArray[np.bool_] = self.board.number(b.KNOWN)[self._at] > 0
        return known

    @property
    def hair(self) -> Floats:
        """What tells equal endpoints apart: factors a hair over 1."""
        if self._hair is None:
            self._hair = 1.0 + _EQUAL * (self.sequences + self.mixed)
        return self._hair

    def duration_s(self, k: int) -> Floats:
        """Time until `k` agents there are done."""
        return self._start + k * self._per_agent

    def cost_micro_usd(self, k: int, duration_s: Floats) -> Floats:
        """What `k` agents there cost."""
        by_time = duration_s * self._per_hour * (k / 3600) / (self.sequences + k)
        tokens = self._per_agent_tokens
        return by_time if tokens is None else by_time + k * tokens

    def effective(self, k: int) -> Floats:
        """`Estimate.effective_s(k)`, infinite where `k` have no room; equal ones differ a hair."""
        if self._curves is not None and k <= len(self._curves):
            column: Floats = self._curves[k - 1]
            return column
        known = self._columns.get(k)
        if known is None:
            known = self._columns[k] = self._totals(k)
            known *= self.hair
            if k > self.least_room:
                known[self.room < k] = np.inf
        return known

    def curves(self, count: int) -> Floats:
        """`effective(k)` for k from 1 to `count`, shape (places, count); kept, so for few places.

        In memory a number of agents' are side by side.
        """
        if self._curves is None or len(self._curves) < count:
            ks = np.arange(1.0, count + 1)[:, None]
            self._curves = self._totals(ks)
            self._curves *= self.hair
            if count > self.least_room:
                self._curves[self.room < ks] = np.inf
        curves: Floats = self._curves[:count].T
        return curves

    def _totals(self, k: int | Floats) -> Floats:
        """Duration, what a spot machine is expected to lose of it, and cost, in seconds."""
        usd_s = self.board.model.seconds_per_usd / 1e6
        total = k * self._per_agent
        total += self._start
        # Time and what is paid by time, a part of the machine: k of all its sequences.
        factor = (k * (usd_s / 3600)) / (self.sequences + k)
        factor *= self._per_hour
        factor += 1.0
        if self._spot is not None:
            factor += total * self._spot
        total *= factor
        if self._per_agent_tokens is not None:
            total += (k * usd_s) * self._per_agent_tokens
        return total


def cached_rows(board: Board, need: GangNeed) -> list[int]:
    """Rows of the endpoints that have most of the gang's prefix."""
    names = need.cached_at | {need.prefilled_at}
    return [board.rows[name] for name in names if name in board.rows]


class _Kinds:
    """What depends on an endpoint's block size and window alone: numbers of each kind, a few."""

    def __init__(self, board: Board, need: GangNeed) -> None:
        prefix, share = need.prefix_tokens, board.model.growth_share
        wanted = float(need.tokens_per_agent or board.model.prior_tokens_per_agent)
        self.steps: list[float] = []
        self.prefix_blocks: list[float] = []
        self.each: list[float] = []
        for size, window in board.kinds():
            steps = max(1.0, min(wanted, window - prefix)) if window else max(1.0, wanted)
            grown = max(1.0, steps * share // 1)
            self.steps.append(steps)
            self.prefix_blocks.append(-(-prefix // size) if size else 0.0)
            self.each.append(-(-grown // size) if size else 0.0)

    def of(self, values: list[float], board: Board, at: Ints | slice) -> Floats:
        """A value of each kind, for each row."""
        kind = board.index(b.KIND)[at]
        if len(values) == 1:
            return np.full(len(kind), values[0], np.float64)
        return np.array(values, np.float64)[kind]

    def room(self, board: Board, at: Ints | slice, *, idle: bool = False) -> Floats:
        """The most agents that fit, now or if the endpoints were idle."""
        sequences = board.number(b.MAX_SEQUENCES if idle else b.FREE_SEQUENCES)[at]
        free = board.number(b.TOTAL_BLOCKS if idle else b.FREE_BLOCKS)[at]
        # Where blocks are not counted there is room for infinitely many.
        pairs = zip(self.prefix_blocks, self.each, strict=True)
        fit = free - self.of([p if e else -np.inf for p, e in pairs], board, at)
        fit /= self.of([e or 1.0 for e in self.each], board, at)
        np.floor(fit, out=fit)
        np.minimum(fit, sequences, out=fit)
        return np.maximum(fit, 0.0, out=fit)


def blocks(board: Board, need: GangNeed, rows: Ints | slice) -> tuple[Floats, Floats]:
    """KV blocks of the prefix, and those each agent is booked; none where they are not counted."""
    kinds = _Kinds(board, need)
    return kinds.of(kinds.prefix_blocks, board, rows), kinds.of(kinds.each, board, rows)


def idle_room(board: Board, need: GangNeed, rows: Ints) -> Floats:
    """The most agents that would fit if the endpoints were idle."""
    return _Kinds(board, need).room(board, rows, idle=True)
