"""Puts traces into rectangular batches and runs the decoder over them.

Named dimensions: B traces, T tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mini.model import CROP_TOKENS, PRECISION, WHOLE_TOKENS, Decoder, mixed_precision
from mini.traces import CROPS, POOLS, Pool, Trace

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """`ids` and `labels` (B, T); label t is what follows token t, IGNORED unless it is own.

    `pictures[pool]` are picture indices, `places[pool]` the flat places (B * T) of their tokens.
    """

    ids: Tensor
    labels: Tensor
    pictures: dict[Pool, list[int]]
    places: dict[Pool, Tensor]


def make_batch(traces: Sequence[Trace], pad: int) -> Batch:
    """Pads traces to the longest of them."""
    length = max(len(trace.ids) for trace in traces)
    ids = np.full((len(traces), length), pad, np.int64)
    labels = np.full((len(traces), length), IGNORED, np.int64)
    pictures: dict[Pool, list[int]] = {pool: [] for pool in POOLS}
    places: dict[Pool, list[int]] = {pool: [] for pool in POOLS}
    for row, trace in enumerate(traces):
        size = len(trace.ids)
        ids[row, :size] = trace.ids
        following = np.where(trace.own, trace.ids, IGNORED)
        labels[row, : size - 1] = following[1:]
        for view in trace.views:
            count = CROP_TOKENS if view.pool in CROPS else WHOLE_TOKENS
            start = row * length + view.start
            pictures[view.pool].append(view.index)
            places[view.pool].extend(range(start, start + count))
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        pictures,
        {pool: torch.tensor(place, dtype=torch.long) for pool, place in places.items()},
    )


def embed(decoder: Decoder, batch: Batch, views: dict[Pool, Tensor]) -> Tensor:
    """Returns (B, T, D) embeddings, with views (n, tokens, D) put into their places."""
    x = decoder.embed_tokens(batch.ids).to(PRECISION)
    shape = x.shape
    x = x.flatten(0, 1)
    for pool, view in views.items():
        x = x.index_copy(0, batch.places[pool], view.flatten(0, 1).to(x.dtype))
    return x.view(shape)


def own_logits(decoder: Decoder, batch: Batch, views: dict[Pool, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns float32 logits (n, vocab) and labels (n,) of the model's own tokens only."""
    with mixed_precision():
        hidden = decoder(embed(decoder, batch, views))
        is_own = batch.labels.flatten() != IGNORED
        logits = F.linear(hidden.flatten(0, 1)[is_own], decoder.embed_tokens.weight)
    return logits.float(), batch.labels.flatten()[is_own]


def exact_rows(batch: Batch, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns (B,) bool: every own token of the trace is the most likely one."""
    rows = (batch.labels != IGNORED).nonzero()[:, 0]
    wrong = torch.zeros(len(batch.ids)).index_add(0, rows, (logits.argmax(-1) != labels).float())
    return wrong == 0
