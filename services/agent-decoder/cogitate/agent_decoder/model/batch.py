"""Lays out a step's chunks as tensors: which row goes to which cache slot and sees what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.model.llama import AttentionGroup, StepInput


def build_step(
    chunks: Sequence[Chunk], block_size: int, num_slots: int, device: torch.device
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
    # Chunks of like length share a group: a long prefix does not pad a short tool result.
    by_length: dict[int, list[int]] = {}
    for i, chunk in enumerate(chunks):
        by_length.setdefault(chunk.length.bit_length(), []).append(i)
    groups = tuple(
        _group([chunks[i] for i in members], [contexts[i] for i in members],
               [starts[i] for i in members], num_slots, device)
        for members in by_length.values()
    )  # fmt: skip
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
    )


def _slots(chunk: Chunk, block_size: int) -> np.ndarray:
    """Cache slots of a sequence's positions up to the chunk's end."""
    table = np.array(chunk.sequence.block_table, dtype=np.int64)
    slots: np.ndarray = (table[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return slots[: chunk.sequence.num_computed + chunk.length]


def _group(
    chunks: Sequence[Chunk],
    contexts: Sequence[np.ndarray],
    starts: Sequence[int],
    num_slots: int,
    device: torch.device,
) -> AttentionGroup:
    """Pads queries and contexts of the group's sequences to common lengths."""
    num_queries = max(chunk.length for chunk in chunks)
    num_context = max(len(slots) for slots in contexts)
    slots = np.full((len(chunks), num_context), num_slots, dtype=np.int64)
    rows = np.zeros((len(chunks), num_queries), dtype=np.int64)
    # A padded query sees the first position only: finite, and thrown away.
    last_seen = np.zeros((len(chunks), num_queries), dtype=np.int64)
    valid = np.zeros((len(chunks), num_queries), dtype=bool)
    for i, (chunk, own, start) in enumerate(zip(chunks, contexts, starts, strict=True)):
        slots[i, : len(own)] = own
        rows[i, : chunk.length] = np.arange(start, start + chunk.length)
        valid[i, : chunk.length] = True
        last_seen[i, : chunk.length] = np.arange(len(own) - chunk.length, len(own))
    mask = np.arange(num_context) <= last_seen[:, :, None]
    return AttentionGroup(
        rows=torch.from_numpy(rows).to(device),
        slots=torch.from_numpy(slots).to(device),
        mask=torch.from_numpy(mask).unsqueeze(1).to(device),
        valid=torch.from_numpy(valid).to(device),
    )
