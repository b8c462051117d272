"""Loads a checkpoint directory: config.json, *.safetensors, tokenizer.json. Never a pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cogitate.agent_decoder.model.backend import Wanted, build_digest, choose_runner
from cogitate.agent_decoder.model.llama import LlamaConfig
from cogitate.agent_decoder.model.runner import ModelRunner
from cogitate.agent_decoder.model.templates import TEMPLATES, Template
from cogitate.kit.errors import EngineFailure
from safetensors.torch import load_file
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with what belongs to it."""

    name: str
    config: LlamaConfig
    runner: ModelRunner
    template: Template
    hints: tuple[str, ...]
    temperature: float
    has_vision: bool
    build_digest: str


def load(name: str, directory: Path, wanted: Wanted) -> LoadedModel:
    """Reads the directory and packs its weights for what runs them. Raises EngineFailure."""
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
        runner = choose_runner(llama_config, weights, wanted)
    except Exception as error:
        # Other errors name paths.
        why = str(error) if type(error) in (ValueError, KeyError) else type(error).__name__
        raise EngineFailure(
            f"model {name!r} cannot be loaded: {why}", metadata={"model": name}
        ) from error
    return LoadedModel(
        name=name,
        config=llama_config,
        runner=runner,
        template=template,
        hints=tuple(own.get("agent_hints", ("",))),
        temperature=float(own.get("temperature", 1.0)),
        has_vision=bool(own.get("image_tokens")),
        build_digest=build_digest(directory, runner),
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
