"""Attention over stretches of context, merged exactly: what sequences share is read once for all.

A look is one product of queries with a stretch of context. Several looks of a query are merged by a
running maximum and sum (online softmax), in float32 whatever the model's type. Named dimensions
beside those of ``llama``: ``P`` queries of a look (padded), ``C`` context positions of it (padded).

Source: shared prefix as in Hydragen (arXiv 2402.05099) and cascade inference (FlashInfer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Where the running maximum begins: finite, so that a padded query, which sees nothing, has no NaN.
_FLOOR = -1e30


@dataclass(frozen=True, slots=True)
class Look:
    """G products of P queries with C context positions each. No query is in two of them."""

    rows: torch.Tensor  # (G, P) int64: row of each query in the step; padding is the row behind all
    slots: torch.Tensor  # (G, C) int64: cache slot of each context position; padding sees zeros
    visible: torch.Tensor | None  # (G, P) int64: leading positions a query sees; None means all

    def placed(self, num_kv_heads: int, num_rows: int) -> Placed:
        """What layers need of it, made once a step. Row ``num_rows`` is the padding's."""
        heads = torch.arange(num_kv_heads, device=self.slots.device).view(-1, 1)
        # Keys and values of a slot are 2 K rows of the cache.
        first = self.slots.unsqueeze(1) * (2 * num_kv_heads) + heads  # (G, K, C)
        queries = self.rows.clamp(max=num_rows).unsqueeze(1) * num_kv_heads + heads  # (G, K, P)
        seen = bias = None
        if self.visible is not None:
            places = torch.arange(self.slots.shape[1], device=self.slots.device)
            seen = (places < self.visible.unsqueeze(-1)).float()[:, None, :, None]
            bias = seen.log()
        context = torch.stack([first, first + num_kv_heads]).view(-1)
        return Placed(queries.view(-1), context, (*queries.shape, self.slots.shape[1]), bias, seen)


@dataclass(frozen=True, slots=True)
class Placed:
    """A look as indices of flat rows."""

    queries: torch.Tensor  # (G K P,) int64: of the running state
    context: torch.Tensor  # (2 G K C,) int64: of the cache, first all keys, then all values
    shape: tuple[int, int, int, int]  # G, K, P, C
    bias: torch.Tensor | None  # (G, 1, P, 1, C) float32: 0 or -inf, what is added to the scores
    seen: torch.Tensor | None  # of the same shape: 1 or 0


class Attend:
    """The running state of a step's queries in one layer: a row for each query and key head.

    The rows of the last query are the padding's.
    """

    def __init__(self, query: torch.Tensor, num_kv_heads: int) -> None:
        """query: (T, H, D)."""
        num, heads, head_dim = query.shape
        shape = ((num + 1) * num_kv_heads, heads // num_kv_heads)
        self._num, self._heads = num, heads
        self._query = query.new_zeros((*shape, head_dim), dtype=torch.float32)
        scaled = query.float() * head_dim**-0.5
        self._query[: num * num_kv_heads] = scaled.view(-1, *self._query.shape[1:])
        self._largest = torch.full(shape, _FLOOR, device=query.device)
        self._total = torch.zeros(shape, device=query.device)
        self._mixed = torch.zeros_like(self._query)

    def look(self, look: Placed, kv: torch.Tensor) -> None:
        """Adds a stretch of kv (slots, 2, K, D). Heads that share a key are folded into queries."""
        num, kv_heads, length, size = look.shape
        head_dim = kv.shape[-1]
        context = kv.view(-1, head_dim).index_select(0, look.context).float()
        key, value = context.view(2, num * kv_heads, size, head_dim)
        query = self._query.index_select(0, look.queries).view(num * kv_heads, -1, head_dim)
        scores = torch.bmm(query, key.transpose(1, 2))
        by_head = scores.view(num, kv_heads, length, -1, size)
        before = self._largest.index_select(0, look.queries)
        top = (by_head if look.bias is None else by_head + look.bias).amax(-1)
        now = torch.maximum(before, top.view(before.shape))
        scores.sub_(now.view(*scores.shape[:2], 1))
        if look.seen is None:
            weights = scores.exp_()
        else:  # what is not seen is 1 times 0: the exponential of -inf takes many times as long
            by_head.mul_(look.seen).exp_().mul_(look.seen)
            weights = scores
        shrink = before.sub_(now).exp_()
        total = self._total.index_select(0, look.queries)
        total.mul_(shrink).add_(weights.sum(-1).view(total.shape))
        mixed = self._mixed.index_select(0, look.queries)
        mixed.mul_(shrink.unsqueeze(-1)).add_(torch.bmm(weights, value).view(mixed.shape))
        self._largest.index_copy_(0, look.queries, now)
        self._total.index_copy_(0, look.queries, total)
        self._mixed.index_copy_(0, look.queries, mixed)

    def result(self) -> torch.Tensor:
        """(T, H, D) float32; NaN for queries that looked at nothing."""
        mixed = self._mixed.div_(self._total.unsqueeze(-1))
        return mixed.view(self._num + 1, self._heads, -1)[:-1]


def attend(query: torch.Tensor, looks: Sequence[Placed], kv: torch.Tensor) -> torch.Tensor:
    """query (T, H, D) → (T, H, D) in its type: the looks in their order, merged."""
    state = Attend(query, kv.shape[2])
    for look in looks:
        state.look(look, kv)
    return state.result().to(query.dtype)
