"""Writes what ships: Llama weights, tokenizer, encoder as ONNX, and their configuration."""

import copy
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mini.model import (
    CROP_TOKENS,
    WHOLE_TOKENS,
    ConvUnit,
    Decoder,
    Encoder,
    ModelConfig,
    ResidualUnit,
)
from mini.tokenizer import BEGIN, END, PAD
from mini.views import MEAN, STD, VIEW_PX
from mini.words import AGENT_HINTS
from mini.worlds import TILING

TEMPERATURE = 0.8
TRAINED_TOOLS = ("zoom", "calculator", "prove", "lookup")
OPSET = 18
SMALL_INITIALISER = 1024
# What is one matrix here and several there.
JOINED = {
    "qkv_proj.weight": tuple(f"self_attn.{one}_proj.weight" for one in "qkv"),
    "gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


@dataclass(frozen=True)
class Model:
    """A trained model."""

    config: ModelConfig
    encoder: Encoder
    decoder: Decoder


def llama_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Returns bfloat16 weights under the names of Hugging Face's Llama."""
    c = decoder.c
    query, key_value = c.heads * c.head_dim, c.key_value_heads * c.head_dim
    weights = {"model.embed_tokens.weight": decoder.embed_tokens.weight}
    for i, layer in enumerate(decoder.layers):
        prefix = f"model.layers.{i}"
        q, k, v = layer.qkv_proj.weight.split([query, key_value, key_value])
        gate, up = layer.gate_up_proj.weight.chunk(2)
        weights |= {
            f"{prefix}.input_layernorm.weight": layer.input_layernorm.weight,
            f"{prefix}.post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
            f"{prefix}.self_attn.q_proj.weight": q,
            f"{prefix}.self_attn.k_proj.weight": k,
            f"{prefix}.self_attn.v_proj.weight": v,
            f"{prefix}.self_attn.o_proj.weight": layer.o_proj.weight,
            f"{prefix}.mlp.gate_proj.weight": gate,
            f"{prefix}.mlp.up_proj.weight": up,
            f"{prefix}.mlp.down_proj.weight": layer.down_proj.weight,
        }
    weights["model.norm.weight"] = decoder.norm.weight
    return {name: w.detach().to(torch.bfloat16).contiguous() for name, w in weights.items()}


def load_llama(decoder: Decoder, path: Path) -> None:
    """Takes over weights that were written so."""
    weights = load_file(path)
    state = {
        "embed_tokens.weight": weights["model.embed_tokens.weight"],
        "norm.weight": weights["model.norm.weight"],
    }
    for i in range(decoder.c.layers):
        of = {
            name.removeprefix(f"model.layers.{i}."): w
            for name, w in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }
        for name, parts in JOINED.items():
            of[name] = torch.cat([of.pop(part) for part in parts])
        state |= {f"layers.{i}.{_within(name)}": w for name, w in of.items()}
    decoder.load_state_dict({name: w.float() for name, w in state.items()})


def _within(name: str) -> str:
    """A parameter's name in our layer, which has no modules inside."""
    return name.replace("self_attn.", "").replace("mlp.", "")


def llama_config(c: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns config.json: Hugging Face's Llama keys and a `cogitate` section."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.key_value_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "max_position_embeddings": c.max_positions,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "cogitate": {
            "name": "mini",
            "template": "mini",
            "image_tokens": {"whole": WHOLE_TOKENS, "crop": CROP_TOKENS},
            "trained_tools": list(TRAINED_TOOLS),
            "agent_hints": list(AGENT_HINTS),
            "temperature": TEMPERATURE,
        },
    }


def preprocessor_config() -> dict[str, Any]:
    """Returns how a picture becomes `pixel_values`."""
    return {
        "image_size": VIEW_PX,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "rescale_factor": 1 / 255,
        "resample": "bilinear",
        "tiles": {"most": TILING.most, "side": TILING.side},
        "resample_note": "PIL Image.Resampling.BILINEAR after cropping; it averages on reduction",
    }


def folded(encoder: Encoder) -> Encoder:
    """Returns a copy in evaluation mode with every batch norm folded into its convolution."""
    encoder = copy.deepcopy(encoder).eval().float()
    for module in encoder.modules():
        if isinstance(module, ConvUnit | ResidualUnit):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return encoder


def _halve(graph: onnx.GraphProto) -> None:
    """Stores large float initialisers as float16, each with a Cast back to float32."""
    casts = []
    for initialiser in graph.initializer:
        values = numpy_helper.to_array(initialiser)
        if initialiser.data_type != TensorProto.FLOAT or values.size < SMALL_INITIALISER:
            continue
        name = initialiser.name
        stored = numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
        initialiser.CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)


def write_vision(encoder: Encoder, path: Path) -> None:
    """Writes the encoder as one ONNX file with float16 weights and a dynamic batch."""
    views = torch.zeros(2, 3, VIEW_PX, VIEW_PX)
    program = torch.onnx.export(
        folded(encoder),
        (views,),
        input_names=["pixel_values"],
        output_names=["whole", "crop"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    _halve(model.graph)
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        # Stack traces of the exporting machine.
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_weights(decoder: Decoder, directory: Path) -> None:
    """Replaces the decoder's weights alone, atomically."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".mini-") as scratch:
        new = Path(scratch) / "model.safetensors"
        save_file(llama_weights(decoder), new, {"format": "pt"})
        new.chmod(0o644)
        os.replace(new, directory / new.name)


def export(model: Model, tokenizer: Tokenizer, directory: Path) -> None:
    """Replaces the shipped files one by one, each atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(model.decoder, directory)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".mini-") as scratch:
        new = Path(scratch)
        write_vision(model.encoder, new / "vision.onnx")
        tokenizer.save(str(new / "tokenizer.json"))
        for name, content in (
            ("config.json", llama_config(model.config, tokenizer)),
            ("preprocessor_config.json", preprocessor_config()),
        ):
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file in sorted(new.iterdir()):
            file.chmod(0o644)
            os.replace(file, directory / file.name)
