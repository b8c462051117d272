"""What the model should say about a drawn item, step by step, before it is tokens.

A script is the whole sequence in pieces: what it is asked, exactly as the runtime will render it;
then look (what the picture shows), zoom and state what was read, look up and calculate, answer.
`conversation` has the prompt as messages of the mesh, and a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cogitate.agent_decoder.model.tiling import Tiling
from cogitate.evals.items import Box, Item, Read, Table
from cogitate.tool_executor.core import types
from cogitate.tool_executor.core.lookup import look_up

from mini import tokenizer as names

# After what was read: go on looking, this is what is wanted, that was all.
NEXT, FOUND, LAST = MARKS = ", ", ": ", ". "
# Kinds in which what is wanted is counted.
COUNTED = ".above"


@dataclass(frozen=True)
class Piece:
    """Text or a special token, or, with `view`, a picture; `own` is what the model has to write."""

    text: str = ""
    own: bool = False
    view: View | None = None


@dataclass(frozen=True)
class View:
    """A view of an item's picture: the whole of it without a box, else a crop, in percent."""

    picture: int
    box: tuple[float, float, float, float] | None = None
    is_tile: bool = False
    says: str = ""
    """What is read in it; stands for it while the encoder is untrained."""
    board: int | None = None
    """The whole of a rendered board instead, by its index."""
    patch: int | None = None
    """Another item's patch instead, by its index."""


def tables_line(tables: Sequence[Table]) -> str:
    """What the aggregator says of a request's tables."""
    told = "; ".join(f"{one.name} ({', '.join(one.columns)})" for one in tables)
    return f"Tables: {told}."


def tools_line(tools: Sequence[str]) -> str:
    """What the decoder says of tools that the model was not trained on."""
    return f"Tools: {', '.join(tools)}."


def script(item: Item, tiling: Tiling | None, hint: str = "") -> list[Piece]:
    """The whole of an item: prompt, reasoning and answer."""
    pieces = [*prompt(item, tiling)]
    if hint:
        pieces.append(Piece(hint))
    # The tokenizer keeps a blank with the word after it, so the hint ends without one.
    blank = " " if hint else ""
    if item.seen:
        pieces.append(Piece(f"{blank}{item.seen[:1].upper()}{item.seen[1:]}. ", own=True))
    pieces += _reading(item.reads, found(item))
    for use in item.uses:
        pieces += call(use.call, Piece(use.result or _missed(use.call, item.tables)))
    counted = item.kind.endswith(COUNTED)
    last = _reading(item.last, found_last(item), is_counted=counted)
    return [*pieces, *last, *answer(item.truth)]


def _missed(text: str, tables: Sequence[Table]) -> str:
    """What the tool says of a row that is not in the table."""
    name, row = text.removeprefix("lookup(").removesuffix(")").split(", ")
    try:
        return look_up([types.Table(one.name, one.columns, one.rows) for one in tables], name, row)
    except types.ToolError as error:
        return str(error)


def prompt(item: Item, tiling: Tiling | None) -> Iterator[Piece]:
    """The conversation: pictures belong to its first message, tables to its last."""
    yield Piece(names.BEGIN)
    questions = [*(asked for asked, _ in item.earlier), item.text]
    for i, question in enumerate(questions):
        views, layout = _views(item, tiling) if i == 0 else ([], "")
        is_last = i == len(questions) - 1
        lines = [question, *([tables_line(item.tables)] if is_last and item.tables else [])]
        yield Piece(names.USER)
        lines += [layout] if layout else []
        lines += [tools_line(item.tools)] if is_last and item.tools else []
        yield Piece("\n".join(lines))
        yield from (Piece(view=view) for view in views)
        yield Piece(names.END)
        yield Piece(names.ASSISTANT)
        if not is_last:
            yield Piece(names.ANSWER)
            yield Piece(item.earlier[i][1])
            yield Piece(names.END)


def _views(item: Item, tiling: Tiling | None) -> tuple[list[View], str]:
    """Overview and tiles of every picture, and how the tiles are laid out."""
    views: list[View] = []
    grids: list[str] = []
    for i, picture in enumerate(item.pictures):
        height, width = picture.shape[:2]
        views.append(View(i))
        if tiling is not None:
            views += [
                View(i, (b.x0_permille / 10, b.y0_permille / 10, b.x1_permille / 10,
                         b.y1_permille / 10), is_tile=True)
                for b in tiling.boxes(width, height)
            ]  # fmt: skip
            grids.append("x".join(map(str, tiling.grid(width, height))))
    if all(view.box is None for view in views):
        return views, ""
    return views, f"Tiles {', '.join(grids)}."


def found(item: Item) -> list[bool]:
    """Tells which reads are what is wanted, as far as has been read.

    That is what the question names; the same as in the first picture; the best up to there.
    """
    texts = [read.text for read in item.reads]
    match item.kind.rpartition(".")[2]:
        case "most":
            return [max(texts[: i + 1], key=float) == text for i, text in enumerate(texts)]
        case "least":
            return [min(texts[: i + 1], key=float) == text for i, text in enumerate(texts)]
        case "same":
            return [is_named(text, texts[0]) for text in texts]
    return [is_named(text, item.text) for text in texts]


def found_last(item: Item) -> list[bool]:
    """Tells which reads after the tools are what is wanted: those above what was calculated."""
    if not item.kind.endswith(COUNTED):
        return [False] * len(item.last)
    limit = float(item.uses[-1].result)
    return [float(read.text) > limit for read in item.last]


def is_named(name: str, text: str) -> bool:
    """Tells whether a text names something, in whatever case."""
    match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
    return bool(name) and match is not None


def _reading(
    reads: Sequence[Read], is_found: Sequence[bool], *, is_counted: bool = False
) -> Iterator[Piece]:
    """Zooms into each box and states what stands there: `zoom(0, 20, 40, 30)` … `Bread, `.

    A colon marks what is wanted, so that it is said before the next step depends on it. What is
    counted is numbered: `0.875: 1`.
    """
    for i, read in enumerate(reads):
        view = View(read.picture, read.box, says=read.text)
        yield from call(zoom(read.box, read.picture), Piece(view=view))
        yield Piece(read.text, own=True)
        mark = LAST if i == len(reads) - 1 else NEXT
        yield Piece(FOUND if is_found[i] else mark, own=True)
        if is_counted and is_found[i]:
            yield Piece(str(sum(is_found[: i + 1])), own=True)


def zoom(box: Box, picture: int) -> str:
    """The call that looks closer; the picture is named unless it is the first."""
    inside = ", ".join(map(str, (*box, picture) if picture else box))
    return f"zoom({inside})"


def call(text: str, result: Piece) -> tuple[Piece, ...]:
    """A tool call, which is the model's own, and its result, which is not."""
    return (
        Piece(names.CALL, own=True),
        Piece(text, own=True),
        Piece(names.RUN, own=True),
        Piece(names.RESULT),
        result,
        Piece(names.END_RESULT),
    )


def answer(sentence: str) -> tuple[Piece, ...]:
    """The answer and the end."""
    return (
        Piece(names.ANSWER, own=True),
        Piece(sentence, own=True),
        Piece(names.END, own=True),
    )
