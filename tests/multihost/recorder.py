"""Bytes between the sites over time, looked at again and again while a scene runs."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from tests.multihost.layout import DESK
from tests.multihost.mesh import Mesh

INTERVAL_S: Final = 0.25


class Recorder:
    """Use as a context manager."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="recorder")
        self.times: list[float] = []
        self.totals: dict[str, list[int]] = {}  # by pair of sites, bytes so far

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            counts = self._mesh.counts()
            self.times.append(time.monotonic())
            for one in counts:
                if DESK not in (one["from"], one["to"]):
                    pair = f"{one['from']} to {one['to']}"
                    self.totals.setdefault(pair, []).append(_bytes(one))


def _bytes(one: dict[str, Any]) -> int:
    return sum(size for _, size in one["ports"].values())
