"""Draws what was measured of one set. Needs matplotlib (extra `eval`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cogitate.cli.measure.setting import GANG, Setting
from cogitate.cli.measure.statistics import Row

_COLOURS: Final = ("#1f6f8b", "#b0562a", "#4b7f3a", "#7b4b94", "#a8842c", "#3a5a9b", "#8b2f4a")
_DPI: Final = 160


def available() -> bool:
    """Tells whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def series(rows: Mapping[Setting, Row]) -> dict[str, list[tuple[Setting, Row]]]:
    """Returns the curves by name, each by number of agents.

    One agent begins the curve of every quorum of its strategy: it has none of its own.
    """
    curves: dict[str, list[tuple[Setting, Row]]] = {}
    alone = {one.strategy: (one, row) for one, row in rows.items() if _is_alone(one)}
    for setting, row in sorted(rows.items(), key=lambda item: item[0].agents):
        if not _is_alone(setting):
            first = alone.get(setting.strategy) if setting.kind == GANG else None
            curves.setdefault(setting.series, [first] if first else []).append((setting, row))
    return curves or {one.series: [(one, row)] for one, row in alone.values()}


def frontier(rows: Mapping[Setting, Row], title: str, path: Path) -> None:
    """Draws accuracy against tokens, mean latency and its 95th percentile.

    The numbers beside the marks are agents; bars are Wilson's 95 % intervals.
    """
    figure, panels = _panels(3, figsize=(11.5, 4.4), sharey=True)
    costs: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("tokens a question, all agents (mean)", lambda row: row.tokens_mean),
        ("latency, mean, s", lambda row: row.latency_mean_s),
        ("latency, p95, s", lambda row: row.latency_p95_s),
    )
    for axes, (label, cost) in zip(panels, costs, strict=True):
        for number, (name, marks) in enumerate(series(rows).items()):
            style = _style(number, marks[-1][0])
            right, bars = _shares(marks)
            spent = [cost(row) for _, row in marks]
            axes.errorbar(spent, right, yerr=bars, label=name, capsize=3, elinewidth=0.8, **style)
            for (setting, _), x, y in zip(marks, spent, right, strict=True):
                place = {"xytext": (5, 4 + 8 * (number % 3)), "textcoords": "offset points"}
                axes.annotate(str(setting.agents), (x, y), color=style["color"], size=7, **place)
        axes.set_xscale("log")
        _plain_ticks(axes.get_xaxis())
        axes.set_xlabel(label)
    panels[0].set_ylabel("right answers, %")
    _finish(figure, panels, title, path)


def by_agents(rows: Mapping[Setting, Row], title: str, path: Path) -> None:
    """Draws accuracy and latency (p50, and p95 paler) against the number of agents."""
    figure, (left, right) = _panels(2, figsize=(9.6, 4.2))
    for number, (name, marks) in enumerate(series(rows).items()):
        style = _style(number, marks[-1][0])
        counts = [setting.agents for setting, _ in marks]
        shares, bars = _shares(marks)
        left.errorbar(counts, shares, yerr=bars, capsize=3, label=name, **style)
        half = [row.latency_p50_s for _, row in marks]
        right.plot(counts, half, **style)
        late = [row.latency_p95_s for _, row in marks]
        right.plot(counts, late, alpha=0.35, **style)
    for axes, label in ((left, "right answers, %"), (right, "latency, s: p50, and paler p95")):
        axes.set_xscale("log", base=2)
        counts = sorted({setting.agents for setting in rows})
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("agents, or the tokens they spend")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    left.set_ylim(0, 100)
    _finish(figure, (left, right), title, path)


def _is_alone(setting: Setting) -> bool:
    return setting.kind == GANG and setting.agents == 1


def _shares(marks: list[tuple[Setting, Row]]) -> tuple[list[float], tuple[list[float], ...]]:
    """Accuracies and the lengths of their bars below and above, all in per cent."""
    right = [100 * row.accuracy for _, row in marks]
    below = [100 * (row.accuracy - row.ci95[0]) for _, row in marks]
    above = [100 * (row.ci95[1] - row.accuracy) for _, row in marks]
    return right, (below, above)


def _style(number: int, setting: Setting) -> dict[str, Any]:
    line = "-" if setting.kind == GANG else "--"
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": "o", "linestyle": line}


def _panels(count: int, **how: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, count, layout="constrained", **how)


def _plain_ticks(axis: Any) -> None:
    """1, 2, 3, 5, 10 and so on as numbers, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _finish(figure: Any, panels: Any, title: str, path: Path) -> None:
    from matplotlib import pyplot

    for axes in panels:
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=10)
    lines, names = panels[0].get_legend_handles_labels()
    columns = min(len(names), 4)
    figure.legend(
        lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
