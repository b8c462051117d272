"""A part of a machine for a process: so many cores of time, by a cgroup of the kernel's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Short, so that a process that has used up its time does not wait long; a kernel's least is 1 ms.
PERIOD_US = 20_000


@contextmanager
def cpu_share(name: str, cores: float, *pids: int) -> Iterator[None]:
    """While it lasts, the processes and those they start have `cores` of the machine's time.

    Raises PermissionError or OSError where this may not be done: it takes root.
    """
    quota = int(cores * PERIOD_US)
    unified = (ROOT / "cgroup.controllers").exists()
    folder = (ROOT if unified else ROOT / "cpu") / f"cogitate-{os.getpid()}-{name}"
    folder.mkdir()
    try:
        if unified:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        _move(folder, family(pids))
        yield
    finally:
        _move(folder.parent, [int(line) for line in (folder / "cgroup.procs").read_text().split()])
        folder.rmdir()


def _move(folder: Path, pids: list[int]) -> None:
    for pid in pids:
        try:
            (folder / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            continue  # it has ended


def family(pids: tuple[int, ...]) -> list[int]:
    """These processes and all below them."""
    found = list(pids)
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found
