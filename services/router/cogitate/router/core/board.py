"""The fleet as arrays, a row an endpoint, so that a gang is scored against all of it at once.

A row is written when its endpoint reports or is booked, and read by every placement. What is the
same for many endpoints (models, capabilities, provider, region) is a *group*: a gang is held
against each group once, and the answer is kept.

Invariants (tests/property/test_router_board.py):
1. After any puts and removals it holds what a new board of the same snapshots holds
   (test_a_board_kept_up_to_date_is_one_made_anew).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from cogitate.router.core.estimate import CostModel, positions_of, prompt_position_s, speed_of
from cogitate.router.core.types import Description, EndpointSnapshot, GangNeed, State
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Columns of numbers, as `_row` makes them.
(
    EXPIRES, STALE, DRAINING, KNOWN, SPOT, SEQUENCES, MAX_SEQUENCES, FREE_SEQUENCES, FREE_BLOCKS,
    TOTAL_BLOCKS, BLOCK_SIZE, WINDOW, BASE, SLOPE, PER_POSITION, PROMPT, PER_HOUR, PER_TOKEN,
    PROMPTS_UNTIL, PER_PROMPT_TOKEN,
) = range(20)  # fmt: skip
# Columns of indices: into groups, providers, failure domains, regions, kinds of memory.
GROUP, PROVIDER, DOMAIN, REGION, KIND = range(5)
# Why a group is filtered; 0: it is not.
WRONG_MODEL, LACKS, WRONG_PROVIDER, WRONG_REGION = 1, 2, 3, 4
_MAX_ANSWERS: Final = 256

Group = tuple[tuple[str, ...], frozenset[str], str, str]
_Asked = tuple[str, frozenset[str], frozenset[str], frozenset[str]]


class Board:
    """Owns the rows. `snapshots[i]` is what row i was made of. Rows move when others go."""

    def __init__(self, model: CostModel) -> None:
        self.model = model
        self.snapshots: list[EndpointSnapshot] = []
        self.rows: dict[str, int] = {}
        self._numbers = np.zeros((20, 16))
        self._indices = np.zeros((5, 16), np.int64)
        self._hashes = np.zeros(16, np.uint64)
        self._named: tuple[dict[object, int], ...] = ({}, {}, {}, {}, {})
        self._answers: dict[_Asked, NDArray[np.int8]] = {}

    @classmethod
    def of(cls, snapshots: Iterable[EndpointSnapshot], model: CostModel) -> Board:
        """Makes a board; rows are in the order of ids, so that the order given does not matter."""
        board = cls(model)
        for snapshot in sorted(snapshots, key=lambda s: s.endpoint_id):
            board.put(snapshot)
        return board

    def __len__(self) -> int:
        return len(self.snapshots)

    def put(self, snapshot: EndpointSnapshot) -> None:
        """Writes an endpoint's row, a new one if it has none."""
        row = self.rows.get(snapshot.endpoint_id)
        if row is None:
            row = self.rows[snapshot.endpoint_id] = len(self.snapshots)
            self.snapshots.append(snapshot)
            if row == len(self._hashes):
                self._numbers = np.concatenate((self._numbers, self._numbers), axis=1)
                self._indices = np.concatenate((self._indices, self._indices), axis=1)
                self._hashes = np.concatenate((self._hashes, self._hashes))
            self._hashes[row] = hash64(snapshot.endpoint_id)
            self._name(row, snapshot)
        elif self.snapshots[row].description is not snapshot.description:
            self._name(row, snapshot)
        self.snapshots[row] = snapshot
        self._numbers[:, row] = _row(snapshot, self.model)

    def remove(self, endpoint_id: str) -> None:
        """Forgets an endpoint, if it is there; the last row takes its place."""
        row = self.rows.pop(endpoint_id, None)
        if row is None:
            return
        last = self.snapshots.pop()
        if last.endpoint_id != endpoint_id:
            end = len(self.snapshots)
            self.rows[last.endpoint_id] = row
            self.snapshots[row] = last
            self._numbers[:, row] = self._numbers[:, end]
            self._indices[:, row] = self._indices[:, end]
            self._hashes[row] = self._hashes[end]

    def number(self, column: int) -> Floats:
        """A column of numbers; a view, not to be changed."""
        return self._numbers[column, : len(self.snapshots)]

    def index(self, column: int) -> Ints:
        """A column of indices; a view, not to be changed."""
        return self._indices[column, : len(self.snapshots)]

    def count(self, column: int) -> int:
        """How many different values a column of indices has had."""
        return len(self._named[column])

    def named(self, column: int, value: object) -> int:
        """The index of a value, -1 if no endpoint has had it."""
        return self._named[column].get(value, -1)

    def group_answers(self, need: GangNeed) -> NDArray[np.int8]:
        """Why each group may not take the gang, 0 if it may; kept for the next gang like it."""
        limits = need.constraints
        asked = (need.model, need.capabilities, limits.providers, limits.regions)
        known = self._answers.get(asked)
        groups = self._named[GROUP]
        if known is None or len(known) < len(groups):
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.pop(next(iter(self._answers)))
            answers = [_answer(group, asked) for group in groups]  # type: ignore[arg-type]
            known = self._answers[asked] = np.array(answers, np.int8)
        return known

    def kinds(self) -> Iterable[tuple[int, int]]:
        """Block size (0: memory is not counted) and window of each kind, by its index."""
        return self._named[KIND]  # type: ignore[return-value]

    def mixed(self, text: str, rows: Ints | slice) -> Floats:
        """A number in [0, 1) for each of the rows that depends on endpoint and `text` alone."""
        x = self._hashes[: len(self.snapshots)][rows] ^ np.uint64(hash64(text))
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x >>= np.uint64(11)
        return x.astype(np.float64) * 2.0**-53

    def _name(self, row: int, snapshot: EndpointSnapshot) -> None:
        what = snapshot.description
        group = (what.models, what.capabilities, what.provider, what.region)
        kind = (_block_size(what), what.max_model_len)
        values: tuple[object, ...] = (group, what.provider, what.domain, what.region, kind)
        for column, value in enumerate(values):
            named = self._named[column]
            self._indices[column, row] = named.setdefault(value, len(named))


def hash64(text: str) -> int:
    """64 bits that depend on the text alone, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _block_size(what: Description) -> int:
    return what.block_size if what.total_blocks else 0


def _row(snapshot: EndpointSnapshot, model: CostModel) -> tuple[float, ...]:
    what = snapshot.description
    speed, sequences = speed_of(snapshot, model), snapshot.sequences
    base = speed.base_s + speed.per_sequence_s * sequences
    return (
        snapshot.expires_at_s,
        snapshot.state is State.STALE,
        snapshot.state is State.DRAINING,
        snapshot.load is not None,
        what.is_spot,
        sequences,
        what.max_sequences,
        max(0, what.max_sequences - sequences),
        snapshot.free_blocks,
        what.total_blocks,
        _block_size(what),
        what.max_model_len,
        base + speed.per_position_s * positions_of(snapshot),
        speed.per_sequence_s,
        speed.per_position_s,
        prompt_position_s(snapshot, model),
        what.price_per_hour_micro_usd,
        what.price_per_million_tokens_micro_usd,
        snapshot.prompts_until_s,
        what.price_per_million_prompt_tokens_micro_usd,
    )


def _answer(group: Group, asked: _Asked) -> int:
    (models, has, provider, region), (model, needs, providers, regions) = group, asked
    if model not in models:
        return WRONG_MODEL
    if needs - has:
        return LACKS
    if providers and provider not in providers:
        return WRONG_PROVIDER
    return WRONG_REGION if regions and region not in regions else 0
