"""Spans in, tree out."""

from __future__ import annotations

import io

import pytest
from cogitate.cli.view import trace
from cogitate.kit.trace_store import StoredEvent, StoredSpan
from rich.console import Console

pytestmark = pytest.mark.unit


def span(
    id: str,
    parent: str,
    name: str,
    start_ms: int,
    end_ms: int,
    service: str = "aggregator",
    **more: object,
) -> StoredSpan:
    """A span in milliseconds."""
    events = tuple(more.pop("events", ()))  # type: ignore[call-overload]
    return StoredSpan(
        trace_id="t",
        span_id=id,
        parent_id=parent,
        service=service,
        name=name,
        kind="INTERNAL",
        status=str(more.pop("status", "UNSET")),
        start_ns=start_ms * 1_000_000,
        end_ns=end_ms * 1_000_000,
        attributes=dict(more),
        events=events,
    )


def drawn(spans: list[StoredSpan], width: int = 100, **options: bool) -> str:
    """The text of a trace."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(trace.render(spans, width=width, **options))
    return console.export_text()


BALLOT = StoredEvent("ballot", 50_000_000, {"gen_ai.agent.id": "3"})
SPANS = [
    span("a", "outside", "Contemplate", 0, 100, "gateway"),
    span(
        "b",
        "a",
        "contemplate",
        5,
        95,
        events=[StoredEvent("ballot", 50_000_000, {"gen_ai.agent.id": "3"})],
    ),
    span("c", "b", "lease", 6, 9),
    *[span(f"d{i}", "b", "execute_tool", 10 + i, 20 + i) for i in range(5)],
    span("e", "b", "invoke_agent", 10, 60, **{"gen_ai.agent.id": "3"}),
    span("f", "e", "decode", 11, 59, "agent-decoder"),
]


def test_children_hang_on_their_parents_in_order_of_start() -> None:
    (root,) = trace.build(SPANS, fold=False)
    assert "Contemplate" == root.span.name
    (middle,) = root.children
    assert ["lease", "invoke_agent", *["execute_tool"] * 5] == [
        c.span.name for c in middle.children
    ]
    assert "decode" == middle.children[1].children[0].span.name


def test_alike_leaves_are_folded_into_one_with_their_time_added() -> None:
    (root,) = trace.build(SPANS)
    (folded,) = [n for n in root.children[0].children if n.span.name == "execute_tool"]
    assert (5, 50_000_000) == (folded.count, folded.busy_ns)
    assert 24_000_000 == folded.span.end_ns


def test_orphans_are_roots_and_cycles_are_cut() -> None:
    assert ["x", "y"] == [
        node.span.name
        for node in trace.build([span("1", "gone", "x", 0, 1), span("2", "gone2", "y", 1, 2)])
    ]
    assert [] == list(trace.build([]))
    looped = [span("1", "2", "x", 0, 1), span("2", "1", "y", 0, 1), span("3", "3", "z", 0, 1)]
    assert ["z"] == [node.span.name for node in trace.build(looped)]


@pytest.mark.parametrize("width", [60, 80, 120, 240])
def test_a_trace_is_drawn_within_the_width(width: int) -> None:
    shown = drawn(SPANS, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "execute_tool ×5" in shown
    assert "10 spans of 3 services in 100.0 ms" in shown


def test_what_is_drawn() -> None:
    shown = drawn(SPANS)
    assert "◆ ballot 3" in shown
    assert "+50.0 ms" in shown
    assert "└ decode" in shown
    assert "◆" not in drawn(SPANS, events=False)
    assert "the trace has no spans" in drawn([])
