"""The vision tower of Idefics3 and SmolVLM checkpoints: pixels to rows that stand for tokens.

A SigLIP transformer over the patches of one square image, then the connector: pixel shuffle packs
`scale_factor` x `scale_factor` neighbouring patches into one row, and a projection brings it to the
size of the language model. It is only exported (`vision_export`); the vision-encoder runs it.

Modules carry the names of the checkpoint's weights. `V` views, `P` patches, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cogitate.agent_decoder.model.checkpoint import read_json, tensors_in
from cogitate.agent_decoder.model.families import (
    TOWERS,
    positive_number,
    text_config,
    whole_number,
)
from torch import Tensor, nn
from torch.nn import functional

_PREFIX = "model."


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The shape of a tower; sizes in pixels are of a side."""

    image_size_px: int
    patch_size_px: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    layer_norm_eps: float
    scale_factor: int
    text_hidden_size: int

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size_px // self.patch_size_px

    @property
    def num_tokens(self) -> int:
        """Rows that stand for one view."""
        return (self.side // self.scale_factor) ** 2


def vision_config(config: Mapping[str, Any]) -> VisionConfig:
    """Reads config.json, what is absent as `transformers` has it. Raises ValueError."""
    inner = config.get("vision_config")
    if config.get("model_type") not in TOWERS or not isinstance(inner, Mapping):
        raise ValueError("config.json describes no vision tower that is known")
    if (act := inner.get("hidden_act", "gelu_pytorch_tanh")) != "gelu_pytorch_tanh":
        raise ValueError(f"the vision tower's hidden_act {str(act)[:32]!r} is not supported")
    made = VisionConfig(
        image_size_px=whole_number(inner, "image_size", 224),
        patch_size_px=whole_number(inner, "patch_size", 32),
        hidden_size=whole_number(inner, "hidden_size", 1152),
        intermediate_size=whole_number(inner, "intermediate_size", 3072),
        num_layers=whole_number(inner, "num_hidden_layers", 12),
        num_heads=whole_number(inner, "num_attention_heads", 16),
        layer_norm_eps=positive_number(inner, "layer_norm_eps", 1e-6),
        scale_factor=whole_number(config, "scale_factor", 2),
        text_hidden_size=whole_number(text_config(config), "hidden_size"),
    )
    if made.hidden_size % made.num_heads or made.image_size_px % made.patch_size_px:
        raise ValueError("the vision tower's heads or patches do not divide its sizes")
    if made.side % made.scale_factor:
        raise ValueError(f"{made.side} patches a side are no multiple of the scale_factor")
    return made


def read_tower(directory: Path) -> VisionTower:
    """Reads the tower's weights, as float32. Raises ValueError with a sentence."""
    config = read_json(directory, "config.json")
    shape = vision_config(config)
    found = tensors_in(directory, lambda name: name.startswith(_TOWER_PARTS))
    weights = {name.removeprefix(_PREFIX): w.float() for name, w in found.items()}
    with torch.device("meta"):
        tower = VisionTower(shape)
    wanted = {name: tuple(w.shape) for name, w in tower.state_dict().items()}
    if wrong := sorted(wanted.keys() ^ weights.keys()):
        what = "missing" if wrong[0] in wanted else "unknown"
        raise ValueError(f"weights of the vision tower are {what}, such as {wrong[0][:96]}")
    for name, size in wanted.items():
        if tuple(weights[name].shape) != size:
            raise ValueError(f"{name} is of another size than the configuration needs")
    tower.load_state_dict(weights, assign=True)
    return tower.eval()


_TOWER_PARTS = (f"{_PREFIX}vision_model.", f"{_PREFIX}connector.")


class VisionTower(nn.Module):
    """(V, 3, image, image) float32 to (V, tokens, text hidden)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = _Transformer(config)
        self.connector = _Connector(config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The rows twice: the tower does not tell a whole image from a crop."""
        rows: Tensor = self.connector(self.vision_model(pixel_values))
        return rows, rows.clone()


class _Transformer(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(c)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(_Layer(c) for _ in range(c.num_layers))}
        )
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(V, 3, image, image) to (V, P, H)."""
        rows: Tensor = self.embeddings(pixel_values)
        layers: Any = self.encoder["layers"]
        for layer in layers:
            rows = layer(rows)
        normed: Tensor = self.post_layernorm(rows)
        return normed


class _Embeddings(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, c.hidden_size, c.patch_size_px, stride=c.patch_size_px)
        self.position_embedding = nn.Embedding(c.side**2, c.hidden_size)
        self._ids = position_ids(c.side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        made: Tensor = patches + self.position_embedding(self._ids)
        return made


def position_ids(side: int) -> Tensor:
    """(side * side,) int64, by rows: where a patch's fraction of the side falls.

    For some sides, such as 19, rounding puts a patch one place too low. These models were trained
    so, and `transformers` computes it so: their positions are these, and not a plain count.
    """
    with torch.device("cpu"):
        step = 1.0 / torch.tensor(side)
        fractions = (torch.arange(side, dtype=torch.float32) * step).clamp(max=1.0 - 1e-6)
        at = torch.bucketize(fractions, torch.arange(1 / side, 1.0, 1 / side), right=True)
        return (at[:, None] * side + at[None, :]).flatten()


class _Layer(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.self_attn = _Attention(c)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = _Mlp(c)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.self_attn(self.layer_norm1(rows))
        made: Tensor = rows + self.mlp(self.layer_norm2(rows))
        return made


class _Attention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self._num_heads = c.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(c.hidden_size, c.hidden_size) for _ in range(4)
        )

    def forward(self, rows: Tensor) -> Tensor:
        q, k, v = (
            projection(rows).unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        made: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return made


class _Mlp(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        made: Tensor = self.fc2(functional.gelu(self.fc1(rows), approximate="tanh"))
        return made


class _Connector(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self._side, self._scale, self._hidden = c.side, c.scale_factor, c.hidden_size
        wide = c.hidden_size * c.scale_factor**2
        self.modality_projection = nn.ModuleDict(
            {"proj": nn.Linear(wide, c.text_hidden_size, bias=False)}
        )

    def forward(self, rows: Tensor) -> Tensor:
        """(V, P, H) to (V, P / scale², text hidden); a square of patches becomes one row."""
        few, scale = self._side // self._scale, self._scale
        squares = rows.reshape(-1, few, scale, few, scale, self._hidden).transpose(2, 3)
        made: Tensor = self.modality_projection["proj"](squares.flatten(3).flatten(1, 2))
        return made
