"""Every benchmark still runs: the smallest shape of each. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decode(tmp_path: Path) -> None:
    model, out = write_tiny_model(tmp_path), tmp_path / "rows.json"
    printed = run(
        "tests.bench.decode", str(model), "--engine", "cogitate:bfloat16", "--engine",
        "cogitate:int8", "--agents", "1,3", "--several", "2", "--prompt", "20", "--tokens", "4",
        "--rounds", "1", "--json", str(out), "--plot", str(tmp_path / "plot.png"),
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [(r["engine"], r["contemplations"], r["agents"]) for r in rows] == [
        (engine, *shape)
        for shape in ((1, 1), (1, 3), (2, 8))
        for engine in ("cogitate bfloat16", "cogitate int8")
    ]
    assert all(r["tokens_per_s"] > 0 and r["first_token_s"] <= r["total_s"] for r in rows)
    assert "GFLOP/s" in printed and (tmp_path / "plot.png").stat().st_size > 1000


def test_gang_latency(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.gang_latency", "--rounds", "1", "--agents", "1,2", "--json", str(out))
    assert [row["agents"] for row in json.loads(out.read_text())["rows"]] == [1, 2]


def test_telemetry_overhead(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run(
        "tests.bench.telemetry_overhead", "--rounds", "1", "--gangs", "1", "--agents", "2",
        "--tokens", "8", "--json", str(out),
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [row["side"] for row in rows] == ["bare", "off", "on"]
    assert all(row["wall_s"] > 0 and row["cpu_ratio"] > 0 for row in rows)


def test_router_place() -> None:
    assert "1000 endpoints" in run("tests.bench.router_place")
