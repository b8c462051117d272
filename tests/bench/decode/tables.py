"""Rows of the comparison, and how they look."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.bench.decode.floor import Size
from tests.bench.decode.peers import Engine

OURS = "cogitate bfloat16"
# Prompt, contemplations, agents of each.
Shape = tuple[int, int, int]
Row = dict[str, Any]


def rows(
    timings: dict[tuple[Engine, Shape], list[dict[str, float]]],
    model: Path,
    tokens: int,
    peaks: dict[str, float],
) -> list[Row]:
    """One row an engine and shape, with the ratios to the engine alone, to us and to the floor."""
    size = Size.of(model)
    found = [_row(*key, runs, tokens, size, peaks) for key, runs in timings.items()]
    by_key = {(r["engine"], r["prompt"], r["contemplations"], r["agents"]): r for r in found}
    for row in found:
        prompt, contemplations, agents = row["prompt"], row["contemplations"], row["agents"]
        if alone := by_key.get((row["engine"], prompt, 1, 1)):
            row["time_ratio_to_one"] = round(row["total_s"] / alone["total_s"], 3)
            row["first_ratio_to_one"] = round(row["first_token_s"] / alone["first_token_s"], 3)
        if ours := by_key.get((OURS, prompt, contemplations, agents)):
            row["ours_to_it"] = round(ours["tokens_per_s"] / row["tokens_per_s"], 3)
    return found


def _row(
    engine: Engine,
    shape: Shape,
    runs: list[dict[str, float]],
    tokens: int,
    size: Size,
    peaks: dict[str, float],
) -> Row:
    prompt, contemplations, agents = shape
    total_s = statistics.median(run["total_s"] for run in runs)
    step_s = statistics.median(
        (run["total_s"] - run["first_token_s"]) / max(1, tokens - 1) for run in runs
    )
    floor_s, in_turn_s = size.floor_s(engine, shape, tokens, peaks)
    peak_mib = max(run["peak_mib"] for run in runs)
    return {
        "engine": engine.label,
        "prompt": prompt,
        "contemplations": contemplations,
        "agents": agents,
        "rounds": len(runs),
        "total_s": round(total_s, 3),
        "total_spread_s": [round(f(run["total_s"] for run in runs), 3) for f in (min, max)],
        "first_token_s": round(statistics.median(run["first_token_s"] for run in runs), 3),
        "tokens_per_s": round(contemplations * agents * tokens / total_s, 1),
        "step_ms": round(1000 * step_s, 3),
        "floor_ms": round(1000 * floor_s, 3),
        "step_to_floor": round(step_s / floor_s, 2),
        "step_to_floor_in_turn": round(step_s / in_turn_s, 2),
        "peak_mib": peak_mib,
        "resident_mib": max(run["resident_mib"] for run in runs),
        "beyond_weights_mib": round(peak_mib - size.weight_bytes(engine) / 2**20),
        "runs": runs,
    }


def speed(found: list[Row]) -> Table:
    """Rows by shape: times, and how we compare."""
    columns = ("total", "least … most", "first token", "tokens/s", "ours / it", "T(N)/T(1)")
    made = _table("one prompt, N agents", (*columns, "first(N)/first(1)"))
    for row in _sorted(found):
        made.add_row(
            row["engine"],
            _shape(row),
            f"{row['total_s']:.2f} s",
            "{:.2f} … {:.2f}".format(*row["total_spread_s"]),
            f"{1000 * row['first_token_s']:.0f} ms",
            f"{row['tokens_per_s']:.0f}",
            _ratio(row, "ours_to_it"),
            _ratio(row, "time_ratio_to_one"),
            _ratio(row, "first_ratio_to_one"),
        )
    return made


def floors(found: list[Row]) -> Table:
    """Rows by shape: steps beside what the machine could do, and memory."""
    columns = (
        "step",
        "floor",
        "step / floor",
        "… in turn",
        "peak memory",
        "beyond weights",
        "at the end",
        "rounds",
    )
    made = _table("a step beside the machine's floor, and memory", columns)
    for row in _sorted(found):
        made.add_row(
            row["engine"],
            _shape(row),
            f"{row['step_ms']:.1f} ms",
            f"{row['floor_ms']:.1f} ms",
            f"{row['step_to_floor']:.2f}",
            f"{row['step_to_floor_in_turn']:.2f}",
            f"{row['peak_mib']:.0f} MiB",
            f"{row['beyond_weights_mib']:.0f} MiB",
            f"{row['resident_mib']:.0f} MiB",
            str(row["rounds"]),
        )
    return made


def _table(title: str, columns: tuple[str, ...]) -> Table:
    made = Table(title=title)
    made.add_column("engine", no_wrap=True)
    for name in ("prompt: N", *columns):
        made.add_column(name, justify="right")
    return made


def _sorted(found: list[Row]) -> list[Row]:
    return sorted(found, key=lambda r: (r["prompt"], r["contemplations"], r["agents"]))


def _shape(row: Row) -> str:
    several = f"{row['contemplations']} × " if row["contemplations"] > 1 else ""
    return f"{row['prompt']}: {several}{row['agents']}"


def _ratio(row: Row, name: str) -> str:
    return f"{row[name]:.2f}" if name in row else ""
