"""Which settings are worth setting side by side, and what differs between them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cogitate.cli.measure.paired import Difference, Pair, difference
from cogitate.cli.measure.results import Record, Unit
from cogitate.cli.measure.setting import GANG, JUDGE, Setting
from cogitate.cli.measure.statistics import Outcome, Row, row

_WAITS_FOR_ALL: Final = "all"

Measured = Mapping[tuple[str, Setting], Mapping[Unit, Outcome]]


@dataclass(frozen=True)
class Comparison:
    """A setting beside a reference, on what both were asked."""

    dataset: str
    reference: str
    setting: str
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as the JSON file has it."""
        names = {"dataset": self.dataset, "reference": self.reference, "setting": self.setting}
        return {**names, **self.difference.to_json()}


def measured(records: Iterable[Record]) -> dict[tuple[str, Setting], dict[Unit, Outcome]]:
    """Returns the outcomes by set and setting, in the order of the grid as far as it shows."""
    found: dict[tuple[str, Setting], dict[Unit, Outcome]] = {}
    for one in records:
        found.setdefault((one.unit.dataset, one.setting), {})[one.unit] = one.outcome
    return dict(sorted(found.items(), key=lambda item: _order(*item[0])))


def rows(found: Measured) -> dict[tuple[str, Setting], Row]:
    """Sums up every setting."""
    return {
        key: row(list(outcomes.values()), len({_question(one) for one in outcomes}))
        for key, outcomes in found.items()
    }


def within(found: Measured) -> Iterator[Comparison]:
    """Compares the settings of one grid: with waiting for all, with a judge, with one agent."""
    for dataset, setting in found:
        for other in references(setting):
            if (dataset, other) in found:
                first, second = found[dataset, other], found[dataset, setting]
                if pairs := paired(first, second):
                    yield Comparison(dataset, other.name, setting.name, difference(pairs))


def between(first: Measured, second: Measured) -> Iterator[Comparison]:
    """Compares what two folders have of the same setting; two lone settings in any case."""
    for key in first:
        if key in second and (pairs := paired(first[key], second[key])):
            dataset, setting = key
            names = f"{setting.name} (first)", f"{setting.name} (second)"
            yield Comparison(dataset, *names, difference(pairs))
    if len(first) == len(second) == 1 and first.keys() != second.keys():
        ((dataset, one), before), ((_, two), after) = *first.items(), *second.items()
        if pairs := paired(before, after):
            yield Comparison(dataset, one.name, two.name, difference(pairs))


def references(setting: Setting) -> Iterator[Setting]:
    """Yields what a setting could be compared with, whether or not it was measured."""
    if setting.kind != GANG or setting.agents == 1:
        return
    if setting.quorum != _WAITS_FOR_ALL:
        yield replace(setting, quorum=_WAITS_FOR_ALL)
    yield replace(setting, kind=JUDGE, strategy="", quorum="", initial_agents=0)
    yield replace(setting, agents=1, quorum="", initial_agents=0)


def paired(first: Mapping[Unit, Outcome], second: Mapping[Unit, Outcome]) -> list[Pair]:
    """Returns the outcomes of what both were asked, by question, in a fixed order."""
    by_question: dict[tuple[str, str, str], list[tuple[Outcome, Outcome]]] = {}
    for one in sorted(first.keys() & second.keys(), key=lambda unit: (_question(unit), unit.seed)):
        by_question.setdefault(_question(one), []).append((first[one], second[one]))
    return list(by_question.values())


def _question(unit: Unit) -> tuple[str, str, str]:
    return unit.dataset, unit.question, unit.digest


def _order(dataset: str, setting: Setting) -> tuple[Any, ...]:
    return dataset, setting.kind != GANG, setting.series, setting.agents, setting.name
