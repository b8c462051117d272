"""Asks all questions in all settings, in alternation, and keeps what came of each.

Every question meets every setting before the next question begins, and the settings take turns at
being first. So whatever else the machine does meets all of them, and a run that is interrupted has
whole pairs. An asking that the results have already is not repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cogitate.cli.measure.ask import SettingRefused
from cogitate.cli.measure.results import Record, Results, key_of, unit
from cogitate.cli.measure.setting import RETRY, Setting, seed_of
from cogitate.cli.measure.statistics import Outcome
from cogitate.evals.question import Question

# Question, setting, seed, and the tokens that a retry may spend.
Ask = Callable[[Question, Setting, int, int], Awaitable[Outcome]]


class Watcher(Protocol):
    """Is told how a run goes on."""

    def done(self, record: Record) -> None:
        """Tells of one new record."""
        ...

    def refused(self, setting: Setting) -> None:
        """Tells that a setting is given up."""
        ...


@dataclass
class Run:
    """One run over a grid; `refusals` has the settings that the mesh refused, and its words."""

    questions: Sequence[Question]
    settings: Sequence[Setting]
    results: Results
    seed: int = 0
    repeats: int = 1
    concurrency: int = 1
    refusals: dict[Setting, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many askings there are."""
        return len(self.questions) * self.repeats * len(self.settings)

    def kept(self) -> list[Record]:
        """Returns what the results have already of this run."""
        found = []
        for repeat, index in self._turns():
            asked = unit(self.questions[index], seed_of(self.seed, index, repeat))
            records = (self.results.get(key_of(asked, one)) for one in self.settings)
            found += [record for record in records if record is not None]
        return found

    async def go(self, ask: Ask, watcher: Watcher) -> None:
        """Asks whatever is not in the results yet, `concurrency` questions at a time.

        Cancelled, it leaves the results with everything that was finished. Raises what `ask`
        raises, except SettingRefused: that ends one setting only.
        """
        turns = self._turns()

        async def worker() -> None:
            for repeat, index in turns:
                await self._turn(ask, watcher, repeat, index)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(self.questions) * self.repeats)):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _turns(self) -> Iterator[tuple[int, int]]:
        for repeat in range(self.repeats):
            for index in range(len(self.questions)):
                yield repeat, index

    async def _turn(self, ask: Ask, watcher: Watcher, repeat: int, index: int) -> None:
        """Asks one question in every setting."""
        question = self.questions[index]
        asked = unit(question, seed_of(self.seed, index, repeat))
        for setting in in_turn(self.settings, index + repeat):
            if setting in self.refusals:
                continue
            if self.results.get(key_of(asked, setting)) is not None:
                continue
            budget = 0
            if setting.kind == RETRY:
                gang = self.results.get(key_of(asked, setting.gang()))
                if gang is None:
                    continue  # the gang was refused: there is nothing to compare with
                budget = gang.outcome.tokens
            try:
                outcome = await ask(question, setting, asked.seed, budget)
            except SettingRefused as error:
                if setting not in self.refusals:
                    self.refusals[setting] = str(error)
                    watcher.refused(setting)
                continue
            record = Record(asked, setting, outcome, self.concurrency)
            self.results.add(record)
            watcher.done(record)


def in_turn(settings: Sequence[Setting], turn: int) -> list[Setting]:
    """Returns the settings, another one first each turn; retries last, as they need their gang."""
    first = turn % len(settings) if settings else 0
    turned = [*settings[first:], *settings[:first]]
    return sorted(turned, key=lambda one: one.kind == RETRY)
