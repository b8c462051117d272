"""Which checkpoints are computed, and as what: config.json to LlamaConfig, weights to their names.

What a configuration asks for beyond what `Llama` computes is refused by name. To add a family that
differs only in what `LlamaConfig` can say, add it to FAMILIES and to tests/unit/test_llama_family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogitate.agent_decoder.model.llama import LlamaConfig
from cogitate.agent_decoder.model.rope import rope_frequencies

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """What a model_type means that its config.json does not say."""

    attention_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "llama": Family(),  # SmolLM and SmolLM2 call themselves so
    "qwen2": Family(attention_bias=True),
    "qwen3": Family(qk_norm=True),
}
# Vision-language models whose text tower is one of FAMILIES, in `text_config`.
TOWERS = ("idefics3", "smolvlm")
_TOWER_PREFIX = "model.text_model."
_OTHER_PREFIXES = ("model.vision_model.", "model.connector.")  # see `vision_tower`
# Settings and the only values of them that are computed; absent means the first.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "qk_layer_norms": (False,),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (None,),
    "no_rope_layers": (None,),
}


def text_config(config: Config) -> Config:
    """The part of config.json that is of the language model. Raises ValueError."""
    kind = config.get("model_type")
    if kind in TOWERS:
        inner = config.get("text_config")
        if not isinstance(inner, Mapping):
            raise ValueError("config.json has no text_config")
        # The head is the whole model's, and so is the choice to tie it.
        tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings", False))
        return {"model_type": "llama", **inner, "tie_word_embeddings": tied}
    return config


def llama_config(config: Config) -> LlamaConfig:
    """Reads the shape and refuses what would be computed wrongly. Raises ValueError."""
    config = text_config(config)
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join((*FAMILIES, *TOWERS))
        raise ValueError(f"models of type {str(kind)[:32]!r} are not supported; there is: {known}")
    _refuse_unknown(config, family)
    heads = whole_number(config, "num_attention_heads")
    kv_heads = whole_number(config, "num_key_value_heads", heads)
    hidden = whole_number(config, "hidden_size")
    head_dim = whole_number(config, "head_dim", hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise ValueError("heads are not a multiple of key-value heads, or of an odd size")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError("rope_scaling is no object")
    theta = positive_number({**config, **rope}, "rope_theta", 10000.0)
    max_positions = whole_number(config, "max_position_embeddings")
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=whole_number(config, "intermediate_size"),
        num_layers=whole_number(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=whole_number(config, "vocab_size"),
        rms_norm_eps=positive_number(config, "rms_norm_eps"),
        rope_theta=theta,
        max_position_embeddings=max_positions,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=family.attention_bias,
        qk_norm=family.qk_norm,
        rope_frequencies=rope_frequencies(
            rope, theta=theta, head_dim=head_dim, max_positions=max_positions
        ),
    )


def _refuse_unknown(config: Config, family: Family) -> None:
    for name, allowed in _ONLY.items():
        value = config.get(name)
        if value is not None and value not in allowed:
            raise ValueError(f"{name} of {str(value)[:32]!r} is not supported, only {allowed[0]!r}")
    if config.get("attention_bias") and not family.attention_bias:
        # It would bias the output projection, too.
        raise ValueError("attention_bias is not supported for this type of model")
    layers = config.get("layer_types") or ()
    if other := [kind for kind in layers if kind != "full_attention"]:
        raise ValueError(f"layers of type {str(other[0])[:32]!r} are not supported")


def weight_name(name: str, config: Config) -> str | None:
    """A checkpoint's name of a weight as `Llama` knows it; None if it is not of the text model."""
    if name.endswith(".rotary_emb.inv_freq"):  # written by old versions; computed here
        return None
    if config.get("model_type") not in TOWERS:
        return name
    if name.startswith(_OTHER_PREFIXES):
        return None
    inner = name.removeprefix(_TOWER_PREFIX)
    return name if inner == name else f"model.{inner}"


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every weight that `Llama` needs, by its Hugging Face name, with its shape."""
    hidden, wide, dim = config.hidden_size, config.intermediate_size, config.head_dim
    rows = {"q": config.num_heads * dim, "k": config.num_kv_heads * dim}
    rows["v"] = rows["k"]
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.o_proj.weight": (hidden, rows["q"]),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    layer |= {f"self_attn.{p}_proj.weight": (n, hidden) for p, n in rows.items()}
    if config.attention_bias:
        layer |= {f"self_attn.{p}_proj.bias": (n,) for p, n in rows.items()}
    if config.qk_norm:
        layer |= {f"self_attn.{p}_norm.weight": (dim,) for p in "qk"}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for i in range(config.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def check_shapes(config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares what a checkpoint has with what is needed. Raises ValueError naming a weight."""
    wanted = weight_shapes(config)
    if missing := wanted.keys() - shapes.keys():
        raise ValueError(f"weights are missing: {min(missing)}")
    if unknown := shapes.keys() - wanted.keys() - {"lm_head.weight"}:
        raise ValueError(f"unknown weights, such as {min(unknown)[:96]}")
    if shapes["model.embed_tokens.weight"][:1] != (config.vocab_size,):
        raise ValueError("vocab_size is not that of the embeddings")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            found, needed = ("x".join(map(str, s)) for s in (shapes[name], shape))
            raise ValueError(f"{name} is {found} where the configuration needs {needed}")


def whole_number(config: Config, name: str, default: int | None = None) -> int:
    """A setting that counts something, from 1. Raises ValueError."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"config.json's {name} is missing or not a whole number above 0")
    return value


def positive_number(config: Config, name: str, default: float | None = None) -> float:
    """A setting above 0. Raises ValueError."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"config.json's {name} is missing or not a number above 0")
    return float(value)
