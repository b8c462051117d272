"""A plain Llama with a cache, read from the shipped files and independent of the training module.

Named dimensions: B sequences, H query heads, G key-value heads, K head size, D hidden size.
All sequences are at the same position; finished ones are left out by `rows`.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return weight * (x.float() * scale).to(x.dtype)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class Llama:
    """Decodes one position at a time for many sequences; owns its cache."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "model.safetensors")
        self.weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        self.embedding = self.weights["model.embed_tokens.weight"]
        self.dtype = dtype
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def start(self, batch: int, positions: int) -> None:
        """Empties the cache and makes room for `batch` sequences of `positions` tokens."""
        c = self.config
        shape = (batch, c["num_key_value_heads"], positions, c["head_dim"])
        layers = range(c["num_hidden_layers"])
        self.keys = [torch.zeros(shape, dtype=self.dtype) for _ in layers]
        self.values = [torch.zeros(shape, dtype=self.dtype) for _ in layers]

    def _attend(self, x: Tensor, layer: int, rows: Tensor | slice, position: int) -> Tensor:
        c, prefix = self.config, f"model.layers.{layer}.self_attn"
        heads, groups, size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        parts = (F.linear(x, self.weights[f"{prefix}.{name}_proj.weight"]) for name in "qkv")
        q, k, v = (part.view(len(x), -1, size) for part in parts)
        exponents = torch.arange(0, size, 2).float() / size
        angle = position / c["rope_theta"] ** exponents
        cos, sin = (torch.cat([t, t]).to(x.dtype) for t in (angle.cos(), angle.sin()))
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        self.keys[layer][rows, :, position] = k
        self.values[layer][rows, :, position] = v
        keys = self.keys[layer][rows, :, : position + 1]
        values = self.values[layer][rows, :, : position + 1]
        scores = q.view(len(x), groups, heads // groups, size) @ keys.transpose(-1, -2)
        weights = torch.softmax(scores.float() / size**0.5, -1).to(x.dtype)
        mixed = (weights @ values).reshape(len(x), heads * size)
        return F.linear(mixed, self.weights[f"{prefix}.o_proj.weight"])

    @torch.inference_mode()
    def step(self, x: Tensor, rows: Tensor | slice, position: int) -> Tensor:
        """Takes embeddings (n, D) of the sequences `rows`; returns float32 logits (n, vocab)."""
        eps = self.config["rms_norm_eps"]
        x = x.to(self.dtype)
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            normed = _norm(x, self.weights[f"{prefix}.input_layernorm.weight"], eps)
            x = x + self._attend(normed, layer, rows, position)
            normed = _norm(x, self.weights[f"{prefix}.post_attention_layernorm.weight"], eps)
            gate = F.linear(normed, self.weights[f"{prefix}.mlp.gate_proj.weight"])
            up = F.linear(normed, self.weights[f"{prefix}.mlp.up_proj.weight"])
            x = x + F.linear(F.silu(gate) * up, self.weights[f"{prefix}.mlp.down_proj.weight"])
        hidden = _norm(x, self.weights["model.norm.weight"], eps)
        return F.linear(hidden, self.embedding).float()
