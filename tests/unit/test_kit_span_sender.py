"""Spans wait for a collector that is away, as many as are allowed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cogitate.kit.span_sender import BATCH, SpanSender
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

pytestmark = pytest.mark.unit


class Collector:
    """What was received; while it is away nothing is. Counts connections."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_away = False
        self.num_opened = self.num_closed = 0

    def open(self, endpoint: str) -> SpanExporter:
        assert endpoint == "collector:4317"
        self.num_opened += 1
        return Connection(self)


class Connection(SpanExporter):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._collector.is_away:
            return SpanExportResult.FAILURE
        assert 0 < len(spans) <= BATCH
        self._collector.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._collector.num_closed += 1


def spans(*numbers: int) -> list[ReadableSpan]:
    return [ReadableSpan(str(number)) for number in numbers]


def sender(collector: Collector, max_kept: int) -> SpanSender:
    return SpanSender("collector:4317", max_kept=max_kept, make=collector.open)


def test_what_could_not_be_sent_goes_first_once_it_can() -> None:
    collector = Collector()
    sending = sender(collector, 10)
    assert sending.export(spans(1)) is SpanExportResult.SUCCESS
    collector.is_away = True
    assert sending.export(spans(2, 3)) is SpanExportResult.FAILURE
    assert sending.export(spans(4)) is SpanExportResult.FAILURE
    collector.is_away = False
    assert sending.export(spans(5)) is SpanExportResult.SUCCESS
    assert collector.names == ["1", "2", "3", "4", "5"]
    # A connection that failed is not used again.
    assert (collector.num_opened, collector.num_closed) == (3, 2)


@pytest.mark.parametrize("count", [3, 4])
def test_the_oldest_are_dropped_beyond_what_is_kept(count: int) -> None:
    collector = Collector()
    sending = sender(collector, 3)
    collector.is_away = True
    sending.export(spans(*range(count)))
    collector.is_away = False
    sending.export(())
    assert collector.names == [str(number) for number in range(count)][-3:]


def test_many_go_in_batches_and_the_end_tries_once_more() -> None:
    collector = Collector()
    sending = sender(collector, 5000)
    collector.is_away = True
    sending.export(spans(*range(2 * BATCH + 1)))
    collector.is_away = False
    sending.shutdown()
    assert len(collector.names) == 2 * BATCH + 1
    assert collector.num_opened == collector.num_closed
