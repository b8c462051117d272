"""Builds a model from a checkpoint: a directory in Hugging Face's layout, or one with a GGUF file.

Everything is checked before anything is computed: what would load and compute something else is
refused, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogitate.agent_decoder.model.backend import Wanted, build_digest, choose_runner, digest_of
from cogitate.agent_decoder.model.chat_template import ChatTemplate
from cogitate.agent_decoder.model.checkpoint import (
    Checkpoint,
    read_directory,
    read_json,
    shapes_in,
)
from cogitate.agent_decoder.model.families import check_shapes, llama_config, text_config
from cogitate.agent_decoder.model.gguf_file import read_gguf
from cogitate.agent_decoder.model.llama import LlamaConfig
from cogitate.agent_decoder.model.runner import ModelRunner
from cogitate.agent_decoder.model.templates import TEMPLATES, Template
from cogitate.agent_decoder.model.tiling import Tiling
from cogitate.agent_decoder.model.tiling import parse as parse_tiling
from cogitate.kit.errors import EngineFailure
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class PromptModel:
    """What prompts are made with, whatever computes the model."""

    name: str
    vocab_size: int
    hidden_size: int
    template: Template
    hints: tuple[str, ...]
    temperature: float
    has_vision: bool
    tiling: Tiling | None
    build_digest: str


@dataclass(frozen=True, slots=True)
class LoadedModel(PromptModel):
    """A model ready to run, with what belongs to it."""

    config: LlamaConfig
    runner: ModelRunner


def load(name: str, directory: Path, wanted: Wanted) -> LoadedModel:
    """Reads the directory and packs its weights for what runs them. Raises EngineFailure."""
    try:
        checkpoint = read_checkpoint(directory)
        shapes = {key: tuple(w.shape) for key, w in checkpoint.weights.items()}
        config, template = interpret(checkpoint, shapes)
        own: dict[str, Any] = checkpoint.config.get("cogitate", {})
        tiling = tiling_of(directory)
        runner = choose_runner(config, checkpoint.weights, wanted)
    except Exception as error:
        raise _failure(name, error) from error
    return LoadedModel(
        name=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        template=template,
        hints=tuple(own.get("agent_hints", ("",))),
        temperature=_temperature(own, checkpoint.generation_config),
        has_vision=bool(own.get("image_tokens")),
        tiling=tiling,
        build_digest=build_digest(directory, runner),
        config=config,
        runner=runner,
    )


def prompt_model(name: str, directory: Path, build: str) -> PromptModel:
    """A checkpoint without its weights, computed by an engine that ``build`` says all about.

    Its configuration may be of any family. Raises EngineFailure.
    """
    try:
        checkpoint = read_directory(directory, weights=False)
        text = text_config(checkpoint.config)
        vocab_size, hidden_size = int(text["vocab_size"]), int(text["hidden_size"])
        _check_tokenizer(checkpoint.tokenizer, vocab_size)
        own: dict[str, Any] = checkpoint.config.get("cogitate", {})
        template = _template(checkpoint, own, vocab_size)
        tiling = tiling_of(directory)
    except Exception as error:
        raise _failure(name, error) from error
    return PromptModel(
        name=name,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        template=template,
        hints=tuple(own.get("agent_hints", ("",))),
        temperature=_temperature(own, checkpoint.generation_config),
        has_vision=bool(own.get("image_tokens")),
        tiling=tiling,
        build_digest=digest_of(directory, build),
    )


def tiling_of(directory: Path) -> Tiling | None:
    """How the model wants large pictures cut, if it does. Raises ValueError."""
    return parse_tiling(read_json(directory, "preprocessor_config.json", optional=True))


def _failure(name: str, error: Exception) -> EngineFailure:
    # Other errors name paths.
    why = str(error) if type(error) in (ValueError, KeyError) else type(error).__name__
    return EngineFailure(f"model {name!r} cannot be loaded: {why}", metadata={"model": name})


def interpret(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[LlamaConfig, Template]:
    """What the checkpoint is, everything checked. Raises ValueError."""
    config = llama_config(checkpoint.config)
    check_shapes(config, shapes)
    _check_tokenizer(checkpoint.tokenizer, config.vocab_size)
    own: dict[str, Any] = checkpoint.config.get("cogitate", {})
    return config, _template(checkpoint, own, config.vocab_size)


def verify(directory: Path) -> None:
    """Checks a directory as `load` would, weights by their headers. Raises ValueError."""
    if (directory / "config.json").exists():
        checkpoint = read_directory(directory, weights=False)
        interpret(checkpoint, shapes_in(directory, checkpoint.config))
    else:
        checkpoint = read_checkpoint(directory)
        interpret(checkpoint, {name: tuple(w.shape) for name, w in checkpoint.weights.items()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a directory, a GGUF file, or a directory with nothing but one. Raises ValueError."""
    if path.is_file():
        return read_gguf(path)
    files = sorted(path.glob("*.gguf"))
    if files and not (path / "config.json").exists():
        if len(files) > 1:
            raise ValueError("there are several GGUF files; keep one")
        return read_gguf(files[0])
    return read_directory(path)


def _template(checkpoint: Checkpoint, own: Mapping[str, Any], vocab_size: int) -> Template:
    if "template" in own:
        if own["template"] not in TEMPLATES:
            raise ValueError(f"config.json names no template of ours: {', '.join(TEMPLATES)}")
        return TEMPLATES[own["template"]](checkpoint.tokenizer, dict(own))
    return ChatTemplate(
        checkpoint.tokenizer,
        checkpoint.chat_template,
        end_token_ids=_end_token_ids(checkpoint, vocab_size),
        tokenizer_config=checkpoint.tokenizer_config,
        image_tokens=own.get("image_tokens"),
    )


def _end_token_ids(checkpoint: Checkpoint, vocab_size: int) -> list[int]:
    """What ends a turn, by all that say so: generation config, configuration, tokenizer."""
    found: set[int] = set()
    for config in (checkpoint.generation_config, text_config(checkpoint.config)):
        named = config.get("eos_token_id")
        found.update(named if isinstance(named, list) else [] if named is None else [named])
    token = checkpoint.tokenizer_config.get("eos_token")
    content = token.get("content") if isinstance(token, Mapping) else token
    if isinstance(content, str):
        token_id = checkpoint.tokenizer.token_to_id(content)
        found.update([] if token_id is None else [token_id])
    if any(isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < vocab_size for t in found):
        raise ValueError("eos_token_id is not a token of the vocabulary")
    return sorted(found)


def _check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < vocab_size:
        raise ValueError(f"the tokenizer has a token {largest}, the model {vocab_size} of them")


def _temperature(own: Mapping[str, Any], generation: Mapping[str, Any]) -> float:
    """The checkpoint's own choice, within what a request may ask for."""
    value = own.get("temperature", generation.get("temperature"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1.0
    return min(2.0, max(0.0, float(value)))
