"""Reads a GGUF file as a checkpoint in Hugging Face's terms: configuration, names, row order.

Weights are dequantised by the `gguf` package's own functions, one after the other.
Source: llama.cpp's convert_hf_to_gguf.py, of which this is the inverse for three architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cogitate.agent_decoder.model.checkpoint import Checkpoint
from cogitate.agent_decoder.model.families import FAMILIES
from cogitate.agent_decoder.model.gguf_header import check_header
from cogitate.agent_decoder.model.gguf_tokenizer import make_tokenizer

QUANTISATIONS = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    **{
        f"attn_{p}.{kind}": f"self_attn.{p}_proj.{kind}"
        for p in "qkv"
        for kind in ("weight", "bias")
    },
    **{f"attn_{p}_norm.weight": f"self_attn.{p}_norm.weight" for p in "qk"},
}
_ROPE_FACTORS = "rope_freqs.weight"
# Metadata that says the model is something else than its architecture's plain form.
_REFUSED = ("expert_count", "attention.sliding_window", "attention.causal", "pooling_type")


def read_gguf(file: Path) -> Checkpoint:
    """Reads all of it. Raises ValueError with a sentence that names no path."""
    check_header(file)
    reader = _reader(file)
    try:
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception:
        raise ValueError("the GGUF's metadata is damaged") from None
    architecture = fields.get("general.architecture")
    if architecture not in FAMILIES:
        raise ValueError(
            f"GGUF files of architecture {str(architecture)[:32]!r} are not supported; "
            f"there is: {', '.join(FAMILIES)}"
        )
    if fields.get("split.count", 1) > 1:
        raise ValueError("GGUF files in several parts are not supported; merge them first")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, architecture, tensors)
    weights = {
        _weight_name(name): _weight(name, tensor, config)
        for name, tensor in tensors.items()
        if name != _ROPE_FACTORS
    }
    tokens = _tokens(fields)
    return Checkpoint(
        config=config,
        weights=weights,
        tokenizer=make_tokenizer(fields),
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **tokens},
        generation_config={"eos_token_id": _end_token_ids(fields)},
        chat_template=str(fields.get("tokenizer.chat_template") or ""),
    )


def _reader(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError("GGUF files need the package gguf: pip install gguf") from None
    try:
        return GGUFReader(file)
    except Exception:  # whatever the reader stumbles over
        raise ValueError("the GGUF file is damaged, cut short or no GGUF") from None


def _config(
    fields: Mapping[str, Any], architecture: str, tensors: Mapping[str, Any]
) -> dict[str, Any]:
    def get(name: str) -> Any:
        return fields.get(f"{architecture}.{name}")

    for name in _REFUSED:
        if get(name):
            raise ValueError(f"GGUF files with {architecture}.{name} are not supported")
    heads = get("attention.head_count")
    if isinstance(heads, list) or isinstance(get("attention.head_count_kv"), list):
        raise ValueError("GGUF files whose layers have unlike heads are not supported")
    embeddings = tensors.get("token_embd.weight")
    config = {
        "architectures": [
            {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture] + "ForCausalLM"
        ],
        "model_type": architecture,
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv") or heads,
        "head_dim": get("attention.key_length") or get("rope.dimension_count"),
        "vocab_size": 0 if embeddings is None else int(embeddings.shape[1]),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base") or 10000.0,
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
    }
    for name in ("rope.dimension_count", "attention.value_length"):
        if get(name) not in (None, config["head_dim"]):
            raise ValueError(f"GGUF files whose {name} is not the head size are not supported")
    if scaling := _rope_scaling(get, tensors.get(_ROPE_FACTORS)):
        config["rope_scaling"] = scaling
    return {name: value for name, value in config.items() if value is not None}


def _rope_scaling(get: Any, factors: Any) -> dict[str, Any] | None:
    kind = get("rope.scaling.type")
    if factors is not None:
        return {"rope_type": "factors", "factors": [float(f) for f in factors.data]}
    if kind in (None, "none"):
        return None
    return {"rope_type": str(kind), "factor": get("rope.scaling.factor")}


def _weight_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    if not name.startswith("blk.") or not block.isdecimal() or rest not in _LAYER:
        raise ValueError(f"unknown weights, such as {name[:96]}")
    return f"model.layers.{int(block)}.{_LAYER[rest]}"


def _weight(name: str, tensor: Any, config: Mapping[str, Any]) -> torch.Tensor:
    """One weight in float32, rows in Hugging Face's order."""
    from gguf import quants

    kind = tensor.tensor_type
    if kind.name not in QUANTISATIONS:
        raise ValueError(
            f"weights quantised as {kind.name} are not supported; "
            f"there is: {', '.join(QUANTISATIONS)}"
        )
    try:
        values = np.array(quants.dequantize(tensor.data, kind), dtype=np.float32)
    except Exception:
        raise ValueError(f"the weight {name[:96]} is damaged") from None
    part = name.rpartition("blk.")[2].partition(".")[2]
    if config["model_type"] == "llama" and part.partition(".")[0] in ("attn_q", "attn_k"):
        heads = config[
            "num_attention_heads" if part.startswith("attn_q.") else "num_key_value_heads"
        ]
        values = _unpermuted(values, heads)
    return torch.from_numpy(values)


def _unpermuted(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp turns neighbours of a head, Hugging Face its halves: rows back to halves."""
    if len(values) % (2 * num_heads):
        raise ValueError("rows of queries or keys do not make heads")
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    tokens = fields.get("tokenizer.ggml.tokens") or []
    found = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            found[f"{ours}_token"] = tokens[token_id]
    return found


def _end_token_ids(fields: Mapping[str, Any]) -> list[int]:
    """End of text, of turn, of message: whichever the file names."""
    ids = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return sorted({i for i in ids if isinstance(i, int)})
