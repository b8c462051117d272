"""Which endpoints may take agents of a gang, and for those that may not, why.

In a small fleet each endpoint that is not used gets a sentence. In a large one every kind of reason
is told by its first few endpoints, and the first of them says for how many it speaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from cogitate.router.core import board as b
from cogitate.router.core.board import Board, Ints
from cogitate.router.core.estimate import Estimate
from cogitate.router.core.scores import Scores
from cogitate.router.core.types import GangNeed, Rejection
from numpy.typing import NDArray

LISTED: Final = 32  # endpoints of a fleet that are all named
EXAMPLES: Final = 3  # of each kind otherwise

# Kinds of reasons after those of groups (1 to 4), the first that holds is told.
(DEAR, BUDGET, EXCLUDED, WINDOW, FAILED, DRAINING, STALE, AVOIDED, FULL, UNKNOWN, UNNEEDED) = range(
    5, 16
)
_TEMPORARY: Final = frozenset({FAILED, DRAINING, STALE, AVOIDED})
Codes = NDArray[np.int8]


def codes(need: GangNeed, board: Board, now: float) -> Codes:
    """The kind of reason for each row, 0 for those that may take agents if they have room."""
    limits = need.constraints
    why = board.group_answers(need)[board.index(b.GROUP)]
    checks: list[tuple[int, NDArray[np.bool_]]] = []
    if highest := limits.max_price_per_hour_micro_usd:
        checks.append((DEAR, board.number(b.PER_HOUR) > highest))
    if budget := need.max_cost_micro_usd:
        all_ = Scores(board, need, np.arange(len(board)))
        checks.append((BUDGET, all_.cost_micro_usd(1, all_.duration_s(1)) > budget))
    if limits.excluded:
        checks.append((EXCLUDED, named(board, limits.excluded)))
    if any(0 < window <= need.prefix_tokens for _, window in board.kinds()):
        window = board.number(b.WINDOW)
        checks.append((WINDOW, (window > 0) & (window <= need.prefix_tokens)))
    if need.failed:
        checks.append((FAILED, named(board, need.failed)))
    if board.number(b.DRAINING).any():
        checks.append((DRAINING, board.number(b.DRAINING) > 0))
    expired = board.number(b.EXPIRES) <= now
    if board.number(b.STALE).any() or expired.any():
        checks.append((STALE, (board.number(b.STALE) > 0) | expired))
    for code, holds in checks:
        why[(why == 0) & holds] = code
    if need.avoided:
        avoided = (why == 0) & named(board, need.avoided)
        if (why == 0).sum() > avoided.sum():  # never the last ones
            why[avoided] = AVOIDED
    return why


def named(board: Board, names: frozenset[str]) -> NDArray[np.bool_]:
    """Which rows have one of the names."""
    found = np.zeros(len(board), np.bool_)
    found[[board.rows[name] for name in names if name in board.rows]] = True
    return found


def summary(
    need: GangNeed, board: Board, why: Codes, scores: Scores | None = None
) -> tuple[Rejection, ...]:
    """Says why endpoints were not used: all of a small fleet, by id, or few of each kind.

    `scores` are of those that were not filtered, if anybody was used.
    """
    if len(board) <= LISTED:
        rows = np.flatnonzero(why)
        told = _told(need, board, rows, why[rows].tolist(), scores)
        return tuple(sorted(told, key=lambda r: r.endpoint_id))
    found: list[Rejection] = []
    counts = np.bincount(why, minlength=UNNEEDED + 1).tolist()
    for code in range(1, UNNEEDED + 1):
        if counts[code]:
            rows = np.flatnonzero(why == code)[:EXAMPLES]
            told = _told(need, board, rows, [code] * len(rows), scores)
            speaks_for = counts[code] - len(told) + 1
            first = told[0]
            told[0] = Rejection(first.endpoint_id, first.reason, first.temporary, speaks_for)
            found += told
    return tuple(found)


def may_return(why: Codes) -> bool:
    """Whether some that are filtered may be back without a change of the request."""
    return bool(np.isin(why, list(_TEMPORARY)).any())


def _told(
    need: GangNeed, board: Board, rows: Ints, codes: list[int], scores: Scores | None
) -> list[Rejection]:
    found: list[Rejection] = []
    places = [] if scores is None else np.searchsorted(scores.rows, rows).tolist()
    for i, (row, code) in enumerate(zip(rows.tolist(), codes, strict=True)):
        snapshot = board.snapshots[row]
        if code == UNNEEDED and scores is not None:  # nearly all of them: it is known already
            one_s = float(scores.effective(1)[places[i]] / scores.hair[places[i]])
            found.append(Rejection(snapshot.endpoint_id, _unneeded(one_s)))
            continue
        estimate = Estimate(snapshot, need, board.model)
        temporary = code in _TEMPORARY or (code == FULL and estimate.room(idle=True) > 0)
        found.append(Rejection(snapshot.endpoint_id, _SENTENCES[code](estimate), temporary))
    return found


def _unneeded(one_s: float) -> str:
    return f"others suit the gang better; one agent here: {one_s:.2f} s with its price"


def _full(one: Estimate) -> str:
    needs = one.prefix_blocks + one.blocks_per_agent
    what = one.snapshot.description
    if not one.room(idle=True):
        return f"its {what.total_blocks} KV blocks cannot hold one agent, which needs {needs}"
    return (
        f"it is full: room for {one.snapshot.free_sequences} sequences and "
        f"{one.snapshot.free_blocks} KV blocks, one agent needs {needs} blocks"
    )


def _dear(one: Estimate) -> str:
    hourly = one.snapshot.description.price_per_hour_micro_usd / 1e6
    highest = one.need.constraints.max_price_per_hour_micro_usd / 1e6
    return f"it costs {hourly:.4g} USD an hour, more than {highest:.4g}"


def _budget(one: Estimate) -> str:
    cost, budget = one.cost_micro_usd(1) / 1e6, one.need.max_cost_micro_usd / 1e6
    return f"one agent would cost {cost:.4g} USD, more than the budget {budget:.4g}"


def _lacks(one: Estimate) -> str:
    missing = one.need.capabilities - one.snapshot.description.capabilities
    return f"it lacks {', '.join(sorted(missing))}"


def _window(one: Estimate) -> str:
    window = one.snapshot.description.max_model_len
    return f"the prompt of {one.need.prefix_tokens} tokens exceeds its window of {window}"


_SENTENCES: Final[dict[int, Callable[[Estimate], str]]] = {
    b.WRONG_MODEL: lambda one: f"it does not serve the model {one.need.model}",
    b.LACKS: _lacks,
    b.WRONG_PROVIDER: lambda one: (
        f"its provider {one.snapshot.description.provider or 'without a name'} is not allowed"
    ),
    b.WRONG_REGION: lambda one: (
        f"its region {one.snapshot.description.region or 'without a name'} is not allowed"
    ),
    DEAR: _dear,
    BUDGET: _budget,
    EXCLUDED: lambda one: "the request excludes it",
    WINDOW: _window,
    FAILED: lambda one: "it failed this contemplation",
    DRAINING: lambda one: "it is draining",
    STALE: lambda one: "its reports stopped",
    AVOIDED: lambda one: "it failed or was too slow for whoever asks, just now",
    FULL: _full,
    UNKNOWN: lambda one: (
        f"its load is unknown ({one.snapshot.unknown_because}) and others have room"
    ),
    UNNEEDED: lambda one: _unneeded(one.effective_s(1)),
}
