"""Shows a mesh while it starts: one line a process on a terminal, nothing much elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class Starting:
    """The states of the processes as they are told; use `changed` as the callback."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._began = time.monotonic()
        self._states: dict[str, tuple[str, float]] = {}
        self._spinners: dict[str, Spinner] = {}

    def planned(self, names: list[str]) -> None:
        """Tells which processes there will be, in order."""
        for name in names:
            self._states.setdefault(name, ("starting", 0.0))

    def changed(self, name: str, what: str) -> None:
        """Tells that a process is "starting" or "serving"."""
        self._states[name] = (what, time.monotonic() - self._began)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws until the block is left; off a terminal says when it began and how long it took."""
        if not self._console.is_terminal:
            self._console.print(f"{self._title} …", highlight=False)
            yield
            self._console.print(
                f"{len(self._states)} processes serve after {time.monotonic() - self._began:.1f} s",
                highlight=False,
            )
            return
        with Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=10,
            transient=True,
        ):
            yield
        self._console.print(
            Text.assemble(
                ("✓ ", "green"),
                (f"{len(self._states)} processes serve", "bold"),
                (f"  {time.monotonic() - self._began:.1f} s", "dim"),
            )
        )

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for name, (what, after_s) in self._states.items():
            if what == "serving":
                table.add_row(Text("✓", "green"), name, Text(f"{after_s:.1f} s", "dim"))
            else:
                spinner = self._spinners.setdefault(name, Spinner("dots", style="cyan"))
                table.add_row(spinner, Text(name, "dim"), Text(what, "dim"))
        return Group(Text(self._title, "bold"), table)
