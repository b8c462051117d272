"""The span store: several writers, bounded, readable with the standard library alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cogitate.kit.trace_store import StoreExporter, TraceStore
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

pytestmark = pytest.mark.unit


def a_span(
    trace: int, span: int, *, parent: int = 0, start: int = 0, **attributes: str
) -> ReadableSpan:
    def context(span_id: int) -> SpanContext:
        return SpanContext(trace, span_id, is_remote=False, trace_flags=TraceFlags(1))

    return ReadableSpan(
        name=f"span {span}",
        context=context(span),
        parent=context(parent) if parent else None,
        resource=Resource({"service.name": "svc"}),
        attributes={f"cogitate.{key}": value for key, value in attributes.items()},
        start_time=start or span,
        end_time=(start or span) + 10,
    )


def test_what_was_exported_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "spans.sqlite"
    exporter = StoreExporter(path)
    batch = [
        a_span(1, 12, parent=11, contemplation_id="c1"),
        a_span(1, 11, contemplation_id="c1"),
        a_span(2, 21, start=500),
    ]
    assert exporter.export(batch) is SpanExportResult.SUCCESS
    assert exporter.export(batch[:1]) is SpanExportResult.SUCCESS  # a retried batch
    store = TraceStore(path)
    assert [(t.trace_id, t.name, t.span_count, t.contemplation_id) for t in store.traces()] == [
        (f"{2:032x}", "span 21", 1, ""),
        (f"{1:032x}", "span 11", 2, "c1"),
    ]
    assert [(t.start_ns, t.end_ns) for t in store.traces()] == [(500, 510), (11, 22)]
    assert [t.name for t in store.traces(limit=1)] == ["span 21"]
    assert [(s.span_id, s.parent_id) for s in store.spans(f"{1:032x}")] == [
        (f"{11:016x}", ""),
        (f"{12:016x}", f"{11:016x}"),
    ]
    assert store.find("c1") == f"{1:032x}"
    assert store.find("c2") is None
    exporter.shutdown()


def test_a_store_that_is_not_there_or_empty_reads_as_empty(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.sqlite", tmp_path / "empty.sqlite"):
        if path.name.startswith("empty"):
            path.touch()
        store = TraceStore(path)
        assert (store.traces(), store.spans("00"), store.find("c1")) == ([], [], None)
    assert not (tmp_path / "missing.sqlite").exists()


def test_the_oldest_traces_go_whole_when_the_store_is_full(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    exporter = StoreExporter(path, max_spans=50)
    for trace in range(1, 31):
        exporter.export([a_span(trace, trace * 100 + n) for n in range(5)])
    store = TraceStore(path)
    traces = store.traces(1000)
    assert all(trace.span_count == 5 for trace in traces)
    kept = sorted(int(trace.trace_id, 16) for trace in traces)
    assert kept == list(range(kept[0], 31))
    # Pruned once every 50 spans, so at most one interval beyond the bound.
    assert 45 <= sum(trace.span_count for trace in traces) <= 100
    exporter.shutdown()


def test_a_trace_that_is_still_written_to_outlives_older_ends(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    exporter = StoreExporter(path, max_spans=10)
    exporter.export([a_span(1, 1)])
    for trace in range(2, 8):
        exporter.export([a_span(trace, trace), a_span(trace, trace + 100)])
        exporter.export([a_span(1, 1000 + trace)])
    store = TraceStore(path)
    assert store.spans(f"{2:032x}") == []
    assert len(store.spans(f"{1:032x}")) == 7
    exporter.shutdown()


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    results: list[SpanExportResult] = []
    together = threading.Barrier(4)  # services of a mesh all make the new file at once

    def write(writer: int) -> None:
        exporter = StoreExporter(path)
        together.wait()
        results.extend(exporter.export([a_span(writer, writer * 1000 + n)]) for n in range(20))
        exporter.shutdown()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {SpanExportResult.SUCCESS}
    assert [trace.span_count for trace in TraceStore(path).traces()] == [20] * 4


@pytest.mark.parametrize("obstacle", ["directory", "garbage"])
def test_a_store_that_cannot_be_written_harms_nobody(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "spans.sqlite"
    if obstacle == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"this is no database" * 100)
    exporter = StoreExporter(path)
    assert exporter.export([a_span(1, 1)]) is SpanExportResult.FAILURE
    exporter.shutdown()


def test_waiting_for_quiet_sees_what_is_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    writers = [
        threading.Timer(0.1 * i, lambda i=i: StoreExporter(path).export([a_span(1, i)]))
        for i in range(1, 4)
    ]
    for writer in writers:
        writer.start()
    TraceStore(path).wait_until_quiet(quiet_s=2.0, within_s=20.0)
    assert len(TraceStore(path).spans(f"{1:032x}")) == 3
    for writer in writers:
        writer.join()


def test_a_store_that_is_never_quiet_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    TraceStore(tmp_path / "none").wait_until_quiet(quiet_s=60.0, within_s=0.2)


def test_reading_needs_the_standard_library_only() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('opentelemetry', 'grpc', 'google')))\n"
        "from cogitate.kit.trace_store import TraceStore; TraceStore('none').traces()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
