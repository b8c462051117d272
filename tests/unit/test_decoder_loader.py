"""Loading a checkpoint: what would compute something else is refused, and says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.attention import Attend, Placed
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.llama import Llama
from cogitate.kit.errors import EngineFailure
from safetensors.torch import load_file, save_file

from tests.fakes.tiny_model import HIDDEN, HINTS, write_tiny_model

pytestmark = pytest.mark.unit


def load(directory: Path, dtype: str = "auto", step: str = "torch") -> loader.LoadedModel:
    return loader.load("tiny", directory, Wanted(device="cpu", dtype=dtype, step=step))


def edit_config(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_what_the_directory_says(tmp_path: Path) -> None:
    made = load(write_tiny_model(tmp_path))
    assert (made.hints, made.temperature, made.has_vision) == (HINTS, 0.8, True)
    assert "float32" in made.runner.build  # small enough to be exact
    assert made.config.hidden_size == HIDDEN


def test_the_build_digest_is_of_weights_and_type(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    first = load(directory).build_digest
    assert load(directory).build_digest == first
    assert load(directory, "bfloat16").build_digest != first
    edit_weights(directory, lambda w: w["model.norm.weight"].mul_(2))
    assert load(directory).build_digest != first


def test_batch_invariance_is_a_choice_and_another_build(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    made = {
        choice: loader.load("tiny", directory, Wanted("cpu", step="torch", batch_invariant=choice))
        for choice in ("auto", "on", "off")
    }
    assert [m.runner.batch_invariant for m in made.values()] == [True, True, False]
    assert made["auto"].build_digest == made["on"].build_digest != made["off"].build_digest


def by_place(x: torch.Tensor) -> torch.Tensor:
    """What a library does that rounds rows by their place."""
    ulps = 1 + torch.arange(len(x)).view(-1, *[1] * (x.dim() - 1)) * 2e-7
    return x * ulps


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("project", "projections"),
        ("feed", "feed-forward"),
        ("head", "the head"),
        ("look", "attention"),
    ],
)
def test_batch_invariance_is_promised_only_where_it_was_seen(
    method: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = write_tiny_model(tmp_path)
    plain = getattr(Attend if method == "look" else Llama, method)

    def look(self: Any, placed: Placed, kv: torch.Tensor) -> None:
        plain(self, placed, kv)
        self._mixed[placed.queries] = by_place(self._mixed[placed.queries])

    if method == "look":
        monkeypatch.setattr(Attend, "look", look)
    else:
        monkeypatch.setattr(Llama, method, lambda *args: by_place(plain(*args)))
    made = load(directory)
    assert not made.runner.batch_invariant
    assert f"not batch-invariant: {why}" in caplog.text
    with pytest.raises(EngineFailure, match=f"cannot be batch-invariant here: {why}"):
        loader.load("tiny", directory, Wanted("cpu", step="torch", batch_invariant="on"))


def test_wide_tiles_are_taken_only_where_they_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tiny_model(tmp_path)
    runner, feed = load(directory).runner, Llama.feed

    def uneven(*args: Any) -> torch.Tensor:
        made = feed(*args)
        return by_place(made) if len(made) > 16 else made

    monkeypatch.setattr(Llama, "feed", uneven)
    without = load(directory).runner
    assert without.batch_invariant and without.build.endswith("wide=0)")
    assert runner.batch_invariant and not runner.build.endswith("wide=0)")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update(rope_scaling={"type": "linear"}), "rope_scaling says no factor"),
        (lambda c: c.update(rope_scaling={"type": "yarn", "factor": 2.0}), "'yarn'"),
        (lambda c: c.update(rope_scaling={"type": "linear", "factor": 0}), "factor"),
        (lambda c: c.update(rope_scaling=[1]), "rope_scaling"),
        (lambda c: c.update(rope_scaling={"type": "factors", "factors": [1.0]}), "8 factors"),
        (lambda c: c.update(model_type="mistral"), "'mistral' are not supported; there is: llama"),
        (lambda c: c.update(model_type=["llama"]), "not supported"),
        (lambda c: c.update(model_type="qwen2"), r"missing: .*k_proj\.bias"),
        (lambda c: c.update(model_type="qwen3"), r"missing: .*k_norm"),
        (lambda c: c.update(model_type="smolvlm"), "text_config"),
        (lambda c: c.update(attention_bias=True), "attention_bias"),
        (lambda c: c.update(use_sliding_window=True), "use_sliding_window"),
        (lambda c: c.update(quantization_config={"bits": 4}), "quantization_config"),
        (lambda c: c.update(layer_types=["sliding_attention"] * 2), "'sliding_attention'"),
        (lambda c: c.update(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (lambda c: c.update(head_dim=4), r"o_proj\.weight is 32x64"),
        (lambda c: c.update(intermediate_size=64), "48x32 where the configuration needs 64x32"),
        (lambda c: c.update(num_key_value_heads=3), "heads"),
        (lambda c: c.update(num_attention_heads="4"), "num_attention_heads"),
        (lambda c: c.update(rms_norm_eps=float("inf")), "rms_norm_eps"),
        (lambda c: c.update(hidden_act="gelu"), "silu"),
        (lambda c: c.update(tie_word_embeddings=False), "lm_head"),
        (lambda c: c.update(num_hidden_layers=3), "missing"),
        (lambda c: c.update(num_hidden_layers=1), "unknown weights"),
        (lambda c: c.update(vocab_size=7), "vocab_size"),
        (lambda c: c["cogitate"].update(template="chatml"), "template"),
        (lambda c: c.pop("cogitate"), "template"),
        (lambda c: c.pop("hidden_size"), "hidden_size"),
    ],
)
def test_unlike_configurations(tmp_path: Path, change: Any, why: str) -> None:
    directory = write_tiny_model(tmp_path)
    edit_config(directory, change)
    with pytest.raises(EngineFailure, match=why):
        load(directory)


def test_biases_are_not_dropped_in_silence(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(directory, lambda w: w.update({name: torch.zeros(HIDDEN)}))
    with pytest.raises(EngineFailure, match=r"q_proj\.bias"):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\xff{"])
def test_broken_files_are_told_without_paths(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    directory = write_tiny_model(tmp_path)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(EngineFailure, match="cannot be loaded") as caught:
        load(directory)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"weight_map": {"a": "b.safetensors"}}, "b.safetensors is missing"),
        ({"weight_map": {"a": "../model.safetensors"}}, "outside the checkpoint"),
        ({"weight_map": ["model.safetensors"]}, "no weight_map"),
        ({"weight_map": {"a": 1}}, "no weight_map"),
        ([], "is not an object"),
    ],
)
def test_an_index_that_is_wrong(index: Any, why: str, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EngineFailure, match=why):
        load(directory)


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.999])
def test_weights_cut_short(keep: float, tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(EngineFailure, match=r"model\.safetensors is damaged or cut short"):
        load(directory)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    path = directory / "tokenizer.json"
    made = json.loads(path.read_text())
    made["model"]["vocab"]["later"] = 100_000
    path.write_text(json.dumps(made))
    with pytest.raises(EngineFailure, match="has a token 100000"):
        load(directory)


def test_weights_of_other_types_and_formats(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path)
    edit_weights(directory, lambda w: w.update({"model.norm.weight": torch.ones(HIDDEN).long()}))
    with pytest.raises(EngineFailure, match="type I64"):
        load(directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(EngineFailure, match=r"no \*\.safetensors files"):
        load(directory)
