"""Cuts a step's contexts into looks (see ``attention``), in one of two ways.

Plainly: what block tables begin with in common is one look of all their queries, and again below
that for those that share more; the rest of each context is its own. Or, given ``Tiles``, in looks
of one shape that are the same for a sequence in any company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.model.attention import Look
from cogitate.agent_decoder.model.llama import LlamaConfig

# Reads of a cached position that sharing must save to be worth another product.
_WORTH_SHARING = 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """The shapes of every product of a step whose rows do not depend on the step."""

    rows: int  # of the linear layers: a step is padded to whole tiles
    queries: int  # of a look
    positions: int  # of context in a look, counted from the first: also its own order of summing
    looks: int  # in one product
    wide: int = 0  # rows of larger tiles that come first, where they give the same bits; 0: none

    @classmethod
    def of(cls, config: LlamaConfig) -> Tiles:
        """Looks of about as many rows as tiles have, all heads of a key together."""
        repeat = config.num_heads // config.num_kv_heads
        return cls(rows=16, queries=max(1, 16 // repeat), positions=128, looks=4)


@dataclass(frozen=True, slots=True)
class Part:
    """A sequence in the step: its chunk, and what is left to look at of its context."""

    chunk: Chunk
    slots: np.ndarray  # (L,) int64: cache slots of its positions up to the chunk's end
    rows: np.ndarray  # (Q,) int64: its rows in the step

    def seen(self) -> np.ndarray:
        """How many of its slots each of its queries sees, (Q,): the last sees all."""
        return np.arange(len(self.slots) - len(self.rows), len(self.slots)) + 1


@dataclass(frozen=True, slots=True)
class Padding:
    """What stands for no row and no position, and where tensors go."""

    row: int
    slot: int
    device: torch.device

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def by_length(parts: Sequence[Part]) -> list[list[Part]]:
    """Chunks of like length together: a long prefix does not pad a short tool result."""
    by_length: dict[int, list[Part]] = {}
    for part in parts:
        by_length.setdefault(part.chunk.length.bit_length(), []).append(part)
    return list(by_length.values())


# -- plainly --------------------------------------------------------------------------------------


def shared_looks(
    parts: Sequence[Part], block_size: int, padding: Padding
) -> tuple[tuple[Look, ...], list[Part]]:
    """Looks at what is shared and at the rest of those that share; the parts that share nothing."""
    # Only what is computed before the step is shared: every query of the step sees all of it.
    full = [part.chunk.sequence.num_computed // block_size for part in parts]
    shared_until = [0] * len(parts)
    looks: list[Look] = []
    for members, first, end in _shared(parts, full, list(range(len(parts))), 0, block_size):
        rows = np.concatenate([parts[i].rows for i in members])
        slots = parts[members[0]].slots[first * block_size : end * block_size]
        looks.append(Look(padding.tensor(rows[None]), padding.tensor(slots[None]), None))
        for i in members:
            shared_until[i] = end * block_size
    rests = [
        Part(part.chunk, part.slots[until:], part.rows)
        for part, until in zip(parts, shared_until, strict=True)
        if until
    ]
    looks += [own_look(alike, padding) for alike in by_length(rests)]
    alone = [part for part, until in zip(parts, shared_until, strict=True) if not until]
    return tuple(looks), alone


def _shared(
    parts: Sequence[Part], full: Sequence[int], members: Sequence[int], at: int, block_size: int
) -> Iterator[tuple[list[int], int, int]]:
    """Members whose tables agree from block ``at`` on, with the first block and the one behind.

    Those that agree further come again, later and from there on.
    """
    by_block: dict[int, list[int]] = {}
    for i in members:
        if at < full[i]:
            by_block.setdefault(parts[i].chunk.sequence.block_table[at], []).append(i)
    for same in by_block.values():
        if len(same) == 1:
            continue
        tables = np.array([parts[i].chunk.sequence.block_table[: min(full[j] for j in same)]
                           for i in same])[:, at:]  # fmt: skip
        agree = (tables == tables[0]).all(axis=0)
        count = len(agree) if agree.all() else int(agree.argmin())
        if count * block_size * (len(same) - 1) < _WORTH_SHARING:
            continue
        yield same, at, at + count
        yield from _shared(parts, full, same, at + count, block_size)


def own_look(parts: Sequence[Part], padding: Padding) -> Look:
    """One look at what each has for itself, padded to common lengths."""
    num_queries = max(len(part.rows) for part in parts)
    num_context = max(len(part.slots) for part in parts)
    rows = np.full((len(parts), num_queries), padding.row, dtype=np.int64)
    slots = np.full((len(parts), num_context), padding.slot, dtype=np.int64)
    visible = np.zeros((len(parts), num_queries), dtype=np.int64)
    for i, part in enumerate(parts):
        rows[i, : len(part.rows)] = part.rows
        slots[i, : len(part.slots)] = part.slots
        visible[i, : len(part.rows)] = part.seen()
    return Look(*map(padding.tensor, (rows, slots, visible)))


# -- in fixed shapes ------------------------------------------------------------------------------


def tiled_looks(parts: Sequence[Part], tiles: Tiles, padding: Padding) -> Iterator[Look]:
    """Looks of one shape: first all at the first stretch of their context, then at the second …

    Queries stand in one look if their sequences have the same slots in a whole stretch.
    """
    size = tiles.positions
    for start in range(0, max(len(part.slots) for part in parts), size):
        alike: dict[bytes | int, tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]] = {}
        for i, part in enumerate(parts):
            stretch, visible = part.slots[start : start + size], part.seen() - start
            seeing = visible > 0
            if not len(stretch):
                continue
            key = stretch.tobytes() if len(stretch) == size else i
            _, rows, seen = alike.setdefault(key, (stretch, [], []))
            rows.append(part.rows[seeing])
            seen.append(np.minimum(visible[seeing], size))
        yield from _tiled(list(alike.values()), tiles, padding)


def _tiled(
    alike: Sequence[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]],
    tiles: Tiles,
    padding: Padding,
) -> Iterator[Look]:
    """Cuts what looks at one stretch into looks of ``tiles.queries``, and those into products."""
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for stretch, rows, seen in alike:
        all_rows, all_seen = np.concatenate(rows), np.concatenate(seen)
        for i in range(0, len(all_rows), tiles.queries):
            cut = slice(i, i + tiles.queries)
            pieces.append((stretch, all_rows[cut], all_seen[cut]))
    for i in range(0, len(pieces), tiles.looks):
        rows_of = np.full((tiles.looks, tiles.queries), padding.row, dtype=np.int64)
        visible = np.zeros((tiles.looks, tiles.queries), dtype=np.int64)
        slots = np.full((tiles.looks, tiles.positions), padding.slot, dtype=np.int64)
        for j, (stretch, own_rows, own_seen) in enumerate(pieces[i : i + tiles.looks]):
            slots[j, : len(stretch)] = stretch
            rows_of[j, : len(own_rows)] = own_rows
            visible[j, : len(own_rows)] = own_seen
        yield Look(*map(padding.tensor, (rows_of, slots, visible)))
