"""Other forms of a checkpoint's weights, for peers that want them: made once and kept in .cache.

* ``w8a8``: compressed-tensors, int8 weights with a scale for each row, activations quantised to
  int8 as they come, the table of tokens left as it is; what vLLM calls W8A8.
* ``bf16.gguf``, ``q8_0.gguf``: for llama.cpp, without a vocabulary, since prompts are token ids.

Only plain Llama checkpoints with tied embeddings: more is not compared.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.bench.decode.peers import ROOT

FORMS = ROOT / ".cache" / "bench-models"
_W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "int", "symmetric": True,
                "strategy": "channel", "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True,
                "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def made(directory: Path, form: str) -> Path:
    """The weights in this form: a directory or a GGUF file. Makes it if it is not there."""
    if form == "checkpoint":
        return directory
    target = FORMS / f"{directory.name}-{form}"
    if not target.exists():
        FORMS.mkdir(parents=True, exist_ok=True)
        config = json.loads((directory / "config.json").read_text())
        if config["model_type"] != "llama" or not config.get("tie_word_embeddings"):
            raise SystemExit(f"{directory.name} is not a Llama with tied embeddings")
        partial = target.with_name(f"partial-{target.name}")
        if form == "w8a8":
            _write_w8a8(directory, config, partial)
        else:
            _write_gguf(directory, config, partial, form.removesuffix(".gguf").upper())
        partial.rename(target)
    return target


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def _write_w8a8(directory: Path, config: dict[str, Any], target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    written: dict[str, torch.Tensor] = {}
    for name, weight in _tensors(directory).items():
        if not name.endswith("_proj.weight"):
            written[name] = weight
            continue
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        written[name] = (weight.float() / scale).round().clamp(-127, 127).to(torch.int8)
        written[f"{name}_scale"] = scale
    save_file(written, target / "model.safetensors", {"format": "pt"})
    config = {**config, "quantization_config": _W8A8}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    for path in directory.glob("*token*"):
        shutil.copy(path, target)


def _write_gguf(directory: Path, config: dict[str, Any], target: Path, kind: str) -> None:
    writer = gguf.GGUFWriter(target, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    stored = gguf.GGMLQuantizationType[kind]
    for name, weight in _tensors(directory).items():
        values = weight.float().numpy()
        if name.endswith("q_proj.weight"):
            values = _interleaved(values, heads)
        elif name.endswith("k_proj.weight"):
            values = _interleaved(values, kv_heads)
        if values.ndim > 1:
            quantised = gguf.quants.quantize(values, stored)
            writer.add_tensor(_gguf_name(name), quantised, raw_dtype=stored)
        else:
            writer.add_tensor(_gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if known := _NAMES.get(name):
        return known
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if found is None:
        raise SystemExit(f"no place for the weight {name} in GGUF")
    return f"blk.{found[1]}.{_PARTS[found[2]]}.weight"


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as llama.cpp rotates them: pairs beside each other, not halves apart."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
