"""Questions about two pictures: two boards, two receipts, two signs or two lab reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from cogitate.evals import boards, nouns
from cogitate.evals.cards import draw_labels, render_labels
from cogitate.evals.checks import says
from cogitate.evals.items import Item, Read, Style, Use
from cogitate.evals.phrases import grammar
from cogitate.evals.render import COLOUR_NAMES, Pixels, add_pixel_noise
from cogitate.evals.sheets import Sheet, cents, draw_sheet, result
from cogitate.evals.tables import Page, row_name

PLACES = ("The first.", "The second.", "They are equal.")
# One words for each place that no right answer mixes.
_RIVALS = ("first", "second", "equal")


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws two pictures and a question that needs both."""
    return _MAKERS[rng.integers(len(_MAKERS))](rng, style)


def _placed(one: float, two: float) -> tuple[str, Callable[[str], bool]]:
    """The answer that says which of two is larger, and its check."""
    place = 2 if one == two else int(two > one)
    rivals = tuple(word for word in _RIVALS if word != _RIVALS[place])
    return PLACES[place], partial(says, truth=_RIVALS[place], rivals=rivals)


def _ask(rng: np.random.Generator, kind: str, style: Style, **slots: str) -> str:
    return grammar(kind).draw(rng, held_out=style.held_out).format(**slots)


def _more(rng: np.random.Generator, style: Style) -> Item:
    """Which of two boards has more cards of a colour."""
    drawn = [boards.draw_board(rng) for _ in range(2)]
    colour = int(rng.integers(len(COLOUR_NAMES)))
    counts = [len(board.cells_of(colour)) for board in drawn]
    pictures: list[Pixels] = []
    for board in drawn:
        clean = boards.render_board(rng, board, noise=style.noise, source=style.source)
        pictures.append(add_pixel_noise(rng, clean, style.noise))
    name = COLOUR_NAMES[colour]
    truth, check = _placed(*counts)
    return Item(
        "compare.more",
        _ask(rng, "compare.more", style, colour=name),
        truth,
        check,
        pictures=tuple(pictures),
        seen=f"{counts[0]} {name} cards; {counts[1]} {name} cards",
    )


def _total(rng: np.random.Generator, style: Style) -> Item:
    """Which of two receipts has the larger total."""
    pages = [Page(rng, style, draw_sheet(rng, "receipt", held_out=style.held_out))
             for _ in range(2)]  # fmt: skip
    one, two = (page.sheet.total for page in pages)
    truth, check = _placed(cents(one), cents(two))
    return Item(
        "compare.total",
        _ask(rng, "compare.total", style),
        truth,
        check,
        pictures=tuple(page.picture for page in pages),
        reads=tuple(page.total(i) for i, page in enumerate(pages)),
        uses=(Use(f"calculator({two}-{one})", difference(two, one)),),
        seen="two receipts",
    )


def _same(rng: np.random.Generator, style: Style) -> Item:
    """Whether the cards of a colour say the same on two boards."""
    first, second = (draw_labels(rng, nouns.WORDS, held_out=style.held_out) for _ in range(2))
    colour = int(rng.choice(first.single_colours))
    place = int(rng.integers(len(second.words)))
    # The second board has the colour on one card alone as well.
    colours = [(k + 1) % len(COLOUR_NAMES) if k == colour else k for k in second.colours]
    colours[place] = colour
    words = list(second.words)
    word = first.words[first.colours.index(colour)]
    if rng.random() < 0.5:
        if word in words:
            words[words.index(word)] = words[place]
        words[place] = word
    second = replace(second, words=tuple(words), colours=tuple(colours))
    pictures, reads = [], []
    for i, labels in enumerate((first, second)):
        picture, boxes = render_labels(rng, labels, style).photo(rng, style.noise)
        where = labels.colours.index(colour)
        pictures.append(picture)
        reads.append(Read(labels.words[where], boxes["card", where], i))
    truth, rival = ("Yes", "No") if reads[0].text == reads[1].text else ("No", "Yes")
    return Item(
        "compare.same",
        _ask(rng, "compare.same", style, colour=COLOUR_NAMES[colour]),
        f"{truth}.",
        partial(says, truth=truth, rivals=(rival,)),
        pictures=tuple(pictures),
        reads=tuple(reads),
        seen="two boards",
    )


def _rose(rng: np.random.Generator, style: Style) -> Item:
    """Whether a value is higher in the second of two lab reports."""
    first = draw_sheet(rng, "lab", held_out=style.held_out)
    index = first.columns.index("Result")
    rows = tuple(
        (*row[:index], result(rng, nouns.analyte(row[0])), *row[index + 1 :]) for row in first.rows
    )
    second = Sheet("lab", first.title, first.columns, rows)
    pages = [Page(rng, style, sheet) for sheet in (first, second)]
    row = int(rng.integers(len(rows)))
    one, two = (page.sheet.column("Result")[row] for page in pages)
    truth, rival = ("Yes", "No") if float(two) > float(one) else ("No", "Yes")
    return Item(
        "compare.rose",
        _ask(rng, "compare.rose", style, row=row_name(first, row)),
        f"{truth}.",
        partial(says, truth=truth, rivals=(rival,)),
        pictures=tuple(page.picture for page in pages),
        reads=(
            *pages[0].names(row),
            *(page.read(row, "Result", i) for i, page in enumerate(pages)),
        ),
        uses=(Use(f"calculator({two}-{one})", difference(two, one)),),
        seen="two lab reports",
    )


def difference(one: str, two: str) -> str:
    """One number less another, as the calculator writes it."""
    digits = max(len(text.partition(".")[2]) for text in (one, two))
    value = f"{float(one) - float(two):.{digits}f}"
    value = value.rstrip("0").rstrip(".") if "." in value else value
    return "0" if value in ("-0", "") else value


_MAKERS: tuple[Callable[[np.random.Generator, Style], Item], ...] = (_more, _total, _same, _rose)
