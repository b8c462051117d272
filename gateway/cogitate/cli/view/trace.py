"""Draws a trace as a tree with bars on one time axis. The tree is built by pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cogitate.kit.trace_store import StoredEvent, StoredSpan
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_FOLD_FROM: Final = 3
_TIME_WIDTH: Final = 8
_GAP: Final = 2
_COLOURS: Final = {
    "gateway": "blue",
    "aggregator": "magenta",
    "router": "yellow",
    "vision-encoder": "cyan",
    "tool-executor": "bright_red",
    "agent-decoder": "green",
}
# What of a span tells it from its siblings.
_TELLING: Final = (
    "gen_ai.agent.id",
    "gen_ai.tool.name",
    "cogitate.endpoint_id",
    "cogitate.quorum",
    "cogitate.reason",
)


@dataclass(frozen=True)
class Node:
    """A span, or `count` alike leaves drawn as one, with its children by start."""

    span: StoredSpan
    children: tuple[Node, ...] = ()
    count: int = 1
    busy_ns: int = 0


def build(spans: Sequence[StoredSpan], *, fold: bool = True) -> tuple[Node, ...]:
    """Returns the roots. A span whose parent is not there is a root; a cycle is cut.

    `fold` joins more than two leaves of one name under one parent.
    """
    known = {span.span_id for span in spans}
    children: dict[str, list[StoredSpan]] = {}
    for span in sorted(spans, key=lambda one: (one.start_ns, -one.end_ns, one.span_id)):
        parent = span.parent_id if span.parent_id in known - {span.span_id} else ""
        children.setdefault(parent, []).append(span)

    def node(span: StoredSpan, above: frozenset[str]) -> Node:
        below = above | {span.span_id}
        made = [
            node(child, below)
            for child in children.get(span.span_id, ())
            if child.span_id not in below
        ]
        return Node(span, tuple(_folded(made) if fold else made), busy_ns=_length(span))

    return tuple(node(span, frozenset()) for span in children.get("", ()))


def render(
    spans: Sequence[StoredSpan], *, width: int, fold: bool = True, events: bool = True
) -> RenderableType:
    """Draws the trace into `width` columns."""
    roots = build(spans, fold=fold)
    if not roots:
        return Text("the trace has no spans", "dim")
    start = min(span.start_ns for span in spans)
    end = max(span.end_ns for span in spans)
    services = sorted({span.service for span in spans})
    service_width = max(map(len, services))
    rest = width - service_width - _TIME_WIDTH - 4 * _GAP
    bar_width = max(12, min(64, rest * 2 // 5))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP // 2))
    table.add_column("span", no_wrap=True, overflow="ellipsis", max_width=max(16, rest - bar_width))
    table.add_column("service", no_wrap=True, min_width=service_width)
    table.add_column("time", justify="right", no_wrap=True, min_width=_TIME_WIDTH)
    table.add_column(_axis(end - start, bar_width), no_wrap=True, min_width=bar_width)
    for node, guide, is_last in _walk(roots):
        span = node.span
        colour = _COLOURS.get(span.service, "white")
        name = Text(guide + ("└ " if is_last else "├ ") if guide is not None else "", "dim")
        name.append(span.name, "red" if span.status == "ERROR" else "")
        if node.count > 1:
            name.append(f" ×{node.count}", "bold")
        else:
            name.append(_telling(span.attributes), "dim")
        table.add_row(
            name,
            Text(span.service, colour),
            _time(node.busy_ns),
            _bar(span, start, end, bar_width, colour),
        )
        if events:
            deeper = "" if guide is None else guide + ("  " if is_last else "│ ")
            for event in span.events:
                table.add_row(
                    Text(f"{deeper}  ◆ {event.name}{_telling(event.attributes)}", "dim"),
                    "",
                    Text(f"+{_time(event.time_ns - start)}", "dim"),
                    _mark(event, start, end, bar_width),
                )
    said = f"{len(spans)} spans of {len(services)} services in {_time(end - start)}"
    return Group(table, Text(said, "dim"))


def _walk(roots: Sequence[Node]) -> Iterator[tuple[Node, str | None, bool]]:
    def below(node: Node, guide: str) -> Iterator[tuple[Node, str | None, bool]]:
        for i, child in enumerate(node.children):
            is_last = i == len(node.children) - 1
            yield child, guide, is_last
            yield from below(child, guide + ("  " if is_last else "│ "))

    for root in roots:
        yield root, None, True
        yield from below(root, "")


def _folded(nodes: Sequence[Node]) -> list[Node]:
    alike: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        if not node.children and not node.span.events:
            alike.setdefault((node.span.service, node.span.name), []).append(node)
    folded: list[Node] = []
    for node in nodes:
        same = alike.get((node.span.service, node.span.name), [])
        if node.children or node.span.events or len(same) < _FOLD_FROM:
            folded.append(node)
        elif node is same[0]:
            whole = replace(node.span, end_ns=max(one.span.end_ns for one in same))
            busy_ns = sum(_length(one.span) for one in same)
            folded.append(Node(whole, count=len(same), busy_ns=busy_ns))
    return folded


def _length(span: StoredSpan) -> int:
    return max(0, span.end_ns - span.start_ns)


def _telling(attributes: dict[str, Any]) -> str:
    shown = [str(attributes[key]) for key in _TELLING if key in attributes]
    return f" {' '.join(shown)}" if shown else ""


def _axis(length_ns: int, width: int) -> Text:
    right = _time(length_ns)
    return Text("0" + " " * max(1, width - 1 - len(right)) + right, "dim")


def _position(time_ns: int, start: int, end: int, width: int) -> int:
    share = (time_ns - start) / max(1, end - start)
    return max(0, min(width - 1, int(share * width)))


def _bar(span: StoredSpan, start: int, end: int, width: int, colour: str) -> Text:
    first = _position(span.start_ns, start, end, width)
    last = max(first, _position(span.end_ns - 1, start, end, width))
    return Text(" " * first) + Text("━" * (last - first + 1), colour)


def _mark(event: StoredEvent, start: int, end: int, width: int) -> Text:
    return Text(" " * _position(event.time_ns, start, end, width) + "◆", "dim")


def _time(length_ns: int) -> str:
    if length_ns >= 1_000_000_000:
        return f"{length_ns / 1e9:.2f} s"
    return f"{length_ns / 1e6:.1f} ms"
