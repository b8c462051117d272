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
_ARRAYS = (
    "rows", "sequences", "steps", "room", "mixed", "_prefill", "_fixed", "_per_agent", "_per_hour",
    "_per_agent_tokens", "_spot",
)  # fmt: skip


class Scores:
    """What a policy decides on. Nothing of it may be changed."""

    def __init__(self, board: Board, need: GangNeed, rows: Ints) -> None:
        self.board, self.need, self.rows = board, need, rows
        # Of the whole fleet views do, where parts need copies.
        at: Ints | slice = slice(None) if len(rows) == len(board) else rows
        model, prefix = board.model, need.prefix_tokens
        self.sequences = board.number(b.SEQUENCES)[at]
        self.steps = steps(board, need, at)
        self._prefill = prefix * board.number(b.PROMPT)[at]
        if cached := cached_rows(board, need):
            self._prefill[np.isin(rows, cached)] = 0.0
        if need.asked_at_s < np.inf:
            waits = board.number(b.PROMPTS_UNTIL)[at] - need.asked_at_s
            self._prefill += np.maximum(0.0, waits)
        if need.region and model.far_s:
            there = board.index(b.REGION)[at]
            near = (there == board.named(b.REGION, need.region)) | (
                there == board.named(b.REGION, "")
            )
            self._prefill = self._prefill + np.where(near, 0.0, model.far_s)
        per_position = board.number(b.PER_POSITION)[at]
        self._fixed = self.steps * np.maximum(
            LEAST_STEP_S, board.number(b.BASE)[at] + per_position * prefix
        )
        slope = board.number(b.SLOPE)[at] + per_position * self.steps / 2
        self._per_agent = self.steps * slope
        self._per_hour = board.number(b.PER_HOUR)[at] / 3600
        self._per_agent_tokens = self.steps * board.number(b.PER_TOKEN)[at] / 1e6
        self._spot = board.number(b.SPOT)[at] * (model.spot_losses_per_hour / 7200)
        self._has_spot = bool(self._spot.any())
        self.room = room(board, need, at, self.steps)
        self.mixed = board.mixed(need.contemplation_id)[at]  # the last tie rule, in [0, 1)
        self._columns: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, places: Ints | NDArray[np.bool_]) -> Scores:
        """The same of some places only."""
        made = object.__new__(Scores)
        made.board, made.need, made._has_spot = self.board, self.need, self._has_spot
        for name in _ARRAYS:
            setattr(made, name, getattr(self, name)[places])
        made._columns = {}
        return made

    def with_room(self, room: Floats) -> Scores:
        """The same with other limits of agents."""
        made = self.part(np.arange(len(self)))
        made.room = room
        return made

    @property
    def domains(self) -> Ints:
        """Index of the failure domain."""
        return self.board.index(b.DOMAIN)[self.rows]

    @property
    def providers(self) -> Ints:
        """Index of the provider."""
        return self.board.index(b.PROVIDER)[self.rows]

    def duration_s(self, k: int) -> Floats:
        """Time until `k` agents there are done."""
        return self._prefill + self._fixed + k * self._per_agent

    def cost_micro_usd(self, k: int, duration_s: Floats) -> Floats:
        """What `k` agents there cost."""
        part = k / (self.sequences + k)
        return k * self._per_agent_tokens + part * duration_s * self._per_hour

    def effective(self, k: int) -> Floats:
        """`Estimate.effective_s(k)`, infinite where `k` have no room; equal ones differ a hair."""
        known = self._columns.get(k)
        if known is None:
            duration_s = self.duration_s(k)
            money = self.cost_micro_usd(k, duration_s) * (self.board.model.seconds_per_usd / 1e6)
            total = duration_s + money
            if self._has_spot:
                total += duration_s * duration_s * self._spot
            total *= 1.0 + _EQUAL * (self.sequences + self.mixed)
            known = self._columns[k] = np.where(self.room >= k, total, np.inf)
        return known

    def curves(self, count: int) -> Floats:
        """`effective(k)` for k from 1 to `count`, shape (places, count); for few places."""
        ks = np.arange(1.0, count + 1)
        duration_s = (self._prefill + self._fixed)[:, None] + ks * self._per_agent[:, None]
        part = ks / (self.sequences[:, None] + ks)
        money = ks * self._per_agent_tokens[:, None] + part * duration_s * self._per_hour[:, None]
        total = duration_s + money * (self.board.model.seconds_per_usd / 1e6)
        if self._has_spot:
            total += duration_s * duration_s * self._spot[:, None]
        total *= 1.0 + _EQUAL * (self.sequences + self.mixed)[:, None]
        return np.where(self.room[:, None] >= ks, total, np.inf)


def cached_rows(board: Board, need: GangNeed) -> list[int]:
    """Rows of the endpoints that have most of the gang's prefix."""
    names = need.cached_at | {need.prefilled_at}
    return [board.rows[name] for name in names if name in board.rows]


def steps(board: Board, need: GangNeed, rows: Ints | slice) -> Floats:
    """Tokens each agent is expected to sample, no more than each window leaves."""
    wanted = float(need.tokens_per_agent or board.model.prior_tokens_per_agent)
    window = board.number(b.WINDOW)[rows]
    left = np.where(window > 0, window - need.prefix_tokens, wanted)
    return np.maximum(1.0, np.minimum(wanted, left))


def blocks(
    board: Board, need: GangNeed, rows: Ints | slice, steps: Floats
) -> tuple[Floats, Floats]:
    """KV blocks of the prefix, and those each agent is booked; none where they are not counted."""
    size = board.number(b.BLOCK_SIZE)[rows]
    counted = np.maximum(1.0, size)
    grown = np.maximum(1.0, np.floor(steps * board.model.growth_share))
    prefix = np.where(size > 0, np.ceil(need.prefix_tokens / counted), 0.0)
    return prefix, np.where(size > 0, np.ceil(grown / counted), 0.0)


def room(
    board: Board, need: GangNeed, rows: Ints | slice, steps: Floats, *, idle: bool = False
) -> Floats:
    """The most agents that fit, now or if the endpoints were idle."""
    sequences = board.number(b.MAX_SEQUENCES if idle else b.FREE_SEQUENCES)[rows]
    free = board.number(b.TOTAL_BLOCKS if idle else b.FREE_BLOCKS)[rows]
    prefix, each = blocks(board, need, rows, steps)
    fit = np.where(each > 0, np.floor((free - prefix) / np.maximum(1.0, each)), sequences)
    return np.maximum(0.0, np.minimum(sequences, fit))
