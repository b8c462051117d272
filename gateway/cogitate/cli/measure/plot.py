"""Draws accuracy and latency against the number of agents. Needs matplotlib (extra `eval`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogitate.cli.measure.statistics import Row

RETRY = "retry"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the plot; the file's ending chooses the format. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.8), constrained_layout=True)
    for name, marks in _series(rows).items():
        retry = name.endswith(RETRY)
        style = {"marker": "o", "linestyle": "--" if retry else "-"}
        style["color"] = "#b0562a" if retry else "#1f6f8b"
        if len({row.dataset for row in rows}) > 1:
            style.pop("color")
        counts = [row.agents for row in marks]
        shares = [100 * row.accuracy for row in marks]
        below = [100 * (row.accuracy - row.ci95[0]) for row in marks]
        above = [100 * (row.ci95[1] - row.accuracy) for row in marks]
        left.errorbar(counts, shares, yerr=(below, above), capsize=3, label=name, **style)
        right.plot(counts, [row.latency_p50_s for row in marks], label=f"{name}, p50", **style)
        right.plot(
            counts,
            [row.latency_p95_s for row in marks],
            alpha=0.35,
            label=f"{name}, p95",
            **style,
        )
    for axes, label in ((left, "right answers, %"), (right, "latency, s")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row.agents for row in rows}))
        axes.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.set_xlabel("agents, or the tokens they spend")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    left.set_ylim(0, 100)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    series: dict[str, list[Row]] = {}
    for row in rows:
        kind = "one agent, " + RETRY if row.strategy == RETRY else "agents at once"
        series.setdefault(f"{row.dataset}: {kind}", []).append(row)
    return {name: sorted(marks, key=lambda row: row.agents) for name, marks in series.items()}
