"""Tables, JSON and plots of simulated runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogitate.cli.simulate.world import Outcome
from rich import box
from rich.table import Table

COLUMNS = (
    "policy", "p50 s", "p99 s", "$/1000", "prefill", "load", "ends", "used", "moved", "lost", "off",
)  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def figures(outcome: Outcome) -> dict[str, float]:
    """What a run is judged by; costs are of the endpoints' busy time at their hourly prices."""
    ended = max(1, len(outcome.makespans_s))
    off = [
        abs(p - m) / m for p, m in zip(outcome.predicted_s, outcome.makespans_s, strict=True) if m
    ]
    return {
        "contemplations": len(outcome.makespans_s),
        "makespan_p50_s": quantile(outcome.makespans_s, 0.5),
        "makespan_p99_s": quantile(outcome.makespans_s, 0.99),
        "makespan_mean_s": statistics.fmean(outcome.makespans_s) if outcome.makespans_s else 0.0,
        "usd_per_contemplation": outcome.cost_usd / ended,
        "prefill_efficiency": outcome.unique / max(1, outcome.computed),
        "imbalance_median": quantile(outcome.imbalances, 0.5),
        "imbalance_p90": quantile(outcome.imbalances, 0.9),
        "unevenness_median": quantile(outcome.unevennesses, 0.5),
        "endpoints_used": outcome.used,
        "moved_agents": outcome.moved_agents,
        "denials": outcome.denials,
        "lost": outcome.lost,
        "makespan_error_median": quantile(off, 0.5),
        "step_error_median": quantile(outcome.errors, 0.5),
    }


def table(outcomes: Sequence[Outcome]) -> Table:
    """A line a run: means over seeds are the reader's to make from the JSON."""
    # It is to fit into 80 characters.
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(COLUMNS):
        made.add_column(name, justify="right" if i else "left", no_wrap=True)
    for outcome in outcomes:
        found = figures(outcome)
        made.add_row(
            outcome.setting.name,
            f"{found['makespan_p50_s']:.2f}",
            f"{found['makespan_p99_s']:.1f}",
            f"{found['usd_per_contemplation'] * 1000:.2f}",
            f"{found['prefill_efficiency']:.2f}",
            f"{found['imbalance_median']:.0%}",
            f"{found['unevenness_median']:.0%}",
            f"{found['endpoints_used']:.0f}",
            f"{found['moved_agents']:.0f}",
            f"{found['lost']:.0f}",
            f"{found['makespan_error_median']:.0%}",
        )
    return made


def compared(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Ours against the best of the others: how much lower, relative.

    `cost_at_makespan` takes of our settings the cheapest whose p99 is not above that of the other
    with the lowest; 0 if there is none.
    """
    found = [(o.setting.policy, figures(o)) for o in outcomes if o.makespans_s and not o.lost]
    ours = [f for policy, f in found if policy == "gang"]
    others = [f for policy, f in found if policy not in ("gang", "pack")]
    if not ours or not others:
        return {}
    best = min(others, key=lambda f: f["makespan_p99_s"])
    lowest = min(f["makespan_p99_s"] for f in ours)
    as_fast = [f for f in ours if f["makespan_p99_s"] <= best["makespan_p99_s"]]
    cheapest = min((f["usd_per_contemplation"] for f in as_fast), default=0.0)
    cost = best["usd_per_contemplation"]
    return {
        "p99_lower": 1 - lowest / best["makespan_p99_s"],
        "cost_at_makespan_lower": 1 - cheapest / cost if as_fast and cost else 0.0,
    }


def write(
    outcomes: Sequence[Outcome], settings: dict[str, Any], placing_us: dict[str, float]
) -> dict[str, Any]:
    """Everything for the JSON; `placing` depends on the machine, all else on the seeds alone."""
    return {
        "settings": settings,
        "runs": [
            {"policy": o.setting.policy, "name": o.setting.name, "seed": o.setting.seed,
             "seconds_per_usd": o.setting.seconds_per_usd, **figures(o)}
            for o in outcomes
        ],
        "compared": {
            str(seed): compared([o for o in outcomes if o.setting.seed == seed])
            for seed in sorted({o.setting.seed for o in outcomes})
        },
        "placing_cpu_us": placing_us,
    }  # fmt: skip


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws the distribution of makespans, and p99 against cost. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(11.5, 4.6), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(o.setting.name for o in outcomes))
    marks = "osD^v<>pP*Xh"
    for i, name in enumerate(names):
        runs = [o for o in outcomes if o.setting.name == name]
        ours = runs[0].setting.policy == "gang"
        spans = sorted(value for o in runs for value in o.makespans_s)
        shares = [(j + 1) / len(spans) for j in range(len(spans))]
        style: dict[str, Any] = {"color": f"C{i % 10}", "label": name}
        left.plot(spans, shares, linewidth=2 if ours else 1, **style)
        found = [figures(o) for o in runs]
        right.plot(
            [f["usd_per_contemplation"] * 1000 for f in found],
            [f["makespan_p99_s"] for f in found],
            marks[i % len(marks)], markersize=9 if ours else 6, **style,
        )  # fmt: skip
    left.set(xscale="log", xlabel="makespan, s", ylabel="share of contemplations", ylim=(0, 1))
    right.set(
        xscale="log", yscale="log", xlabel="USD for 1000 contemplations", ylabel="p99 makespan, s"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.legend(fontsize=7)
    figure.savefig(path)
