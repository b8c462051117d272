"""Draws what was measured of one set. Needs matplotlib (extra `eval`)."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Draws accuracy against tokens and against latency: mean filled, p95 hollow.

    The numbers beside the marks are agents; bars are Wilson's 95 % intervals.
    """
    pyplot = _pyplot()
    figure, (tokens, latency) = pyplot.subplots(1, 2, figsize=(10.4, 4.2), constrained_layout=True)
    for number, (name, marks) in enumerate(series(rows).items()):
        style = _style(number, marks[-1][0])
        right, bars = _shares(marks)
        spent = [row.tokens_mean for _, row in marks]
        tokens.errorbar(spent, right, yerr=bars, label=name, capsize=3, **style)
        mean = [row.latency_mean_s for _, row in marks]
        late = [row.latency_p95_s for _, row in marks]
        latency.errorbar(mean, right, yerr=bars, label=f"{name}, mean", capsize=3, **style)
        hollow = {**style, "markerfacecolor": "white", "alpha": 0.55, "linestyle": ":"}
        latency.plot(late, right, label=f"{name}, p95", **hollow)
        for (setting, _), x, y in zip(marks, spent, right, strict=True):
            place = {"xytext": (5, 5 + 9 * (number % 2)), "textcoords": "offset points"}
            tokens.annotate(str(setting.agents), (x, y), color=style["color"], fontsize=8, **place)
    tokens.set_xlabel("tokens a question, all agents (mean)")
    latency.set_xlabel("latency, s")
    for axes in (tokens, latency):
        axes.set_xscale("log")
        _plain_ticks(axes.get_xaxis())
        axes.set_ylabel("right answers, %")
    _finish(figure, (tokens, latency), title, path)


def by_agents(rows: Mapping[Setting, Row], title: str, path: Path) -> None:
    """Draws accuracy and latency (p50, and p95 paler) against the number of agents."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.8), constrained_layout=True)
    for number, (name, marks) in enumerate(series(rows).items()):
        style = _style(number, marks[-1][0])
        counts = [setting.agents for setting, _ in marks]
        shares, bars = _shares(marks)
        left.errorbar(counts, shares, yerr=bars, capsize=3, label=name, **style)
        half = [row.latency_p50_s for _, row in marks]
        right.plot(counts, half, label=f"{name}, p50", **style)
        late = [row.latency_p95_s for _, row in marks]
        right.plot(counts, late, alpha=0.35, label=f"{name}, p95", **style)
    for axes, label in ((left, "right answers, %"), (right, "latency, s")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({setting.agents for setting in rows}))
        _plain_ticks(axes.get_xaxis())
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


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plain_ticks(axis: Any) -> None:
    """Numbers, not powers of ten."""
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.7)))


def _finish(figure: Any, panels: tuple[Any, ...], title: str, path: Path) -> None:
    for axes in panels:
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=_DPI)
    _pyplot().close(figure)
