"""Draws the comparison: total time and tokens a second against the number of agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the plot. Needs matplotlib (extra `eval`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.8), constrained_layout=True)
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = [r for r in rows if r["engine"] == engine and r["contemplations"] == 1]
        own.sort(key=lambda r: r["agents"])
        agents = [r["agents"] for r in own]
        style = {"marker": "o", "linestyle": "-" if engine.startswith("cogitate") else "--"}
        left.plot(agents, [r["total_s"] for r in own], label=engine, **style)
        right.plot(agents, [r["tokens_per_s"] for r in own], label=engine, **style)
    for axes, label in (
        (left, "seconds to the last token"),
        (right, "tokens a second, all agents"),
    ):
        axes.set_xscale("log", base=2)
        axes.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.set_xlabel("agents")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
