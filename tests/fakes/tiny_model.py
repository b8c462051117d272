"""A tiny model in the shipped format: random weights and a byte-level tokenizer built in code.

It has no skill at all, which is what makes it a good tester: with temperature it says anything,
control tokens and broken UTF-8 among them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = "pad begin end user assistant system image call run result end_result answer".split()
HIDDEN = 32
HINTS = ("", "First.", "Last.")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "cogitate": {
        "name": "tiny",
        "template": "mini",
        "image_tokens": {"whole": 4, "crop": 2},
        "agent_hints": list(HINTS),
        "temperature": 0.8,
    },
}


def tokenizer() -> Tokenizer:
    """Byte-level: every byte is a token, some pairs are merged, control tokens come first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("t", "h"), ("i", "n"), ("a", "n"), ("e", "r")]
    vocabulary = {f"<|{name}|>": i for i, name in enumerate(CONTROL)}
    for piece in [*alphabet, *(a + b for a, b in pairs)]:
        vocabulary[piece] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in CONTROL])
    return made


def weights(seed: int = 0, *, vocab_size: int) -> dict[str, torch.Tensor]:
    """Random weights, large enough that neighbours in the context change what comes next."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale / columns**0.5

    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    head_dim, wide = CONFIG["head_dim"], CONFIG["intermediate_size"]
    assert isinstance(heads, int) and isinstance(kv_heads, int)
    assert isinstance(head_dim, int) and isinstance(wide, int)
    made = {
        "model.embed_tokens.weight": matrix(vocab_size, HIDDEN, 3.0),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for i in range(CONFIG["num_hidden_layers"]):  # type: ignore[call-overload]
        layer = f"model.layers.{i}"
        made |= {
            f"{layer}.input_layernorm.weight": torch.ones(HIDDEN),
            f"{layer}.post_attention_layernorm.weight": torch.ones(HIDDEN),
            f"{layer}.self_attn.q_proj.weight": matrix(heads * head_dim, HIDDEN, 2.0),
            f"{layer}.self_attn.k_proj.weight": matrix(kv_heads * head_dim, HIDDEN, 2.0),
            f"{layer}.self_attn.v_proj.weight": matrix(kv_heads * head_dim, HIDDEN, 2.0),
            f"{layer}.self_attn.o_proj.weight": matrix(HIDDEN, heads * head_dim, 2.0),
            f"{layer}.mlp.gate_proj.weight": matrix(wide, HIDDEN, 2.0),
            f"{layer}.mlp.up_proj.weight": matrix(wide, HIDDEN, 2.0),
            f"{layer}.mlp.down_proj.weight": matrix(HIDDEN, wide, 2.0),
        }
    return made


def write_tiny_model(root: Path, name: str = "tiny", *, seed: int = 0) -> Path:
    """Writes the model as a checkpoint directory ``root / name`` and returns it."""
    directory = root / name
    directory.mkdir(parents=True)
    made = tokenizer()
    config = {**CONFIG, "vocab_size": made.get_vocab_size()}
    (directory / "config.json").write_text(json.dumps(config))
    made.save(str(directory / "tokenizer.json"))
    save_file(weights(seed, vocab_size=made.get_vocab_size()), directory / "model.safetensors")
    return directory
