"""Metrics: one registry, its page, and what exporters read."""

from __future__ import annotations

import ast
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cogitate.kit import metrics
from cogitate.kit.config import ServiceConfig
from cogitate.kit.metric_registry import COUNTER, GAUGE, HISTOGRAM, Metric
from cogitate.kit.telemetry import Attr
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    reader = InMemoryMetricReader()
    made = metrics.setup("tester", ServiceConfig(), [reader])
    yield reader
    made.shutdown()
    made.shutdown()


def test_a_histogram_has_the_bounds_of_the_registry(reader: InMemoryMetricReader) -> None:
    for value in (0.0006, 0.003, 9.0):
        metrics.record(Metric.STEP_DURATION, value, {Attr.MODEL: "m"})
    ((attributes, point),) = metrics.values(reader)["cogitate.step.duration"]
    assert attributes == {"gen_ai.request.model": "m"}
    assert point.explicit_bounds == Metric.STEP_DURATION.bounds
    assert (point.count, point.bucket_counts[1], point.bucket_counts[-1]) == (3, 1, 1)
    assert point.sum == pytest.approx(9.0036)


def test_what_is_observed_is_read_once_a_collection(reader: InMemoryMetricReader) -> None:
    reads = 0

    def read() -> metrics.Readings:
        nonlocal reads
        reads += 1
        return {
            Metric.STEPS: 10 * reads,
            Metric.GANGS: metrics.states(running=reads, waiting=0),
            Metric.KV_UTILIZATION: 0.5,
        }

    metrics.observe([Metric.STEPS, Metric.GANGS, Metric.KV_UTILIZATION, Metric.BUSY], read)
    for turn in (1, 2):
        found = metrics.values(reader)
        assert reads == turn
        assert found["cogitate.steps"] == [({}, 10 * turn)]
        running, waiting = {"cogitate.state": "running"}, {"cogitate.state": "waiting"}
        assert found["cogitate.gangs"] == [(running, turn), (waiting, 0)]
        assert "cogitate.engine.utilization" not in found, "it was left out"


def test_a_reading_that_fails_harms_nothing_and_says_no_value(
    reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> metrics.Readings:
        raise ValueError("a secret prompt")

    metrics.observe([Metric.STEPS], read)
    metrics.record(Metric.STEP_DURATION, 1.0)
    with caplog.at_level(logging.ERROR):
        assert list(metrics.values(reader)) == ["cogitate.step.duration"]
    assert "ValueError" in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1"])
def test_without_an_exporter_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    config = ServiceConfig(otlp_endpoint=endpoint, metrics_interval_s=0 if endpoint else 10)
    made = metrics.setup("tester", config)
    assert not metrics.enabled()
    metrics.record(Metric.STEP_DURATION, 1.0)
    metrics.observe([Metric.STEPS], lambda: pytest.fail("it was read"))
    made.shutdown()


def test_names_are_opentelemetrys_or_our_own_and_unique() -> None:
    assert len({metric.key for metric in Metric}) == len(Metric.__members__)
    for metric in Metric:
        assert metric.key.startswith(("gen_ai.server.", "grpc.", "cogitate."))
        assert metric.kind in (COUNTER, GAUGE, HISTOGRAM) and metric.unit
        assert metric.description.endswith(".")
        assert bool(metric.bounds) == (metric.kind == HISTOGRAM)
        assert list(metric.bounds) == sorted(set(metric.bounds))


def test_names_of_genai_metrics_are_those_of_the_conventions() -> None:
    from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as theirs

    known = {value for name, value in vars(theirs).items() if name.isupper()}
    assert {m.key for m in Metric if m.key.startswith("gen_ai.")} <= known


def services() -> Iterator[tuple[Path, ast.AST]]:
    for tree in ("services", "gateway"):
        for path in (ROOT / tree).rglob("*.py"):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_instruments_are_made_by_the_kit_only_and_every_one_is_used() -> None:
    makers, used = set(), set()
    for path, tree in services():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            if node.attr.startswith(("create_", "get_meter")) and "kit" not in path.parts:
                is_meters = node.attr == "get_meter" or node.attr.endswith(
                    ("_counter", "_histogram", "_gauge")
                )
                makers |= {str(path)} if is_meters else set()
            if isinstance(node.value, ast.Name) and node.value.id == "Metric":
                used.add(node.attr)
    assert makers == set()
    assert used == set(Metric.__members__)


def rows() -> str:
    lines = ["| name | kind | unit | what |", "| --- | --- | --- | --- |"]
    lines += [f"| `{m.key}` | {m.kind} | {m.unit} | {m.description} |" for m in Metric]
    return "\n".join(lines) + "\n"


def test_the_page_is_the_registrys() -> None:
    """COGITATE_BLESS=1 writes the table anew."""
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("COGITATE_BLESS"):
        text = text[: text.index("| name |")] + rows()
        PAGE.write_text(text, encoding="utf-8")
    assert text.endswith(rows())
