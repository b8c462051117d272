"""The folder of a person's models: one directory each, put there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from cogitate.cli.mesh.processes import MeshError

NOTE: Final = "cogitate.json"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_STAGING: Final = re.compile(r"\.staging-([0-9]+)-.*")


class ModelError(MeshError):
    """A model cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Note:
    """Where a model came from. It has no time in it: the same model is the same everywhere."""

    source: str
    license: str = ""
    checksums: dict[str, str] = field(default_factory=dict)  # of the files as they came, SHA-256


@dataclass(frozen=True)
class Entry:
    """A model that is on this machine."""

    name: str
    path: Path
    is_shipped: bool

    @property
    def num_bytes(self) -> int:
        """What its files take."""
        return sum(one.stat().st_size for one in self.path.rglob("*") if one.is_file())

    @property
    def note(self) -> Note | None:
        """Where it came from, if that was written down."""
        try:
            raw = json.loads((self.path / NOTE).read_text(encoding="utf-8"))
            return Note(str(raw["source"]), str(raw["license"]), dict(raw["checksums"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def root() -> Path:
    """Returns the folder: COGITATE_MODELS, else under the user's data folder."""
    if given := os.environ.get("COGITATE_MODELS"):
        return Path(given)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "cogitate" / "models"


def roots() -> list[Path]:
    """Returns where models are looked for, in order, before those that are shipped."""
    return [root(), Path("models")]


def entries() -> list[Entry]:
    """Returns every model by name; one that stands before another of its name hides it."""
    found: dict[str, Entry] = {}
    for folders, is_shipped in ((roots(), False), (_shipped_roots(), True)):
        for folder in folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.is_dir() and _NAME.fullmatch(path.name) and _has_model(path):
                    found.setdefault(path.name, Entry(path.name, path, is_shipped))
    return [found[name] for name in sorted(found)]


def find(name: str) -> Entry | None:
    """Returns the model called `name`, or None."""
    return next((entry for entry in entries() if entry.name == name), None)


def check_name(name: str) -> str:
    """Returns the name. Raises ModelError if no model can be called so."""
    if not _NAME.fullmatch(name):
        raise ModelError("a model's name is 1 to 64 letters, digits, dots, dashes or underscores")
    return name


@contextmanager
def staged(name: str, *, replace: bool = False) -> Iterator[Path]:
    """Gives a folder whose `model` becomes the model called `name` when the block ends well.

    Raises ModelError if there is one already, before the block and after it.
    """
    check_name(name)
    _sweep()
    _refuse_taken(name, replace)
    staging = root() / f".staging-{os.getpid()}-{name}"
    try:
        (staging / "model").mkdir(parents=True)
        yield staging
        _refuse_taken(name, replace)
        if replace:
            remove(name)
        (staging / "model").rename(root() / name)
    except OSError as error:
        raise ModelError(f"the model folder {root()}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_note(directory: Path, note: Note) -> None:
    """Writes down where a model came from."""
    text = json.dumps(asdict(note), indent=2, ensure_ascii=False) + "\n"
    (directory / NOTE).write_text(text, encoding="utf-8")


def remove(name: str) -> bool:
    """Removes a model of the user's folder, out of sight first. Returns whether it was there."""
    path = root() / check_name(name)
    if not path.is_dir() or path.is_symlink():
        return False
    aside = root() / f".staging-{os.getpid()}-removed-{name}"
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _refuse_taken(name: str, replace: bool) -> None:
    if (root() / name).exists() and not replace:
        raise ModelError(f"there is a model {name!r} already; see `cogitate models list`")
    if any((folder / name).is_dir() for folder in _shipped_roots()):
        raise ModelError(f"{name!r} is the name of a model that comes with cogitate")


def _sweep() -> None:
    """Removes what was left by commands that were killed."""
    for path in root().glob(".staging-*"):
        match = _STAGING.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _has_model(path: Path) -> bool:
    return (path / "config.json").is_file() or any(path.glob("*.gguf"))


def _shipped_roots() -> list[Path]:
    # `cogitate` is a namespace: in a checkout each service contributes a folder to its path.
    import cogitate

    return [Path(one) / "models" for one in cogitate.__path__]
