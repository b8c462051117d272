"""Small GGUF files and checkpoint directories with the same random weights, made in code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cogitate.agent_decoder.model.families import llama_config, weight_shapes
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import save_file

from tests.fakes.chat_model import CHATML, CONTROL, MERGES, chat_tokenizer, write_tokenizer_files

Weights = dict[str, torch.Tensor]
_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
    **{f"self_attn.{p}_norm": f"attn_{p}_norm" for p in "qk"},
}


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """A config.json whose rows are whole blocks of the quantised types."""
    return {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **changes,
    }


def random_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Weights of the family, by their Hugging Face names."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in weight_shapes(llama_config(config)).items():
        noise = torch.randn(shape, generator=generator)
        is_norm = name.endswith("norm.weight")
        made[name] = 1 + noise * 0.2 if is_norm else noise / shape[-1] ** 0.5 * 2
    return made


def write_checkpoint(directory: Path, config: dict[str, Any], weights: Weights) -> Path:
    """Writes a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors")
    write_tokenizer_files(directory)
    return directory


def write_gguf(
    file: Path,
    config: dict[str, Any],
    weights: Weights,
    *,
    quantisation: str = "F32",
    metadata: dict[str, Any] | None = None,
    rope_factors: torch.Tensor | None = None,
) -> Path:
    """Writes what llama.cpp's converter would: its names, its row order, its metadata.

    ``metadata`` replaces entries of the metadata; None leaves one out.
    """
    kind = config["model_type"]
    writer = GGUFWriter(file, kind)
    fields = {**_shape_fields(kind, config), **_tokenizer_fields(), **(metadata or {})}
    for name, value in fields.items():
        _add(writer, name, value)
    for name, weight in weights.items():
        values = weight.float().numpy()
        if kind == "llama" and ".q_proj." in name:
            values = _permuted(values, config["num_attention_heads"])
        if kind == "llama" and ".k_proj." in name:
            values = _permuted(values, config["num_key_value_heads"])
        stored = GGMLQuantizationType[quantisation if values.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name), quants.quantize(values, stored), raw_dtype=stored)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    layer, _, inner = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER[inner]}.{kind}"


def _permuted(values: np.ndarray, num_heads: int) -> np.ndarray:
    halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _shape_fields(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.context_length": config["max_position_embeddings"],
        f"{kind}.embedding_length": config["hidden_size"],
        f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": config["num_attention_heads"],
        f"{kind}.attention.head_count_kv": config["num_key_value_heads"],
        f"{kind}.attention.key_length": config["head_dim"],
        f"{kind}.attention.value_length": config["head_dim"],
        f"{kind}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{kind}.rope.freq_base": config["rope_theta"],
    }


def _tokenizer_fields() -> dict[str, Any]:
    vocabulary = chat_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    if value is None or name == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
