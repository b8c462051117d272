"""Lays out a step's chunks as tensors: which row goes to which cache slot and sees what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.model.llama import AttentionGroup, StepInput


def build_step(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> StepInput:
    """Flattens the chunks in order; logits are wanted of each chunk's last row."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    embedding_rows: list[int] = []
    embeddings: list[np.ndarray] = []
    logit_rows: list[int] = []
    slot_lists: list[np.ndarray] = []
    starts: list[int] = []
    for chunk in chunks:
        sequence = chunk.sequence
        end = sequence.num_computed + chunk.length
        table = np.asarray(sequence.block_table, dtype=np.int64)
        own_slots = (table[:, None] * block_size + np.arange(block_size)).reshape(-1)[:end]
        slot_lists.append(own_slots)
        starts.append(len(token_ids))
        for offset in range(chunk.length):
            position = sequence.pending[offset]
            if position.embedding is not None:
                embedding_rows.append(len(token_ids))
                embeddings.append(position.embedding)
            token_ids.append(position.token_id)
        positions += range(sequence.num_computed, end)
        slots += own_slots[sequence.num_computed :].tolist()
        logit_rows.append(len(token_ids) - 1)
    singles = [i for i, chunk in enumerate(chunks) if chunk.length == 1]
    longer = [i for i, chunk in enumerate(chunks) if chunk.length > 1]
    groups = tuple(
        _group([chunks[i] for i in members], [slot_lists[i] for i in members],
               [starts[i] for i in members], device)
        for members in (singles, longer)
        if members
    )  # fmt: skip
    return StepInput(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        embedding_rows=torch.tensor(embedding_rows, dtype=torch.int64, device=device),
        embeddings=torch.from_numpy(np.stack(embeddings)).to(device) if embeddings else None,
        groups=groups,
        logit_rows=torch.tensor(logit_rows, device=device),
    )


def _group(
    chunks: Sequence[Chunk],
    slot_lists: Sequence[np.ndarray],
    starts: Sequence[int],
    device: torch.device,
) -> AttentionGroup:
    """Pads queries and contexts of the group's sequences to common lengths."""
    num_queries = max(chunk.length for chunk in chunks)
    num_context = max(len(slots) for slots in slot_lists)
    slots = np.zeros((len(chunks), num_context), dtype=np.int64)
    rows = np.zeros((len(chunks), num_queries), dtype=np.int64)
    last_seen = np.zeros((len(chunks), num_queries), dtype=np.int64)
    valid = np.zeros((len(chunks), num_queries), dtype=bool)
    for i, (chunk, own_slots, start) in enumerate(zip(chunks, slot_lists, starts, strict=True)):
        slots[i, : len(own_slots)] = own_slots
        rows[i, : chunk.length] = np.arange(start, start + chunk.length)
        valid[i, : chunk.length] = True
        # A padded query sees the first position only: finite, and thrown away.
        last_seen[i, : chunk.length] = chunk.sequence.num_computed + np.arange(chunk.length)
    mask = np.arange(num_context) <= last_seen[:, :, None]
    return AttentionGroup(
        rows=torch.from_numpy(rows).to(device),
        slots=torch.from_numpy(slots).to(device),
        mask=torch.from_numpy(mask).unsqueeze(1).to(device),
        valid=torch.from_numpy(valid).to(device),
    )
