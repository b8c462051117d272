"""Checkpoints of a real model's shape with random weights: speed does not look at what they say."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file

from tests.bench.decode.peers import ROOT
from tests.fakes.tiny_model import CONFIG, tokenizer

MODELS = ROOT / ".cache" / "models"
# Llama-3.2-1B, but for the scaling of its rotation and 8,192 positions in place of 131,072.
SHAPES = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    }
}
SEED = 1


def made(shape: str, console: Console) -> Path:
    """The checkpoint of this shape, made in bfloat16 if it is not there: 2.5 GB for llama-1b."""
    directory = MODELS / f"random-{shape}"
    if not directory.exists():
        console.print(f"making {directory.name} …")
        partial = directory.with_name(f"partial-{directory.name}")
        partial.mkdir(parents=True, exist_ok=True)
        _write(partial, SHAPES[shape])
        partial.rename(directory)
    return directory


def _write(directory: Path, shape: dict[str, float]) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cogitate": CONFIG["cogitate"],  # a chat format that the small tokenizer has
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer().save(str(directory / "tokenizer.json"))
    save_file(_weights(config), directory / "model.safetensors", {"format": "pt"})


def _weights(config: dict) -> dict[str, torch.Tensor]:  # type: ignore[type-arg]
    generator = torch.Generator().manual_seed(SEED)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        made = torch.empty(rows, columns, dtype=torch.bfloat16)
        return made.normal_(0, columns**-0.5, generator=generator)

    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        for name, rows, columns in (
            ("self_attn.q_proj", query, hidden),
            ("self_attn.k_proj", key, hidden),
            ("self_attn.v_proj", key, hidden),
            ("self_attn.o_proj", hidden, query),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ):
            found[f"{layer}.{name}.weight"] = matrix(rows, columns)
    return found
