"""Which spans of a trace are a contemplation's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cogitate.gateway import traces
from cogitate.kit.telemetry import Attr
from cogitate.kit.trace_store import StoredEvent, StoredSpan

pytestmark = pytest.mark.unit


def span(id: str, parent: str = "", service: str = "aggregator", **more: Any) -> StoredSpan:
    given: dict[str, Any] = {
        "trace_id": "t", "name": id, "kind": "INTERNAL", "status": "UNSET",
        "start_ns": 1, "end_ns": 2, "attributes": {}, "events": (),
    }  # fmt: skip
    return StoredSpan(span_id=id, parent_id=parent, service=service, **(given | more))


def server(id: str, parent: str, service: str) -> StoredSpan:
    return span(id, parent, service, kind="SERVER")


def of(contemplation_id: str) -> dict[str, Any]:
    return {"attributes": {Attr.CONTEMPLATION_ID: contemplation_id}}


def mine() -> list[StoredSpan]:
    """A contemplation's spans, from the gateway down."""
    return [
        server("door", "", "gateway"),
        server("PutBlob", "door", "vision-encoder"),
        server("served", "door", "aggregator"),
        span("contemplate", "served", **of("mine")),
        span("agent", "contemplate"),
        span("decode", "agent", "agent-decoder"),
    ]


def test_all_of_a_contemplation_is_told() -> None:
    assert traces.part(mine(), "mine") == mine()


def test_a_trace_that_others_share_tells_nothing_of_them() -> None:
    # Somebody names another's trace, and a span of it, as where their own question comes from.
    spans = [
        span("client", "", "their-client"),
        server("their door", "client", "gateway"),
        server("their served", "their door", "aggregator"),
        span("their contemplate", "their served", **of("theirs")),
        server("my door", "their contemplate", "gateway"),
        server("my served", "my door", "aggregator"),
        span("my contemplate", "my served", **of("mine")),
        span("nested", "my contemplate", **of("theirs")),
        span("below nested", "nested"),
    ]
    names = [one.span_id for one in traces.part(spans, "mine")]
    assert names == ["my door", "my served", "my contemplate"]
    assert traces.part(spans, "nobody's") == []


def test_nothing_above_the_gateway_is_told() -> None:
    spans = [span("client", "", "app"), server("door", "client", "gateway"), *mine()[2:]]
    assert next(one.span_id for one in traces.part(spans, "mine")) == "door"


def test_parents_that_are_each_other_end() -> None:
    spans = [span("a", "b", **of("mine")), span("b", "a")]
    assert {one.span_id for one in traces.part(spans, "mine")} == {"a", "b"}


def test_only_what_tells_spans_apart_is_told() -> None:
    attributes = {Attr.AGENT_ID: 3, Attr.BLOB_DIGEST: "sha256:…", **of("mine")["attributes"]}
    made = traces._span(
        span(
            "one", status="ERROR", start_ns=1_500_000_000, attributes=attributes,
            events=(StoredEvent("kill", 5, {Attr.REASON: "DECIDED"}),),
        )
    )  # fmt: skip
    assert dict(made.attributes) == {"gen_ai.agent.id": "3"}
    assert made.failed and made.start_time.ToNanoseconds() == 1_500_000_000
    assert dict(made.moments[0].attributes) == {"cogitate.reason": "DECIDED"}


def test_no_store_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    assert not traces.read("", "t", "mine", 10).is_stored
    assert traces.read(str(tmp_path / "none.sqlite"), "t", "mine", 10).is_stored


@pytest.mark.parametrize(("limit", "count", "truncated"), [(5, 5, True), (6, 6, False)])
def test_the_limit_of_spans(
    monkeypatch: pytest.MonkeyPatch, limit: int, count: int, truncated: bool
) -> None:
    monkeypatch.setattr(traces.TraceStore, "spans", lambda self, trace_id: mine())
    told = traces.read("file", "t", "mine", limit)
    assert (len(told.spans), told.is_truncated) == (count, truncated)
