"""A checkpoint as it is kept: a directory in Hugging Face's layout. Never a pickle.

Reading and writing only; what the contents mean is said in `families` and `chat_template`. Messages
of errors name files of the directory, never where it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cogitate.agent_decoder.model.families import weight_name
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

MAX_JSON_BYTES = 64 * 1024 * 1024  # a tokenizer.json of a quarter million tokens has 20
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that is read before the model is built; weights by the names `Llama` uses."""

    config: dict[str, Any]
    weights: Mapping[str, torch.Tensor]
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str = ""


def read_directory(directory: Path, *, weights: bool = True) -> Checkpoint:
    """Reads all of it, or all but the weights. Raises ValueError with a sentence."""
    config = read_json(directory, "config.json")
    tokenizer_config = read_json(directory, "tokenizer_config.json", optional=True)
    return Checkpoint(
        config=config,
        weights=_weights(directory, config) if weights else {},
        tokenizer=_tokenizer(directory),
        tokenizer_config=tokenizer_config,
        generation_config=read_json(directory, "generation_config.json", optional=True),
        chat_template=_chat_template(directory, tokenizer_config),
    )


def shapes_in(directory: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the text model's weights, from the files' headers alone. Raises ValueError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(directory):
        with _opened(directory, file) as weights:
            for name in weights.keys():
                if (known := weight_name(name, config)) is not None:
                    shapes[known] = tuple(weights.get_slice(name).get_shape())
    return shapes


def write_directory(checkpoint: Checkpoint, directory: Path) -> None:
    """Writes a checkpoint that `read_directory` reads back, weights in bf16."""
    weights = {name: w.to(torch.bfloat16).contiguous() for name, w in checkpoint.weights.items()}
    file = directory / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library makes it readable for its owner alone
    config = {**checkpoint.config, "torch_dtype": "bfloat16"}
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer_config.json", checkpoint.tokenizer_config)
    _write_json(directory / "generation_config.json", checkpoint.generation_config)
    checkpoint.tokenizer.save(str(directory / "tokenizer.json"))
    if checkpoint.chat_template:
        (directory / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")


def read_json(directory: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """Reads one object. Raises ValueError."""
    path = directory / name
    if optional and not path.exists():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{name} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except OSError:
        raise ValueError(f"{name} is missing or cannot be read") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{name} is not valid JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError("tokenizer.json is missing")
    try:
        # This library raises bare Exceptions.
        return Tokenizer.from_file(str(path))
    except Exception:
        raise ValueError("tokenizer.json is damaged or of a kind that is not known") from None


def _chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """The template in a file of its own, else the one in tokenizer_config.json; may be empty."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    found = tokenizer_config.get("chat_template") or read_json(
        directory, "chat_template.json", optional=True
    ).get("chat_template")
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def _weight_files(directory: Path) -> list[str]:
    """The files' names: those of the index, else all."""
    index = read_json(directory, _INDEX, optional=True)
    if index:
        listed = index.get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
            raise ValueError(f"{_INDEX} has no weight_map")
        names = sorted(set(listed.values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{_INDEX} points outside the checkpoint")
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise ValueError("there are no *.safetensors files; other formats of weights are not read")
    return names


def _opened(directory: Path, name: str) -> Any:
    if not (directory / name).is_file():
        raise ValueError(f"{name} is missing")
    try:
        return safe_open(directory / name, framework="pt")
    except (SafetensorError, OSError):
        raise ValueError(f"{name} is damaged or cut short") from None


class KeptWeights(Mapping[str, torch.Tensor]):
    """Weights where they are kept: read when they are asked for, and gone when they are let go.

    Whoever packs them one by one never has all of them twice in memory.
    """

    def __init__(self, directory: Path, places: Mapping[str, tuple[str, str]]) -> None:
        """places: of each weight its file and its name there."""
        self._directory, self._places = directory, places

    def __getitem__(self, name: str) -> torch.Tensor:
        file, kept_as = self._places[name]
        with _opened(self._directory, file) as weights:
            tensor: torch.Tensor = weights.get_tensor(kept_as)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _weights(directory: Path, config: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    found = _places(directory, lambda name: weight_name(name, config) is not None)
    return KeptWeights(
        directory, {weight_name(name, config) or name: at for name, at in found.items()}
    )


def tensors_in(directory: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The weights whose names are wanted, by the names in the files. Raises ValueError."""
    return dict(KeptWeights(directory, _places(directory, wanted)))


def _places(directory: Path, wanted: Callable[[str], bool]) -> dict[str, tuple[str, str]]:
    """File and name of each weight that is wanted, its type checked."""
    found: dict[str, tuple[str, str]] = {}
    for file in _weight_files(directory):
        with _opened(directory, file) as weights:
            for name in filter(wanted, weights.keys()):
                dtype = weights.get_slice(name).get_dtype()
                if dtype not in DTYPES:
                    raise ValueError(f"{file} has weights of type {dtype}, which is not supported")
                found[name] = file, name
    return found
