"""Lays out a step's chunks as tensors: which row goes to which cache slot and sees what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.model.llama import AttentionGroup, StepInput
from cogitate.agent_decoder.model.looks import (
    Padding,
    Part,
    Tiles,
    by_length,
    own_look,
    shared_looks,
    tiled_looks,
)


def build_step(
    chunks: Sequence[Chunk],
    block_size: int,
    num_slots: int,
    device: torch.device,
    tiles: Tiles | None = None,
) -> StepInput:
    """Flattens the chunks in order; logits are wanted of each chunk's last row.

    ``num_slots`` is the cache's: the slot of that number is the padding's.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    embedding_rows: list[int] = []
    embeddings: list[np.ndarray] = []
    starts: list[int] = []
    contexts = [_slots(chunk, block_size) for chunk in chunks]
    for chunk in chunks:
        sequence = chunk.sequence
        starts.append(len(token_ids))
        for offset in range(chunk.length):
            position = sequence.pending[offset]
            if position.embedding is not None:
                embedding_rows.append(len(token_ids))
                embeddings.append(position.embedding)
            token_ids.append(position.token_id)
        positions += range(sequence.num_computed, sequence.num_computed + chunk.length)
    slots = np.concatenate(
        [own[-chunk.length :] for own, chunk in zip(contexts, chunks, strict=True)]
    )
    rows = [
        np.arange(start, start + chunk.length) for start, chunk in zip(starts, chunks, strict=True)
    ]
    parts = [Part(*of) for of in zip(chunks, contexts, rows, strict=True)]
    groups: tuple[AttentionGroup, ...] = ()
    if tiles is not None:
        padding = Padding(len(token_ids) + -len(token_ids) % tiles.rows, num_slots, device)
        looks = tuple(tiled_looks(parts, tiles, padding))
    else:
        padding = Padding(len(token_ids), num_slots, device)
        looks, alone = shared_looks(parts, block_size, padding)
        groups = tuple(_group(alike, padding) for alike in by_length(alone))
    last_rows = [start + chunk.length - 1 for start, chunk in zip(starts, chunks, strict=True)]
    all_last = len(chunks) == len(token_ids)
    return StepInput(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.from_numpy(slots).to(device),
        embedding_rows=torch.tensor(embedding_rows, device=device) if embeddings else None,
        embeddings=torch.from_numpy(np.stack(embeddings)).to(device) if embeddings else None,
        groups=groups,
        logit_rows=None if all_last else torch.tensor(last_rows, device=device),
        looks=looks,
        tile=tiles.rows if tiles is not None else 0,
        wide=tiles.wide if tiles is not None else 0,
    )


def _slots(chunk: Chunk, block_size: int) -> np.ndarray:
    """Cache slots of a sequence's positions up to the chunk's end."""
    table = np.array(chunk.sequence.block_table, dtype=np.int64)
    slots: np.ndarray = (table[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return slots[: chunk.sequence.num_computed + chunk.length]


def _group(parts: Sequence[Part], padding: Padding) -> AttentionGroup:
    """Pads queries and contexts of sequences that share nothing to common lengths."""
    look = own_look(parts, padding)
    assert look.visible is not None
    valid = look.rows != padding.row
    # A padded query sees the first position only: finite, and thrown away.
    seen = look.visible.clamp(min=1).unsqueeze(-1)
    mask = torch.arange(look.slots.shape[1], device=padding.device) < seen
    rows = look.rows.masked_fill(~valid, 0)
    return AttentionGroup(rows=rows, slots=look.slots, mask=mask.unsqueeze(1), valid=valid)
