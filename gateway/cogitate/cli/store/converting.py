"""The bridge to the agent-decoder's own reader of checkpoints, which needs torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cogitate.cli.store.folder import ModelError


def convert_gguf(file: Path, directory: Path, generation: Mapping[str, Any]) -> None:
    """Writes a GGUF file as a directory: bf16 weights, tokenizer, template. Raises ModelError."""
    loader = _loader()
    from cogitate.agent_decoder.model.checkpoint import write_directory

    try:
        checkpoint = loader.read_checkpoint(file)
        checkpoint = dataclasses.replace(
            checkpoint, generation_config={**checkpoint.generation_config, **generation}
        )
        shapes = {name: tuple(w.shape) for name, w in checkpoint.weights.items()}
        loader.interpret(checkpoint, shapes)
        write_directory(checkpoint, directory)
    except ValueError as error:
        raise ModelError(f"this file cannot be used: {error}") from None


def verify(directory: Path) -> None:
    """Checks a directory as the agent-decoder would. Raises ModelError."""
    try:
        _loader().verify(directory)
    except ValueError as error:
        raise ModelError(f"this checkpoint cannot be used: {error}") from None


def bring_tower(source: Path, directory: Path) -> None:
    """Adds the vision tower of a checkpoint that has one, as the vision-encoder serves it.

    `directory` has the checkpoint's other files. Raises ModelError.
    """
    _loader()
    from cogitate.agent_decoder.model import vision_export
    from cogitate.agent_decoder.model.checkpoint import read_json
    from cogitate.agent_decoder.model.vision_tower import vision_config

    try:
        if not vision_export.has_tower(source):
            return
        shape = vision_config(read_json(source, "config.json"))
        if missing := vision_export.missing_packages():
            raise ModelError(
                f"{' and '.join(missing)} are missing: pip install 'cogitate[import]' exports the "
                "vision tower; --text-only leaves it out"
            )
        vision_export.export_tower(source, directory, shape)
    except ValueError as error:
        raise ModelError(
            f"the vision tower cannot be used: {error}; --text-only leaves it out"
        ) from None
    verify(directory)


def _loader() -> ModuleType:
    try:
        from cogitate.agent_decoder.model import loader
    except ImportError as error:
        raise ModelError(
            f"{error.name} is missing: pip install 'cogitate[decoder]' reads checkpoints"
        ) from None
    return loader
