"""Llama-family forward pass over a KV cache in blocks.

Named dimensions: ``T`` positions of the step, ``G`` sequences of a group, ``Q`` new positions of a
sequence (padded), ``L`` context positions (padded), ``H`` query heads, ``K`` key-value heads,
``D`` head size.

Source: Llama (arXiv 2302.13971) as in Hugging Face's implementation (rotate-half RoPE);
PagedAttention (arXiv 2309.06180) for the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


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


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Sequences whose queries are padded to one length and attended together."""

    rows: (
        torch.Tensor
    )  # (G, Q) int64: row of each query in the step's positions; padding repeats row 0
    slots: torch.Tensor  # (G, L) int64: cache slot of each context position; padding is slot 0
    mask: torch.Tensor  # (G, 1, Q, L) bool: which context positions a query sees
    valid: torch.Tensor  # (G, Q) bool: which queries are real


@dataclass(frozen=True, slots=True)
class StepInput:
    """One engine step's positions, flattened over sequences."""

    token_ids: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64
    slots: torch.Tensor  # (T,) int64: where each position's KV is written
    embedding_rows: torch.Tensor  # (E,) int64: rows that are images, not tokens
    embeddings: torch.Tensor | None  # (E, hidden) float32
    groups: tuple[AttentionGroup, ...]
    logit_rows: torch.Tensor  # (R,) int64: rows whose logits are wanted


class _Layer:
    """One block's weights, projections fused so that a step launches fewer kernels."""

    def __init__(self, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        self.qkv = torch.cat([weights[f"{attn}.{p}_proj.weight"] for p in "qkv"]).contiguous()
        self.out = weights[f"{attn}.o_proj.weight"]
        self.gate_up = torch.cat(
            [weights[f"{mlp}.{p}_proj.weight"] for p in ("gate", "up")]
        ).contiguous()
        self.down = weights[f"{mlp}.down_proj.weight"]
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
        self._layers = [_Layer(placed, f"model.layers.{i}") for i in range(config.num_layers)]
        self._cos, self._sin = _rope_tables(config, device)

    def new_cache(self, num_slots: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer: (slots, K, D). Untouched pages cost no memory."""
        shape = (num_slots, self.config.num_kv_heads, self.config.head_dim)
        return [
            (
                torch.zeros(shape, dtype=self.dtype, device=self.device),
                torch.zeros(shape, dtype=self.dtype, device=self.device),
            )
            for _ in self._layers
        ]

    @torch.inference_mode()
    def forward(
        self, step: StepInput, cache: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """Computes the step, writes its KV into the cache, returns logits (R, vocab) float32."""
        hidden = F.embedding(step.token_ids, self._embed)
        if step.embeddings is not None:
            hidden[step.embedding_rows] = step.embeddings.to(self.dtype)
        cos, sin = self._cos[step.positions], self._sin[step.positions]
        for layer, (keys, values) in zip(self._layers, cache, strict=True):
            hidden = hidden + self._attend(layer, hidden, cos, sin, step, keys, values)
            normed = _rms_norm(hidden, layer.post_norm, self.config.rms_norm_eps)
            gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        last = _rms_norm(hidden[step.logit_rows], self._norm, self.config.rms_norm_eps)
        return F.linear(last, self._head).float()

    def _attend(
        self,
        layer: _Layer,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        step: StepInput,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        c = self.config
        normed = _rms_norm(hidden, layer.input_norm, c.rms_norm_eps)
        qkv = F.linear(normed, layer.qkv).view(len(hidden), -1, c.head_dim)
        turned = _rotate(qkv[:, : c.num_heads + c.num_kv_heads], cos, sin)
        query = turned[:, : c.num_heads]
        keys[step.slots] = turned[:, c.num_heads :]
        values[step.slots] = qkv[:, c.num_heads + c.num_kv_heads :]
        if len(step.groups) == 1 and step.groups[0].rows.shape[1] == 1:
            # Plain decoding, one query a sequence: rows are in order already.
            mixed = self._attend_group(query.unsqueeze(1), step.groups[0], keys, values).squeeze(1)
        else:
            mixed = torch.empty_like(query)
            for group in step.groups:
                out = self._attend_group(query[group.rows], group, keys, values)
                mixed[group.rows[group.valid]] = out[group.valid]
        return F.linear(mixed.reshape(len(hidden), -1), layer.out)

    def _attend_group(
        self,
        query: torch.Tensor,
        group: AttentionGroup,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """query (G, Q, H, D) → (G, Q, H, D). Heads that share a key are folded into the queries."""
        c = self.config
        num, length = query.shape[:2]
        repeat = c.num_heads // c.num_kv_heads
        folded = query.view(num, length, c.num_kv_heads, repeat, c.head_dim).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(num, c.num_kv_heads, repeat * length, c.head_dim)
        key = keys[group.slots].transpose(1, 2)
        value = values[group.slots].transpose(1, 2)
        mask = group.mask.repeat(1, 1, repeat, 1)
        mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
        mixed = mixed.view(num, c.num_kv_heads, repeat, length, c.head_dim)
        return mixed.permute(0, 3, 1, 2, 4).reshape(num, length, c.num_heads, c.head_dim)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _rope_tables(config: LlamaConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, (positions, 1, D) float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    angles = torch.outer(torch.arange(config.max_position_embeddings).double(), frequencies)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (i, i + D/2) of (T, heads, D) by the position's angle, in float32."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)
