"""Llama-family forward pass over a KV cache in blocks.

A step is computed in tiles of rows: one of all rows, or where rows must not depend on each other's
number (``StepInput.tile``) many of one size, so that every product has the same shape in any step.

Named dimensions: ``T`` positions of the step, ``G`` sequences of a group, ``Q`` new positions of a
sequence (padded), ``L`` context positions (padded), ``H`` query heads, ``K`` key-value heads,
``D`` head size.

Source: Llama (arXiv 2302.13971) as in Hugging Face's implementation (rotate-half RoPE), with what
Qwen2 (arXiv 2407.10671: biases) and Qwen3 (arXiv 2505.09388: normed heads) add to it;
PagedAttention (arXiv 2309.06180) for the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cogitate.agent_decoder.model.attention import Look, Placed, attend


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape of the model, as in a checkpoint's config.json."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool = False  # of q, k and v, as in Qwen2; never of the output projection
    qk_norm: bool = False  # each head of q and k is normed before it is turned, as in Qwen3
    rope_frequencies: tuple[float, ...] = ()  # radians a position, (D/2,); empty: from rope_theta

    def frequencies(self) -> tuple[float, ...]:
        """How far RoPE turns each pair a position, in radians, (D/2,)."""
        half = self.head_dim // 2
        return self.rope_frequencies or tuple(self.rope_theta ** (-i / half) for i in range(half))


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences whose queries are padded to one length and attended together."""

    rows: torch.Tensor  # (G, Q) int64: row of each query in the step; padding repeats row 0
    slots: torch.Tensor  # (G, L) int64: cache slot of each context position; padding sees zeros
    mask: torch.Tensor  # (G, 1, Q, L) bool: which context positions a query sees
    valid: torch.Tensor  # (G, Q) bool: which queries are real


@dataclass(frozen=True, slots=True)
class StepInput:
    """One engine step's positions, flattened over sequences."""

    token_ids: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64
    slots: torch.Tensor  # (T,) int64: where each position's KV is written
    embedding_rows: torch.Tensor | None  # (E,) int64: rows that are images, not tokens
    embeddings: torch.Tensor | None  # (E, hidden) float32
    groups: tuple[AttentionGroup, ...]  # sequences that share nothing
    logit_rows: torch.Tensor | None  # (R,) int64: rows whose logits are wanted; None means all
    looks: tuple[Look, ...] = ()  # for rows that are in no group, in the order they are merged
    tile: int = 0  # rows of a tile; 0: all in one
    wide: int = 0  # rows of larger tiles, that come first; a multiple of tile, or 0: none


class Layer:
    """One block's weights, projections fused so that a step launches fewer kernels."""

    def __init__(
        self, weights: Mapping[str, torch.Tensor], prefix: str, config: LlamaConfig
    ) -> None:
        attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query, key, value = (weights[f"{attn}.{p}_proj.weight"] for p in "qkv")
        interleaved = (_interleave(w, config.head_dim) for w in (query, key))
        self.qkv = torch.cat([*interleaved, value]).contiguous()
        self.qkv_bias = _fused_bias(weights, attn, config) if config.attention_bias else None
        self.qk_norm = _head_norms(weights, attn, config) if config.qk_norm else None
        self.out = weights[f"{attn}.o_proj.weight"].t()
        self.gate_up = torch.cat(
            [weights[f"{mlp}.{p}_proj.weight"] for p in ("gate", "up")]
        ).contiguous()
        self.down = weights[f"{mlp}.down_proj.weight"].t()
        self.input_norm = weights[f"{prefix}.input_layernorm.weight"]
        self.post_norm = weights[f"{prefix}.post_attention_layernorm.weight"]


class Llama:
    """Weights and forward pass. The cache belongs to the caller."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        placed = {name: w.to(device=device, dtype=dtype) for name, w in weights.items()}
        self._embed = placed["model.embed_tokens.weight"]
        self._norm = placed["model.norm.weight"]
        self._head = self._embed if config.tie_word_embeddings else placed["lm_head.weight"]
        self.layers = [Layer(placed, f"model.layers.{i}", config) for i in range(config.num_layers)]
        self._turns = _rope_turns(config, device)

    def new_cache(self, num_slots: int) -> list[torch.Tensor]:
        """Keys and values of each layer: (slots + 1, 2, K, D). Untouched pages cost no memory.

        The last slot is never written: padding reads it. Were it somebody's, a NaN there would
        reach every padded sequence, mask or no mask.
        """
        shape = (num_slots + 1, 2, self.config.num_kv_heads, self.config.head_dim)
        return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.layers]

    @torch.inference_mode()
    def forward(self, step: StepInput, cache: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the step, writes its KV into the cache, returns logits (R, vocab) float32."""
        hidden = F.embedding(step.token_ids, self._embed)
        if step.embeddings is not None:
            hidden[step.embedding_rows] = step.embeddings.to(self.dtype)
        turns = self._turns.index_select(0, step.positions)
        hidden, turns = _pad(hidden, step.tile), _pad(turns, step.tile)
        masks = [self._score_mask(group) for group in step.groups]
        looks = [look.placed(self.config.num_kv_heads, len(hidden)) for look in step.looks]
        tiles = _tiles(len(hidden), step)
        for layer, kv in zip(self.layers, cache, strict=True):
            qkv = _join([self.project(layer, hidden[tile], turns[tile]) for tile in tiles])
            mixed = self._attend(qkv, step, masks, looks, kv)
            hidden = _join([self.feed(layer, hidden[tile], mixed[tile]) for tile in tiles])
        last = hidden[: len(step.token_ids)]
        if step.logit_rows is not None:
            last = hidden.index_select(0, step.logit_rows)
        num, last = len(last), _pad(last, step.tile)
        return _join([self.head(last[tile]) for tile in _tiles(len(last), step)])[:num]

    def project(self, layer: Layer, hidden: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """hidden (T, hidden) → queries, keys and values, normed and turned: (T, (H + 2 K) D)."""
        c = self.config
        normed = _rms_norm(hidden, layer.input_norm, c.rms_norm_eps)
        qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
        if layer.qk_norm is not None:
            _norm_heads(qkv, layer.qk_norm, c.rms_norm_eps)
        heads = qkv.view(len(qkv), -1, c.head_dim)
        _rotate(heads[:, : c.num_heads + c.num_kv_heads], turns)
        return qkv

    def feed(self, layer: Layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """hidden (T, hidden) and what attention mixed for it (T, H D) → the layer's result."""
        hidden = torch.addmm(hidden, mixed, layer.out)
        normed = _rms_norm(hidden, layer.post_norm, self.config.rms_norm_eps)
        gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
        return torch.addmm(hidden, F.silu(gate).mul_(up), layer.down)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (R, hidden) → logits (R, vocab) float32."""
        return F.linear(_rms_norm(hidden, self._norm, self.config.rms_norm_eps), self._head).float()

    def _score_mask(self, group: AttentionGroup) -> torch.Tensor:
        """What is added to the scores, (G, 1, 1 or heads x Q, L): made once, used in each layer."""
        mask = torch.zeros(group.mask.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~group.mask, -torch.inf)
        repeat = self.config.num_heads // self.config.num_kv_heads
        return mask if mask.shape[2] == 1 else mask.repeat(1, 1, repeat, 1)

    def _attend(
        self,
        qkv: torch.Tensor,
        step: StepInput,
        masks: Sequence[torch.Tensor],
        looks: Sequence[Placed],
        kv: torch.Tensor,
    ) -> torch.Tensor:
        """qkv (T, (H + 2 K) D) → (T, H D). Writes the step's keys and values."""
        c, num = self.config, len(step.token_ids)
        heads = qkv.view(len(qkv), -1, c.head_dim)
        query = heads[:, : c.num_heads]
        kv.index_copy_(0, step.slots, heads[:num, c.num_heads :].view(num, *kv.shape[1:]))
        if not looks and len(step.groups) == 1 and step.groups[0].rows.shape[1] == 1:
            # Plain decoding, one query a sequence: rows are in order already.
            return self._attend_group(query.unsqueeze(1), step.groups[0], masks[0], kv).flatten(1)
        if looks:
            mixed = attend(query, looks, kv)
        else:
            mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group, mask in zip(step.groups, masks, strict=True):
            out = self._attend_group(query[group.rows], group, mask, kv)
            mixed[group.rows[group.valid]] = out[group.valid]
        return mixed.flatten(1)

    def _attend_group(
        self, query: torch.Tensor, group: AttentionGroup, mask: torch.Tensor, kv: torch.Tensor
    ) -> torch.Tensor:
        """query (G, Q, H, D) → (G, Q, H, D). Heads that share a key are folded into the queries."""
        c = self.config
        num, length = query.shape[:2]
        repeat = c.num_heads // c.num_kv_heads
        folded = query.view(num, length, c.num_kv_heads, repeat, c.head_dim).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(num, c.num_kv_heads, repeat * length, c.head_dim)
        context = kv.index_select(0, group.slots.view(-1)).view(num, -1, 2, *kv.shape[2:])
        key, value = context.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
        mixed = mixed.view(num, c.num_kv_heads, repeat, length, c.head_dim)
        return mixed.permute(0, 3, 1, 2, 4).reshape(num, length, c.num_heads, c.head_dim)


def _tiles(rows: int, step: StepInput) -> list[slice]:
    """The rows of each tile, in order."""
    if not step.tile:
        return [slice(None)]
    behind = rows - rows % step.wide if step.wide else 0
    wide = [slice(i, i + step.wide) for i in range(0, behind, step.wide or 1)]
    return wide + [slice(i, i + step.tile) for i in range(behind, rows, step.tile)]


def _pad(x: torch.Tensor, tile: int) -> torch.Tensor:
    """Rows of zeros behind x, up to whole tiles."""
    missing = -len(x) % tile if tile else 0
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _interleave(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorders each head's rows from (i ..., i + D/2 ...) to pairs (i, i + D/2).

    RoPE turns these pairs; side by side they are one complex number, and the turn one product.
    Scores do not change: queries and keys are reordered alike, their biases and norms with them.
    """
    pairs = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _fused_bias(
    weights: Mapping[str, torch.Tensor], attn: str, config: LlamaConfig
) -> torch.Tensor:
    query, key, value = (weights[f"{attn}.{p}_proj.bias"] for p in "qkv")
    return torch.cat([*(_interleave(b, config.head_dim) for b in (query, key)), value])


def _head_norms(
    weights: Mapping[str, torch.Tensor], attn: str, config: LlamaConfig
) -> torch.Tensor:
    """The norm's weight of each head of q and k: (H + K, D)."""
    query, key = (_interleave(weights[f"{attn}.{p}_norm.weight"], config.head_dim) for p in "qk")
    return torch.cat([query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1)])


def _norm_heads(qkv: torch.Tensor, norms: torch.Tensor, eps: float) -> None:
    """Norms the heads of q and k in (T, (H + 2 K) D), in place."""
    num_heads, head_dim = norms.shape
    heads = qkv.view(len(qkv), -1, head_dim)[:, :num_heads]
    heads.copy_(F.rms_norm(heads, (head_dim,), None, eps).mul_(norms))


def _rope_turns(config: LlamaConfig, device: torch.device) -> torch.Tensor:
    """The turn of each position and pair, (positions, 1, D/2) complex64."""
    frequencies = torch.tensor(config.frequencies(), dtype=torch.float64)
    angles = torch.outer(torch.arange(config.max_position_embeddings).double(), frequencies)
    turns = torch.polar(torch.ones_like(angles), angles)
    return turns.to(torch.complex64).unsqueeze(1).to(device)


def _rotate(x: torch.Tensor, turns: torch.Tensor) -> None:
    """Turns the pairs of (T, heads, D) by the positions' angles, in place, in float32."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:2], -1, 2))
    pairs *= turns
    if x.dtype is not torch.float32:
        x.copy_(torch.view_as_real(pairs).flatten(-2))
