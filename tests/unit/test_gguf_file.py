"""GGUF files: the same model as the directory they were made of, or a refusal that says why."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import gguf_file, loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.checkpoint import write_directory
from cogitate.agent_decoder.model.families import llama_config
from cogitate.agent_decoder.model.gguf_file import QUANTISATIONS, read_gguf
from cogitate.agent_decoder.model.gguf_tokenizer import make_tokenizer
from cogitate.kit.errors import EngineFailure

from tests.fakes.chat_model import CHATML, chat_tokenizer
from tests.fakes.gguf_files import config_of, random_weights, write_checkpoint, write_gguf

pytestmark = pytest.mark.unit

WANTED = Wanted(device="cpu", dtype="float32", step="torch", threads=1)
TEXT = "the inner theatre 's 42 é€\n\n\tdon't <|im_end|> 1234"


def logits(directory: Path) -> torch.Tensor:
    runner = loader.load("one", directory, WANTED).runner
    runner.allocate(4, 16)
    made = Sequence(pending=deque(Position(t) for t in range(5, 25)), block_table=[2, 1])
    return runner.forward([Chunk(made, 20)])[0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_computes_what_its_directory_does(kind: str, tied: bool, tmp_path: Path) -> None:
    config = config_of(kind, tie_word_embeddings=tied)
    weights = random_weights(config)
    expected = logits(write_checkpoint(tmp_path / "hf", config, weights))
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "one.gguf", config, weights)
    torch.testing.assert_close(logits(tmp_path / "gguf"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_are_near(quantisation: str, tmp_path: Path) -> None:
    config = config_of("llama")
    weights = random_weights(config)
    file = write_gguf(tmp_path / "one.gguf", config, weights, quantisation=quantisation)
    read = read_gguf(file).weights
    steps = {"F16": 2**-10, "BF16": 2**-7, "Q8_0": 2**-7}.get(quantisation, 2**-3)
    for name, weight in weights.items():
        largest = weight.abs().max()
        assert (read[name] - weight).abs().max() <= largest * steps, name


@pytest.mark.parametrize("quantisation", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_what_the_package_makes_of_them(quantisation: str, tmp_path: Path) -> None:
    """The package cannot write these, so the bytes are random; their scales are made finite."""
    config = config_of("llama", hidden_size=256, head_dim=64)
    weights = random_weights(config)
    name = "model.layers.0.mlp.gate_proj.weight"
    stored = gguf.GGMLQuantizationType[quantisation]
    size = gguf.GGML_QUANT_SIZES[stored][1]
    raw = np.random.default_rng(0).integers(0, 255, (96, size), dtype=np.uint8)
    scales = slice(size - 2, size) if quantisation == "Q6_K" else slice(0, 4)
    raw[:, scales] = np.frombuffer(np.float16([0.01] * 2).tobytes(), np.uint8)[
        : len(raw[0, scales])
    ]
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("blk.0.ffn_gate.weight", raw, raw_dtype=stored)
    for call in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, call)()
    tensor = gguf.GGUFReader(tmp_path / "one.gguf").tensors[0]
    expected = gguf.quants.dequantize(raw, stored)
    found = gguf_file._weight(tensor.name, tensor, config)
    assert np.isfinite(expected).all() and expected.std() > 0
    assert np.array_equal(found.numpy(), expected)
    assert found.shape == weights[name].shape and quantisation in QUANTISATIONS


def test_tokenizer_template_and_ends_come_with_it(tmp_path: Path) -> None:
    config = config_of("llama")
    write_gguf(
        tmp_path / "one.gguf", config, random_weights(config),
        metadata={"tokenizer.ggml.eot_token_id": 0},
    )  # fmt: skip
    template = loader.load("one", tmp_path, WANTED).template
    assert template.control.end == {0, 2}
    assert template.encode(TEXT) == _plain(TEXT)
    assert read_gguf(tmp_path / "one.gguf").chat_template == CHATML


def _plain(text: str) -> list[int]:
    tokenizer = chat_tokenizer()
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_what_was_converted_is_read_back(tmp_path: Path) -> None:
    config = config_of("qwen3", tie_word_embeddings=False)
    rounded = {name: w.bfloat16().float() for name, w in random_weights(config).items()}
    (tmp_path / "gguf").mkdir()
    (tmp_path / "hf").mkdir()
    file = write_gguf(tmp_path / "gguf" / "one.gguf", config, rounded)
    write_directory(read_gguf(file), tmp_path / "hf")
    loader.verify(tmp_path / "hf")
    assert torch.equal(logits(tmp_path / "hf"), logits(tmp_path / "gguf"))


def test_scaled_rope_comes_as_factors(tmp_path: Path) -> None:
    """llama.cpp's converter writes Llama 3's scaling as one divisor for each pair."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    config = config_of("llama", rope_scaling=scaling)
    weights = random_weights(config)
    expected = logits(write_checkpoint(tmp_path / "hf", config, weights))
    plain = llama_config({**config, "rope_scaling": None}).frequencies()
    scaled = llama_config(config).frequencies()
    factors = torch.tensor([p / s for p, s in zip(plain, scaled, strict=True)])
    assert factors.max() > 4
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "one.gguf", config, weights, rope_factors=factors)
    torch.testing.assert_close(logits(tmp_path / "gguf"), expected, atol=1e-4, rtol=0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer.ggml.model": "llama"}, "'llama' are not supported; there is: gpt2"),
    ({"tokenizer.ggml.pre": "deepseek-coder"}, "'deepseek-coder' is not supported"),
    ({"tokenizer.ggml.pre": None}, "pre-tokenizer 'None'"),
    ({"tokenizer.ggml.tokens": ["a", "a"]}, "tokens and merges"),
    ({"tokenizer.ggml.merges": ["x y"]}, "merges do not fit"),
    ({"tokenizer.chat_template": None}, "no chat template"),
    ({"tokenizer.ggml.eos_token_id": None}, "ends a turn"),
    ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id"),
    ({"llama.expert_count": 8}, "expert_count"),
    ({"llama.attention.sliding_window": 128}, "sliding_window"),
    ({"llama.rope.scaling.type": "yarn"}, "yarn"),
    ({"llama.rope.dimension_count": 8}, "rope.dimension_count"),
    ({"llama.attention.head_count": None}, "num_attention_heads"),
    ({"llama.attention.head_count": 3}, "heads"),
    ({"llama.attention.head_count_kv": [2, 2]}, "unlike heads"),
    ({"llama.block_count": 3}, "weights are missing"),
    ({"split.count": 2}, "several parts"),
]


@pytest.mark.parametrize(("metadata", "why"), REFUSED, ids=[why[:24] for _, why in REFUSED])
def test_what_is_not_supported_is_named(metadata: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = config_of("llama")
    write_gguf(tmp_path / "one.gguf", config, random_weights(config), metadata=metadata)
    with pytest.raises(EngineFailure, match=why) as caught:
        loader.load("one", tmp_path, WANTED)
    assert str(tmp_path) not in str(caught.value)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(EngineFailure, match="'gemma3' are not supported; there is: llama, qwen2"):
        loader.load("one", tmp_path, WANTED)


@pytest.mark.parametrize("keep", [0, 3, 20, 400, 0.5, 0.99])
def test_a_file_cut_short(keep: float, tmp_path: Path) -> None:
    config = config_of("llama")
    file = write_gguf(tmp_path / "one.gguf", config, random_weights(config))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(EngineFailure, match="cannot be loaded") as caught:
        loader.load("one", tmp_path, WANTED)
    assert str(tmp_path) not in str(caught.value)


def test_two_files_are_one_too_many(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineFailure, match="several GGUF"):
        loader.load("one", tmp_path, WANTED)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["I", "Ġam", "Ġ", "1", "2", "3", "4", "'s", "ĊĊ"]),
        ("gpt-2", ["I", "Ġam", "Ġ1234", "'s", "ĊĊ"]),
        ("llama-bpe", ["I", "Ġam", "Ġ", "123", "4", "'s", "ĊĊ"]),
        ("qwen2", ["I", "Ġam", "Ġ", "1", "2", "3", "4", "'s", "ĊĊ"]),
    ],
)
def test_words_are_cut_as_each_family_has_it(pre: str, pieces: list[str]) -> None:
    fields = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": [],
    }  # fmt: skip
    cut = make_tokenizer(fields).pre_tokenizer.pre_tokenize_str("I am 1234's\n\n")
    assert [piece for piece, _ in cut] == pieces
