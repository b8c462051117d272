"""Shows how far an evaluation is: a bar a setting, with the accuracy so far and the time left."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from cogitate.cli.measure.results import Record
from cogitate.cli.measure.setting import Setting
from cogitate.cli.measure.statistics import wilson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """The bars of a grid; `kept` are records of earlier runs, `total` the runs of each setting."""

    def __init__(
        self, console: Console, settings: Sequence[Setting], total: int, kept: Sequence[Record]
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[Setting, TaskID] = {}
        self._right = dict.fromkeys(settings, 0)
        self._count = dict.fromkeys(settings, 0)
        for record in kept:
            self._note(record)
        for one in settings:
            # Begun with what is kept: it must not look like speed.
            self._tasks[one] = self._progress.add_task(
                one.name, total=total, completed=self._count[one], said=self._said(one)
            )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def done(self, record: Record) -> None:
        """Counts one record."""
        self._note(record)
        said = self._said(record.setting)
        self._progress.update(self._tasks[record.setting], advance=1, said=said)

    def refused(self, setting: Setting) -> None:
        """Ends the bar of a setting that the mesh refused."""
        task = self._tasks[setting]
        self._progress.update(task, said="refused")
        self._progress.stop_task(task)

    def _note(self, record: Record) -> None:
        self._right[record.setting] += record.outcome.right
        self._count[record.setting] += 1

    def _said(self, setting: Setting) -> str:
        right, count = self._right[setting], self._count[setting]
        if not count:
            return ""
        low, high = wilson(right, count)
        return f"{right / count:.1%} ({low:.0%}–{high:.0%})"
