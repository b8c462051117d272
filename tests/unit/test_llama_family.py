"""Every family of checkpoints against `transformers`: the same logits from the same directory.

The reference is Hugging Face's own code in float32, on small random checkpoints that it wrote
itself. The largest error of any logit is under 1e-4 for each, by torch and by the native step.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.runner import ModelRunner

from tests.fakes.chat_model import write_tokenizer_files

pytestmark = pytest.mark.unit
transformers = pytest.importorskip("transformers", reason="a development dependency")

MAX_LOGIT_ERROR = 1e-4
VOCAB, BLOCK, NUM_BLOCKS = 320, 16, 8
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3-scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear-scaling": ("Llama", {"rope_parameters": LINEAR}),
    "smollm": (  # tied embeddings, three heads on one key
        "Llama",
        {"tie_word_embeddings": True, "num_attention_heads": 9, "num_key_value_heads": 3,
         "hidden_size": 144, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 32}),  # heads of another size than hidden / heads
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}  # fmt: skip


def randomised(model: Any) -> Any:
    """Norms and biases begin as ones and zeros, which would hide that they are left out."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                noise = torch.randn(weight.shape, generator=generator) * 0.3
                weight.copy_(noise + (1.0 if "norm" in name else 0.0))
    return model.float().eval()


def write_text_model(directory: Path, kind: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = randomised(getattr(transformers, f"{kind}ForCausalLM")(config))
    model.save_pretrained(directory)
    write_tokenizer_files(directory)
    return model


def logits_of(runner: ModelRunner, token_ids: list[int], chunks: tuple[int, ...]) -> torch.Tensor:
    """Logits after each chunk, through the block-table cache: (chunks, vocab)."""
    runner.allocate(NUM_BLOCKS, BLOCK)
    sequence = Sequence(pending=deque(Position(t) for t in token_ids), block_table=[5, 2, 7, 0])
    rows = []
    for length in chunks:
        rows.append(runner.forward([Chunk(sequence, length)])[0].clone())
        sequence.num_computed += length
        for _ in range(length):
            sequence.pending.popleft()
    return torch.stack(rows)


def largest_error(model: Any, directory: Path, step: str = "torch") -> float:
    wanted = Wanted(device="cpu", dtype="float32", step=step, threads=1)
    runner = loader.load("random", directory, wanted).runner
    token_ids = torch.randint(0, VOCAB, (57,), generator=torch.Generator().manual_seed(1))
    chunks = (1, 17, 36, 1, 1, 1)
    at = torch.tensor(chunks).cumsum(0) - 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(input_ids=token_ids[None]).logits[0, at]
    found = logits_of(runner, token_ids.tolist(), chunks)
    assert 1.0 < expected.abs().max() < 100.0, "logits of a size that says something"
    return (found - expected).abs().max().item()


@pytest.fixture(params=["torch", "native"])
def step(request: pytest.FixtureRequest) -> str:
    """What computes."""
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, step: str, tmp_path: Path) -> None:
    error = largest_error(write_text_model(tmp_path, *CASES[case]), tmp_path, step)
    print(f"{case}, {step}: largest error of a logit {error:.1e}")
    assert error < MAX_LOGIT_ERROR


@pytest.mark.parametrize("kind", ["Idefics3", "SmolVLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_text_towers_are_those_of_transformers(kind: str, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    text = transformers.LlamaConfig(**{**SHAPE, "tie_word_embeddings": tied, "pad_token_id": 0})
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=3,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = randomised(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    model.save_pretrained(tmp_path)
    write_tokenizer_files(tmp_path)
    error = largest_error(model, tmp_path)
    print(f"{kind}, tied {tied}: largest error of a logit {error:.1e}")
    assert error < MAX_LOGIT_ERROR


def test_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    model = write_text_model(tmp_path, *CASES["qwen3"])
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors").unlink()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert largest_error(model, tmp_path) < MAX_LOGIT_ERROR


def test_the_scaling_is_read_in_both_spellings(tmp_path: Path) -> None:
    """`rope_scaling` beside `rope_theta` is how checkpoints had it before transformers 5."""
    model = write_text_model(tmp_path, *CASES["llama-3-scaling"])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {**rope, "type": "llama3"}
    path.write_text(json.dumps(config))
    assert largest_error(model, tmp_path) < MAX_LOGIT_ERROR
