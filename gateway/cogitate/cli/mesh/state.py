"""Where a mesh is noted: one folder a mesh, with `mesh.json`, logs, journal and traces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cogitate.cli.mesh.plan import NAME


@dataclass(frozen=True)
class Identity:
    """A process, told apart from a later one that got the same number by when it started."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Says whether it still runs; a zombie does not."""
        found = _stat(self.pid)
        if found is not None:
            return found[0] == self.start_ticks and found[1] not in "ZX"
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class NotedMember:
    """A process of a mesh that runs."""

    name: str
    address: str
    log: str
    process: Identity
    http: str = ""
    probe_as: str = ""  # folder of the certificate to show it


@dataclass(frozen=True)
class Note:
    """What `mesh.json` says; `state` is "starting" or "serving"."""

    name: str
    state: str
    supervisor: Identity
    members: tuple[NotedMember, ...] = ()
    start_time_s: float = field(default_factory=time.time)

    @property
    def gateway(self) -> str:
        """The address clients use; empty while it has not started."""
        return next((one.address for one in self.members if one.name == "gateway"), "")

    def survivors(self) -> list[Identity]:
        """Returns the processes of the mesh that still run, the supervisor's first."""
        every = [self.supervisor, *(one.process for one in self.members)]
        return [process for process in every if process.is_alive()]


def root() -> Path:
    """Returns the folder of all meshes: COGITATE_STATE, else under the user's state folder."""
    if given := os.environ.get("COGITATE_STATE"):
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "cogitate"


def folder(name: str) -> Path:
    """Returns the folder of the mesh called `name`. Raises ValueError for a bad name."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"a mesh's name is 1 to 64 letters, digits, dots or dashes, not {name!r}")
    return root() / name


def trace_store(name: str) -> Path:
    """Returns the file of the mesh's spans."""
    return folder(name) / "traces.sqlite"


def identity(pid: int) -> Identity:
    """Returns the identity of a running process."""
    found = _stat(pid)
    return Identity(pid, found[0] if found else 0)


def read(name: str) -> Note | None:
    """Returns what is noted, or None; a note of a mesh that is gone counts as none."""
    try:
        raw = json.loads((folder(name) / "mesh.json").read_text(encoding="utf-8"))
        note = Note(
            name=raw["name"],
            state=raw["state"],
            supervisor=Identity(**raw["supervisor"]),
            members=tuple(
                NotedMember(
                    one["name"],
                    one["address"],
                    one["log"],
                    Identity(**one["process"]),
                    one.get("http", ""),
                    one.get("probe_as", ""),
                )
                for one in raw["members"]
            ),
            start_time_s=raw["start_time_s"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if note.survivors() else None


def write(note: Note) -> None:
    """Writes the note, whole or not at all."""
    path = folder(note.name) / "mesh.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def forget(name: str) -> None:
    """Removes the note."""
    (folder(name) / "mesh.json").unlink(missing_ok=True)


def running_names() -> Sequence[str]:
    """Returns the meshes that run on this machine, by name."""
    try:
        found = sorted(path.parent.name for path in root().glob("*/mesh.json"))
    except OSError:
        return ()
    return [name for name in found if read(name) is not None]


def tail(path: str | Path, lines: int = 12) -> list[str]:
    """Returns the last lines of a log; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]


def _stat(pid: int) -> tuple[int, str] | None:
    """Returns when a process started, in clock ticks, and its state letter, on Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from behind it.
    fields = text.rpartition(")")[2].split()
    return int(fields[19]), fields[0]
