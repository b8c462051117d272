"""Spans: what is recorded, whose child it is, and that nothing happens without an exporter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from cogitate.kit import telemetry
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import Rejected
from cogitate.kit.telemetry import Attr, Span
from cogitate.kit.trace_store import StoredSpan, TraceStore

pytestmark = pytest.mark.unit

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
ROOT = Path(__file__).parents[2]


class Recording:
    """Telemetry into a store of its own; `spans` ends it and reads what was recorded."""

    def __init__(self, path: Path) -> None:
        self._store = TraceStore(path)
        self.telemetry = telemetry.setup("tester", ServiceConfig(trace_store=str(path)))

    def spans(self) -> dict[str, StoredSpan]:
        self.telemetry.shutdown()
        found = [s for t in self._store.traces() for s in self._store.spans(t.trace_id)]
        return {span.name: span for span in found}


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    recording = Recording(tmp_path / "spans.sqlite")
    yield recording
    recording.telemetry.shutdown()


def test_spans_nest_and_carry_their_attributes_and_events(recording: Recording) -> None:
    with telemetry.span(Span.CONTEMPLATION, {Attr.CONTEMPLATION_ID: "c1", Attr.AGENT_COUNT: 4}):
        telemetry.event(Span.BALLOT, {Attr.AGENT_ID: "a1"})
        with telemetry.span(Span.LEASE) as lease:
            lease.set_attribute(Attr.ENDPOINT_ID, "e1")
    spans = recording.spans()
    root, lease_span = spans["contemplate"], spans["lease"]
    assert lease_span.parent_id == root.span_id
    assert lease_span.trace_id == root.trace_id
    assert root.parent_id == ""
    assert root.service == "tester"
    assert root.attributes == {"cogitate.contemplation_id": "c1", "cogitate.agent_count": 4}
    assert lease_span.attributes == {"cogitate.endpoint_id": "e1"}
    assert [(e.name, e.attributes) for e in root.events] == [("ballot", {"gen_ai.agent.id": "a1"})]
    assert root.start_ns <= lease_span.start_ns <= lease_span.end_ns <= root.end_ns


def test_a_failed_span_says_why_and_never_what(recording: Recording) -> None:
    with pytest.raises(Rejected), telemetry.span(Span.LEASE):
        raise Rejected("a secret prompt")
    with pytest.raises(KeyError), telemetry.span(Span.PLACE):
        raise KeyError("a secret prompt")
    spans = recording.spans()
    assert (spans["lease"].status, spans["place"].status) == ("ERROR", "ERROR")
    assert spans["lease"].attributes == {"cogitate.reason": "REJECTED"}
    assert spans["place"].attributes == {"cogitate.reason": "KeyError"}
    assert not spans["lease"].events


def test_a_long_lived_span_has_the_parent_and_the_times_it_is_given(recording: Recording) -> None:
    by_text = telemetry.start_span(Span.GANG, parent=PARENT, start_time=1_000)
    by_metadata = telemetry.start_span(
        Span.AGENT, {Attr.ATTEMPT: 1}, parent_metadata=[("traceparent", PARENT), ("x", b"\xff")]
    )
    with telemetry.use(by_text), telemetry.span(Span.DECODE):
        assert telemetry.current_traceparent().split("-")[1] == TRACE_ID
    child = telemetry.start_span(Span.PREFILL, parent=telemetry.traceparent_of(by_text))
    for opened in (child, by_metadata):
        opened.end()
    by_text.end(end_time=2_000)
    spans = recording.spans()
    assert {span.trace_id for span in spans.values()} == {TRACE_ID}
    assert spans["gang"].parent_id == spans["invoke_agent"].parent_id == PARENT.split("-")[2]
    assert spans["decode"].parent_id == spans["prefill"].parent_id == spans["gang"].span_id
    assert (spans["gang"].start_ns, spans["gang"].end_ns) == (1_000, 2_000)


@pytest.mark.parametrize("garbage", ["", "00-zz-zz-01", "x" * 10_000, "00-" + "0" * 32 + "-1-01"])
def test_a_garbage_traceparent_starts_a_new_trace(recording: Recording, garbage: str) -> None:
    telemetry.start_span(Span.GANG, parent=garbage).end()
    assert recording.spans()["gang"].parent_id == ""


def test_without_an_exporter_nothing_is_recorded_and_the_context_is_handed_on() -> None:
    with telemetry.span(Span.LEASE, {Attr.ATTEMPT: 1}) as opened:
        telemetry.event(Span.KILL)
        assert not opened.is_recording()
        assert telemetry.current_traceparent() == ""
        assert telemetry.trace_metadata() == []
    with telemetry.remote_context([("traceparent", PARENT), ("baggage", "k=v")]):
        with telemetry.span(Span.LEASE):
            assert dict(telemetry.trace_metadata()) == {"traceparent": PARENT, "baggage": "k=v"}
        long_lived = telemetry.start_span(Span.AGENT)
        assert telemetry.traceparent_of(long_lived) == PARENT
        long_lived.end()
    assert telemetry.current_traceparent() == ""


def test_the_last_one_set_up_records_and_shutdown_gives_back(
    recording: Recording, tmp_path: Path
) -> None:
    inner = Recording(tmp_path / "inner.sqlite")
    with telemetry.span(Span.LEASE):
        pass
    assert list(inner.spans()) == ["lease"]
    with telemetry.span(Span.PLACE):
        pass
    assert list(recording.spans()) == ["place"]
    assert not telemetry.tracer().start_span("none").is_recording()


def test_the_registry_is_free_of_duplicates_and_every_name_is_used_as_meant() -> None:
    assert len(set(Span)) == len(Span.__members__)
    assert len(set(Attr)) == len(Attr.__members__)
    for attribute in Attr:
        assert attribute.startswith(("gen_ai.", "cogitate.", "rpc.", "grpc.", "error."))


def calls_of_telemetry(tree: ast.AST) -> Iterator[ast.Call]:
    names = {"span", "start_span", "event", "set_attribute", "set_attributes", "add_event"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in names and node.args:
                yield node


def outside_the_registry(source: str) -> list[int]:
    """Returns the lines on which a span or an attribute is named by a string of its own."""
    lines = []
    for call in calls_of_telemetry(ast.parse(source)):
        keys = [key for arg in call.args if isinstance(arg, ast.Dict) for key in arg.keys]
        if any(isinstance(node, (ast.Constant, ast.JoinedStr)) for node in [call.args[0], *keys]):
            lines.append(call.lineno)
    return lines


def test_services_name_spans_and_attributes_by_the_registry_only() -> None:
    assert outside_the_registry('telemetry.span("mine")\nspan.set_attribute("x", 1)') == [1, 2]
    assert outside_the_registry('telemetry.span(Span.LEASE, {"x": 1})') == [1]
    assert outside_the_registry("telemetry.span(Span.LEASE, {Attr.ATTEMPT: 1})") == []
    for root in ("services", "gateway"):
        for path in (ROOT / root).rglob("*.py"):
            assert outside_the_registry(path.read_text(encoding="utf-8")) == [], path
