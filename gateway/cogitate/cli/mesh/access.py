"""How a command gets at a mesh: the one it is told of, the one that runs, or one of its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cogitate.cli.mesh import state
from cogitate.cli.mesh.plan import Options, members, port_count
from cogitate.cli.mesh.processes import MeshError, Processes, free_ports, is_serving


@dataclass(frozen=True)
class Access:
    """Where the gateway is and where its traces are, if they are on this machine."""

    address: str
    trace_store: Path | None
    private: bool = False


class Watcher(Protocol):
    """Is told how a mesh starts."""

    def planned(self, names: list[str]) -> None:
        """Tells which processes there will be."""
        ...

    def changed(self, name: str, what: str) -> None:
        """Tells of one process."""
        ...

    def shown(self) -> AbstractContextManager[None]:
        """Shows it while the block runs."""
        ...


def running(name: str, address: str | None) -> Access | None:
    """Returns the mesh that is told of or that runs under `name`, or None."""
    note = state.read(name)
    if told := address or os.environ.get("COGITATE_ADDRESS"):
        is_ours = note is not None and note.gateway == told
        return Access(told, _store(name) if is_ours else None)
    if note is None or note.state != "serving":
        return None
    if not is_serving(note.gateway, timeout_s=5.0):
        raise MeshError(
            f"the mesh {name!r} is noted as running, but its gateway at {note.gateway} does not "
            "answer; try `cogitate down`, then `cogitate up`"
        )
    return Access(note.gateway, _store(name))


def running_beside(name: str, address: str | None, servers: Sequence[object]) -> Access | None:
    """The same for who may start a private mesh: servers that would not be used are refused."""
    found = running(name, address)
    if found is not None and servers:
        raise MeshError(
            "a mesh is running already, and does not change; --server needs one of its own: "
            "choose another --name, or `cogitate down` first"
        )
    return found


def require(name: str, address: str | None) -> Access:
    """Returns the running mesh. Raises MeshError if there is none."""
    found = running(name, address)
    if found is None:
        raise MeshError("no mesh is running; start one with `cogitate up`")
    return found


@contextmanager
def private(
    name: str,
    options: Options,
    starting: Watcher,
) -> Iterator[Access]:
    """Runs a mesh of one's own on free ports; its traces go to the store of the mesh `name`.

    Its folder goes with it, unless something failed: then its logs are kept for whoever looks.
    """
    folder = state.root() / f"private-{os.getpid()}"
    store = _store(name)
    store.parent.mkdir(parents=True, exist_ok=True)
    planned = members(options, free_ports(port_count(options)), folder, store)
    starting.planned([member.name for member in planned])
    processes = Processes(planned, folder)
    with starting.shown():
        processes.start(starting.changed)
    failed = False
    try:
        yield Access(planned[0].address, store, private=True)
    except Exception:
        failed = True
        raise
    finally:
        processes.stop()
        if failed:
            sys.stderr.write(f"cogitate: the logs are kept in {folder / 'logs'}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _store(name: str) -> Path:
    return state.trace_store(name)
