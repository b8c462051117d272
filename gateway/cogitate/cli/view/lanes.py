"""Draws a view: one lane an agent, the ballots below. Thin: no state of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cogitate.cli.view.lines import ids
from cogitate.cli.view.state import (
    KILLED,
    LOST,
    THINKING,
    TOOL,
    VOTED,
    WAITING,
    Called,
    Crop,
    Lane,
    Said,
    View,
)
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

CROP_WIDTH: Final = 12
CROP_HEIGHT: Final = 6
THUMB_WIDTH: Final = 24
THUMB_HEIGHT: Final = 8
_WIDE: Final = 38
_COMFORTABLE: Final = 26
_NARROW: Final = 18
_LOW: Final = 6
_HIGH: Final = 18
_TALL_CONSOLE: Final = 36
_FRAME: Final = 2

_BORDERS: Final = {
    WAITING: "bright_black",
    THINKING: "cyan",
    TOOL: "yellow",
    VOTED: "green",
    KILLED: "bright_black",
    LOST: "red",
}
_SIGNS: Final = {"zoom": "▣", "calculator": "∑", "prove": "⊢"}
_KILLED_FOR: Final = {
    "DECIDED": "not needed",
    "CONFIDENCE": "too unsure",
    "BUDGET": "budget spent",
    "DEADLINE": "out of time",
    "CANCELLED": "cancelled",
    "LOST": "endpoint lost",
}


@dataclass
class Pictures:
    """Crops that were fetched and drawn; None marks one that is being fetched or cannot be."""

    drawn: dict[Crop, Text | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """How lanes are laid out; `shown` of them fit."""

    columns: int
    lane_width: int
    lane_height: int
    shown: int


def lay_out(count: int, width: int, height: int) -> Grid:
    """Chooses how many lanes stand side by side.

    Wide lanes before narrow ones, as long as all fit in height; of those that fit, the grid with
    the fewest empty places. If none fits, narrow and low lanes, and not all of them.
    """
    count = max(1, count)
    possible = range(1, max(1, min(count, width // _NARROW)) + 1)
    good = [n for n in possible if width // n >= _COMFORTABLE and -(-count // n) * _LOW <= height]
    if good:
        columns = min(good, key=lambda n: (-count % n, abs(width // n - _WIDE)))
    else:
        tight = [n for n in possible if -(-count // n) * _LOW <= height]
        columns = tight[0] if tight else possible[-1]
    rows = -(-count // columns)
    lane_height = max(3, min(height // rows, _HIGH))
    fitting = max(1, height // lane_height) * columns
    return Grid(columns, width // columns, lane_height, min(count, fitting))


def render(view: View, question: str, pictures: Pictures, console: Console) -> RenderableType:
    """Draws everything into the console's size."""
    width, height = console.width, console.height
    header = _header(view, question, pictures, console)
    footer = _footer(view, width)
    free = height - _height(console, header) - _height(console, footer) - 1
    grid = lay_out(len(view.lanes), width, max(3, free))
    lanes = list(view.lanes.values())
    # When not all fit, those that still work come first.
    if grid.shown < len(lanes):
        lanes = sorted(lanes, key=lambda lane: (lane.is_over, lane.agent_id))[: grid.shown]
    table = Table.grid(padding=0, expand=False)
    for _ in range(grid.columns):
        table.add_column(width=grid.lane_width)
    for start in range(0, len(lanes), grid.columns):
        row = lanes[start : start + grid.columns]
        table.add_row(*(_lane(lane, grid, pictures.drawn, console) for lane in row))
    return Group(header, table, footer)


def _height(console: Console, what: RenderableType) -> int:
    return len(console.render_lines(what, pad=False))


def _header(view: View, question: str, pictures: Pictures, console: Console) -> RenderableType:
    lines = [Text(question, "bold", no_wrap=True, overflow="ellipsis")]
    if not view.contemplation_id:
        return Group(*lines, Text("asking …", "dim"))
    facts = [view.model, f"{len(view.lanes)} agents", f"{view.strategy} · {view.quorum}"]
    if view.round > 1:
        facts.append(f"round {view.round}")
    facts += [f"{view.tokens} tokens", f"{view.elapsed_s:.1f} s"]
    lines.append(_dim("  ".join(fact for fact in facts if fact)))
    thumb = pictures.drawn.get(view.images[0]) if view.images else None
    tall = console.height >= _TALL_CONSOLE and thumb is not None
    if tall:
        lines += [
            _dim(f"{ids(place.agent_ids)} on {place.endpoint_id}, {place.region}: {place.reason}")
            for place in view.places[:4]
        ]
    lines += [_note(note) for note in view.notes[-2:]]
    if not tall or thumb is None:
        return Group(*lines)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(thumb, Group(*lines[:THUMB_HEIGHT]))
    return table


def _dim(text: str) -> Text:
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def _note(note: str) -> Text:
    return Text(f"! {note}", "yellow", no_wrap=True, overflow="ellipsis")


def _footer(view: View, width: int) -> RenderableType:
    cast = sum(count for _, count in view.tally) + view.abstentions
    if not cast:
        return Text("no ballots yet", "dim")
    rows = Table.grid(padding=(0, 1))
    total = max(1, len(view.lanes))
    bar_width = max(8, min(24, width // 4))
    for key, count in view.tally[:3]:
        full = round(bar_width * count / total)
        rows.add_row(
            Text(key or "∅", "bold", no_wrap=True, overflow="ellipsis"),
            Text("█" * full, "green") + Text("░" * (bar_width - full), "bright_black"),
            Text(f"{count}", "dim"),
        )
    beyond = sum(count for _, count in view.tally[3:])
    said = [f"{cast} of {total} ballots"]
    if view.abstentions:
        said.append(f"{view.abstentions} could not answer")
    if beyond:
        said.append(f"{beyond} for other answers")
    line = _dim(" · ".join(said))
    if view.decided:
        line = Text.assemble(("decided ", "bold green"), view.decided)
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(rows, line) if view.tally else line


def _lane(
    lane: Lane, grid: Grid, pictures: Mapping[Crop, Text | None], console: Console
) -> RenderableType:
    faded = lane.state in (KILLED, LOST)
    inner_width = max(4, grid.lane_width - 4)
    inner_height = grid.lane_height - _FRAME
    body = _body(lane, inner_width, inner_height, pictures, console)
    title = Text.assemble((f"{lane.agent_id}", "bold"), (f" {lane.endpoint_id}", "dim"))
    return Panel(
        body,
        title=title,
        title_align="left",
        subtitle=_subtitle(lane, inner_width),
        subtitle_align="right",
        border_style=_BORDERS.get(lane.state, "cyan"),
        style="dim" if faded else "",
        box=box.ROUNDED,
        height=grid.lane_height,
        width=grid.lane_width,
        padding=(0, 1),
    )


def _subtitle(lane: Lane, width: int) -> Text:
    match lane.state:
        case "voted" if lane.vote is not None:
            vote = lane.vote
            said = "abstains" if vote.abstained else vote.key or vote.answer
            mark = " proved" if vote.proved else ""
            text = Text(f"✓ {said}{mark}", "bold green" if not vote.abstained else "yellow")
        case "killed":
            text = Text(f"✕ {_KILLED_FOR.get(lane.kill_reason, lane.kill_reason.lower())}", "dim")
        case "lost":
            text = Text("lost", "red")
        case "tool":
            text = Text("waits for a tool", "yellow")
        case "waiting":
            text = Text("waits", "dim")
        case _:
            text = Text(f"{lane.tokens} tokens", "dim")
    text.truncate(max(4, width - 2), overflow="ellipsis")
    return text


def _body(
    lane: Lane,
    width: int,
    height: int,
    pictures: Mapping[Crop, Text | None],
    console: Console,
) -> RenderableType:
    """Draws what was said, its end if it is too long, and below it the latest crops."""
    strip = _strip(lane, pictures, width) if height >= 2 * CROP_HEIGHT else None
    height -= 0 if strip is None else CROP_HEIGHT
    shown: list[Text] = []
    if lane.hint:
        shown.append(Text(lane.hint, "italic magenta"))
    shown += [_said(item) if isinstance(item, Said) else _called(item) for item in lane.items]
    lines = [line for text in shown for line in text.wrap(console, width)][-height:]
    if strip is None:
        return Text("\n").join(lines)
    lines += [Text("")] * (height - len(lines))
    return Group(Text("\n").join(lines), strip)


def _strip(lane: Lane, pictures: Mapping[Crop, Text | None], width: int) -> RenderableType | None:
    """Draws the latest crops side by side, as many as fit."""
    crops = [item.crop for item in lane.items if isinstance(item, Called) and item.crop is not None]
    drawn = [picture for crop in crops if (picture := pictures.get(crop)) is not None]
    shown: list[Text] = []
    for picture in reversed(drawn):
        width -= picture.plain.find("\n") + 1 if "\n" in picture.plain else len(picture) + 1
        if width < -1:
            break
        shown.insert(0, picture)
    if not shown:
        return None
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(*shown)
    return table


def _said(item: Said) -> Text:
    return Text(" ".join(item.text.split()), "bold" if item.is_answer else "")


def _called(item: Called) -> Text:
    # A sibling's call that was run once for all is shown paler.
    colour = "yellow" if item.state == "running" else "dim blue" if item.shared else "blue"
    text = Text(f"{_SIGNS.get(item.name, '⚙')} {_short(item)}", colour)
    if item.state == "error":
        text.append(f" ✕ {item.result}", "red")
    elif item.proof:
        text.append(" ✓ proved", "bold green")
    elif item.result:
        text.append(f" → {item.result}", "bold blue")
    return text


def _short(item: Called) -> str:
    numbers = re.findall(r"-?\d+", item.arguments) if item.name == "zoom" else []
    if len(numbers) < 4:
        return item.arguments
    return f"zoom {numbers[0]},{numbers[1]}–{numbers[2]},{numbers[3]}"
