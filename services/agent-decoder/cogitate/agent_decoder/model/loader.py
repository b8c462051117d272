"""Loads a checkpoint directory: config.json, *.safetensors, tokenizer.json. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cogitate.agent_decoder.model.llama import Llama, LlamaConfig
from cogitate.agent_decoder.model.templates import TEMPLATES, Template
from cogitate.kit.errors import EngineFailure
from safetensors.torch import load_file
from tokenizers import Tokenizer

# Under this many parameters fp32 is as fast as bf16 on a CPU (repacking eats the gain) and exact.
FP32_MAX_PARAMETERS = 50_000_000


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with what belongs to it."""

    name: str
    llama: Llama
    template: Template
    hints: tuple[str, ...]
    temperature: float
    has_vision: bool
    build_digest: str


def load(name: str, directory: Path, *, device: str, dtype: str) -> LoadedModel:
    """Reads the directory. dtype "auto" chooses by size and hardware. Raises EngineFailure."""
    try:
        config = json.loads((directory / "config.json").read_text())
        files = sorted(directory.glob("*.safetensors"))
        weights = {key: w for path in files for key, w in load_file(path).items()}
        # This library raises bare Exceptions.
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        llama_config = _llama_config(config)
        _check_supported(config, llama_config, weights)
        own: dict[str, Any] = config.get("cogitate", {})
        if own.get("template") not in TEMPLATES:
            raise ValueError(f"config.json must name a template: {', '.join(TEMPLATES)}")
        template = TEMPLATES[own["template"]](tokenizer, own)
    except Exception as error:
        # Other errors name paths.
        why = str(error) if type(error) in (ValueError, KeyError) else type(error).__name__
        raise EngineFailure(
            f"model {name!r} cannot be loaded: {why}", metadata={"model": name}
        ) from error
    num_parameters = sum(w.numel() for w in weights.values())
    chosen_device = _choose_device(device)
    chosen_dtype = _choose_dtype(dtype, chosen_device, num_parameters)
    return LoadedModel(
        name=name,
        llama=Llama(llama_config, weights, dtype=chosen_dtype, device=chosen_device),
        template=template,
        hints=tuple(own.get("agent_hints", ("",))),
        temperature=float(own.get("temperature", 1.0)),
        has_vision=bool(own.get("image_tokens")),
        build_digest=_build_digest(directory, chosen_device, chosen_dtype),
    )


def _llama_config(config: dict[str, Any]) -> LlamaConfig:
    heads = config["num_attention_heads"]
    return LlamaConfig(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_theta=config.get("rope_theta", 10000.0),
        max_position_embeddings=config["max_position_embeddings"],
        tie_word_embeddings=config.get("tie_word_embeddings", False),
    )


def _check_supported(
    config: dict[str, Any], llama: LlamaConfig, weights: dict[str, torch.Tensor]
) -> None:
    """Refuses what would load and compute something else. Raises ValueError, KeyError."""
    if config.get("rope_scaling") or config.get("hidden_act", "silu") != "silu":
        raise ValueError("rope_scaling and activations other than silu are not supported yet")
    per_layer = [
        *(f"self_attn.{p}_proj.weight" for p in "qkvo"),
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    ]
    expected = {f"model.layers.{i}.{n}" for i in range(llama.num_layers) for n in per_layer}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    if not llama.tie_word_embeddings:
        expected.add("lm_head.weight")
    if missing := expected - set(weights):
        raise KeyError(f"weights are missing: {min(missing)}")
    if unknown := set(weights) - expected - {"lm_head.weight"}:
        raise ValueError(f"unknown weights, such as {min(unknown)}")
    if len(weights["model.embed_tokens.weight"]) != llama.vocab_size:
        raise ValueError("vocab_size is not that of the embeddings")


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _choose_dtype(dtype: str, device: torch.device, num_parameters: int) -> torch.dtype:
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    large = num_parameters > FP32_MAX_PARAMETERS
    return torch.bfloat16 if large and fast else torch.float32


def _build_digest(directory: Path, device: torch.device, dtype: torch.dtype) -> str:
    """Two engines with one digest continue each other's agents token for token."""
    digest = hashlib.sha256()
    code = sorted(Path(__file__).resolve().parents[1].rglob("*.py"))
    files = sorted(p for p in directory.iterdir() if p.suffix in {".json", ".safetensors"})
    for path in (*code, *files):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    facts = (
        torch.__version__,
        str(dtype),
        device.type,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
    )
    digest.update("|".join(facts).encode())
    return f"sha256:{digest.hexdigest()}"


def hardware(device: torch.device) -> str:
    """A short name of what the model runs on, such as "cpu-avx512" or "cuda-sm90"."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}"
    return f"cpu-{torch.backends.cpu.get_cpu_capability().lower().replace(' ', '-')}"
