"""Brings a checkpoint from this machine's disk into the model folder."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Final

from cogitate.cli.store import converting
from cogitate.cli.store.folder import ModelError, Note, check_name, staged, write_note
from rich.console import Console

# Everything that is read of a checkpoint, and what a person may want to find beside it.
_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    "LICENSE",
    "LICENSE.txt",
)


def import_model(
    source: Path, name: str, console: Console, *, replace: bool = False, text_only: bool = False
) -> str:
    """Copies a directory, or converts a GGUF file; returns the model's name. Raises ModelError.

    The vision tower of a model that looks at images is exported, unless `text_only`.
    """
    name = check_name(name or _name_of(source))
    if not source.exists():
        raise ModelError(f"there is no {source}")
    with staged(name, replace=replace) as staging:
        directory = staging / "model"
        with console.status(f"bringing in {name} …"):
            checksums = _bring(source, directory, text_only=text_only)
        write_note(directory, Note(f"imported from {source.name}", checksums=checksums))
    return name


def _bring(source: Path, directory: Path, *, text_only: bool) -> dict[str, str]:
    """Checks before it copies. Returns the checksums of the weights."""
    files = [source] if source.is_file() else sorted(source.glob("*.gguf"))
    if source.is_file() or (files and not (source / "config.json").is_file()):
        if len(files) > 1:
            raise ModelError("there are several GGUF files there; name one of them")
        converting.convert_gguf(files[0], directory, {})
        return {files[0].name: _sha256(files[0])}
    converting.verify(source)
    weights = sorted(source.glob("*.safetensors"))
    for path in (*(source / one for one in _FILES), *weights):
        if path.is_file():
            shutil.copyfile(path, directory / path.name)
    if not text_only:
        converting.bring_tower(source, directory)
    return {path.name: _sha256(directory / path.name) for path in weights}


def _name_of(source: Path) -> str:
    stem = source.resolve().name.removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip(".-")[:64]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
