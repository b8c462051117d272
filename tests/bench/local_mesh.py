"""A mesh of real processes for benchmarks, with the processes' numbers at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cogitate.cli.mesh.plan import Options, members, port_count
from cogitate.cli.mesh.processes import Processes, free_ports
from cogitate.cli.starting import Starting
from rich.console import Console


@dataclass(frozen=True)
class LocalMesh:
    """Where its gateway is, and its processes by name; decoders' names end with a number."""

    address: str
    pids: dict[str, int]
    folder: Path  # of its journal, logs and traces
    addresses: dict[str, str] = field(default_factory=dict)
    http: str = ""

    @property
    def decoder(self) -> int:
        """The process of the first decoder."""
        return next(pid for name, pid in self.pids.items() if name.endswith("-1"))


@contextmanager
def local_mesh(options: Options, console: Console) -> Iterator[LocalMesh]:
    """Starts all processes, as `cogitate up` does, in a folder that goes with them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ports = free_ports(port_count(options))
        planned = members(options, ports, folder, folder / "traces.sqlite")
        starting = Starting(console, "starting a mesh")
        starting.planned([member.name for member in planned])
        processes = Processes(planned, folder)
        try:
            with starting.shown():
                processes.start(starting.changed)
            pids = {member.name: member.process.pid for member in processes.noted()}
            addresses = {member.name: member.address for member in planned}
            yield LocalMesh(planned[0].address, pids, folder, addresses, planned[0].http)
        finally:
            processes.stop()


def options_for(model: Path, threads: int) -> Options:
    """One decoder with this checkpoint: what runs alone beside it has as many threads."""
    return Options(
        decoders=1, model=model.name, models_path=str(model.parent.resolve()), threads=threads
    )
