"""Draws the comparison: times and throughput against the number of agents, a line an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PANELS = (
    ("tokens a second, all agents", lambda row: row["tokens_per_s"]),
    ("seconds to the last token", lambda row: row["total_s"]),
    ("seconds to the first token", lambda row: row["first_token_s"]),
    ("step / the machine's floor", lambda row: row["step_to_floor"]),
)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the plot: a row of panels for each length of prompt. Needs matplotlib (`eval`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    alone = [row for row in rows if row["contemplations"] == 1]
    engines = list(dict.fromkeys(row["engine"] for row in alone))
    names = list(dict.fromkeys(engine.split()[0] for engine in engines))
    prompts = sorted({row["prompt"] for row in alone})
    figure, grid = pyplot.subplots(
        len(prompts), len(PANELS), figsize=(3.4 * len(PANELS), 3.1 * len(prompts) + 0.6),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, prompt in zip(grid, prompts, strict=True):
        for axes, (title, value) in zip(line, PANELS, strict=True):
            for engine in engines:
                own = [r for r in alone if (r["engine"], r["prompt"]) == (engine, prompt)]
                own.sort(key=lambda r: r["agents"])
                types = [e for e in engines if e.split()[0] == engine.split()[0]]
                axes.plot(
                    [r["agents"] for r in own],
                    [value(r) for r in own],
                    label=engine,
                    color=f"C{names.index(engine.split()[0])}",
                    linestyle=("-", "--", ":", "-.")[types.index(engine) % 4],
                    linewidth=2.2 if engine.startswith("cogitate") else 1.4,
                    marker="o",
                    markersize=4,
                )
            _dress(
                axes, f"{title}\n({prompt} tokens of prompt)", sorted({r["agents"] for r in alone})
            )
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)


def _dress(axes: Any, title: str, agents: list[int]) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(agents, [str(n) for n in agents])
    axes.minorticks_off()
    axes.set_xlabel("agents", fontsize=8)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
