"""Tables of what was measured, for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cogitate.cli.measure.compare import Comparison
from cogitate.cli.measure.paired import Estimate
from cogitate.cli.measure.setting import JUDGE, SAMPLING_TEMPERATURE, Setting
from cogitate.cli.measure.statistics import Row
from rich import box
from rich.table import Table

Rows = Mapping[tuple[str, Setting], Row]

_ROW_HEADS: Final = (
    "set",
    "setting",
    "right, % (95 %)",
    "of",
    "tokens",
    "killed",
    "lost",
    "a right one",
    "mean s",
    "p50 s",
    "p95 s",
    "first s",
    "agree",
    "abstained",
    "failed",
)
_COMPARISON_HEADS: Final = (
    "set",
    "setting",
    "beside",
    "of",
    "accuracy, points",
    "only one right",
    "p",
    "tokens, ratio",
    "latency, ratio",
)
NOTES: Final = (
    "Right: with Wilson's 95 % interval; abstained and failed runs count as wrong. Tokens: sampled "
    "ones, a question, of these killed and lost, and for each right answer. Latency: as the client "
    "sees it, of runs with a verdict; first: median time to the first text of an answer. Agree: "
    "ballots for the verdict."
)
PAIRED_NOTES: Final = (
    "Paired by question. Accuracy: the setting's less that of what it is beside, with Bonett and "
    "Price's interval; questions that only it and only the other had right; McNemar's exact p. "
    "Tokens and mean latency: its share of the other's, with a bootstrap's interval. All 95 %."
)


def row_lines(rows: Rows) -> list[tuple[str, ...]]:
    """Returns the cells of the table of settings."""
    return [(dataset, setting.name, *_cells(one)) for (dataset, setting), one in rows.items()]


def comparison_lines(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Returns the cells of the table of comparisons."""
    lines: list[tuple[str, ...]] = []
    for one in comparisons:
        what = one.difference
        lines.append(
            (
                one.dataset,
                one.setting,
                one.reference,
                str(what.questions),
                _span(what.accuracy, 100, "+.1f"),
                f"{what.only_second} / {what.only_first}",
                "" if what.mcnemar_p is None else f"{what.mcnemar_p:.2g}",
                _span(what.tokens, 1, ".2f"),
                _span(what.latency, 1, ".2f"),
            )
        )
    return lines


def tables(rows: Rows, comparisons: Sequence[Comparison]) -> list[Table]:
    """Returns the tables for a terminal; a column with nothing to say is left out."""
    made = [_table(_ROW_HEADS, row_lines(rows))] if rows else []
    if comparisons:
        made.append(_table(_COMPARISON_HEADS, comparison_lines(comparisons)))
    return made


def markdown(rows: Rows, comparisons: Sequence[Comparison], remarks: Sequence[str] = ()) -> str:
    """Returns the tables and what has to be said about them as Markdown."""
    parts = []
    if rows:
        parts += [_pipes(_ROW_HEADS, row_lines(rows)), NOTES]
    if comparisons:
        parts += [_pipes(_COMPARISON_HEADS, comparison_lines(comparisons)), PAIRED_NOTES]
    return "\n\n".join([*parts, *remarks]) + "\n"


def plain(
    rows: Rows, comparisons: Sequence[Comparison], remarks: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns everything for a program."""
    return {
        "version": version("cogitate"),
        "rows": [
            {
                "dataset": dataset,
                "name": setting.name,
                "setting": setting.to_json(),
                **one.to_json(),
            }
            for (dataset, setting), one in rows.items()
        ],
        "comparisons": [one.to_json() for one in comparisons],
        "remarks": list(remarks),
    }


def remarks(rows: Rows, concurrencies: Sequence[int], refusals: Mapping[Setting, str]) -> list[str]:
    """Returns what a reader of the numbers has to know beside them."""
    said = [f"Refused by the mesh: {one.name}: {why}" for one, why in refusals.items()]
    if any(one.kind == JUDGE and one.temperature is None for _, one in rows):
        said.append(
            f"The judge's single calls sampled at temperature {SAMPLING_TEMPERATURE}, gangs at the "
            "model's own: --temperature gives both the same."
        )
    most = max(concurrencies, default=1)
    if most > 1:
        said.append(f"Up to {most} questions were asked at once: latency holds under that load.")
    for (dataset, setting), one in rows.items():
        where = f"{dataset}, {setting.name}"
        if one.errors:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in one.errors.items())
            said.append(f"{where}: {one.failed} of {one.runs} runs failed: {reasons}.")
        if one.left_out:
            said.append(f"{where}: asked for and not done: {', '.join(one.left_out)}.")
        if one.degraded:
            said.append(f"{where}: {one.degraded} verdicts were degraded.")
    return said


def write(
    folder: Path, name: str, rows: Rows, comparisons: Sequence[Comparison], said: Sequence[str]
) -> None:
    """Writes `name`.md and `name`.json into the folder."""
    (folder / f"{name}.md").write_text(markdown(rows, comparisons, said), encoding="utf-8")
    text = json.dumps(plain(rows, comparisons, said), indent=2, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _cells(one: Row) -> tuple[str, ...]:
    low, high = (100 * bound for bound in one.ci95)
    repeated = f" × {one.runs / one.questions:.3g}" if one.runs != one.questions else ""
    times = (one.latency_mean_s, one.latency_p50_s, one.latency_p95_s)
    answered = one.runs > one.failed
    return (
        f"{100 * one.accuracy:.1f} ({low:.1f}–{high:.1f})",
        f"{one.questions}{repeated}",
        f"{one.tokens_mean:.0f}",
        f"{one.killed_mean:.0f}" if one.killed_mean else "",
        f"{one.lost_mean:.1f}" if one.lost_mean else "",
        "–" if one.tokens_per_right is None else f"{one.tokens_per_right:.0f}",
        *(f"{time_s:.2f}" if answered else "–" for time_s in times),
        "" if one.first_answer_p50_s is None else f"{one.first_answer_p50_s:.2f}",
        "" if one.agreement is None else f"{one.agreement:.0%}",
        str(one.abstained or ""),
        str(one.failed or ""),
    )


def _span(estimate: Estimate | None, scale: float, form: str) -> str:
    if estimate is None:
        return ""
    low, high = (format(scale * bound, form) for bound in (estimate.low, estimate.high))
    return f"{format(scale * estimate.value, form)} ({low}…{high})"


def _table(heads: Sequence[str], lines: Sequence[tuple[str, ...]]) -> Table:
    """A table as wide as what it has to say: one set is a title and no column."""
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if len({line[0] for line in lines}) == 1:
        table.title, kept = lines[0][0], kept[1:]
    for i in kept:
        named = heads[i] in ("set", "setting", "beside")
        table.add_column(heads[i], justify="left" if named else "right")
    for line in lines:
        table.add_row(*(line[i] for i in kept))
    return table


def _pipes(heads: Sequence[str], lines: Sequence[tuple[str, ...]]) -> str:
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        "| " + " | ".join(line[i].replace("|", "\\|") for i in kept) + " |" for line in rows
    )
