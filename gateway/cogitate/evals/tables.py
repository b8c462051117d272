"""Questions about receipts, timetables and lab reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from cogitate.evals.canvas import Canvas
from cogitate.evals.checks import says
from cogitate.evals.items import Box, Item, Read, Style, Use
from cogitate.evals.phrases import grammar
from cogitate.evals.sheets import KINDS, Sheet, cents, draw_sheet, price, render_sheet

# What is asked of a column: its kind of question, and the sentence that answers it.
CELLS: dict[str, dict[str, tuple[str, str]]] = {
    "receipt": {
        "Price": ("receipt.price", "The price of {row} is {value}."),
        "Qty": ("receipt.quantity", "The quantity of {row} is {value}."),
    },
    "timetable": {
        "Departs": ("timetable.departs", "The train to {row} leaves at {value}."),
        "Track": ("timetable.track", "The train to {row} leaves from track {value}."),
        "Train": ("timetable.train", "The train to {row} is {value}."),
    },
    "lab": {
        "Result": ("lab.result", "The result of {row} is {value}."),
        "Unit": ("lab.unit", "The unit of {row} is {value}."),
        "Sample": ("lab.sample", "The sample of {row} is {value}."),
    },
}
MORE = {
    "receipt": ("sum", "difference", "most", "least", "who", "total", "check"),
    "timetable": ("first", "last", "who", "count"),
    "lab": ("count",),
}
CELL_SHARE = {"receipt": 0.35, "timetable": 0.5, "lab": 0.8}


class Page:
    """A drawn table that questions are asked about; owns nothing but what it was made from."""

    def __init__(self, rng: np.random.Generator, style: Style, sheet: Sheet) -> None:
        self.rng, self.style, self.sheet = rng, style, sheet
        canvas: Canvas = render_sheet(rng, sheet, style)
        self.picture, self._boxes = canvas.photo(rng, style.noise)

    def box(self, row: int, column: str) -> Box:
        """Where a cell is."""
        return self._boxes["cell", row, self.sheet.columns.index(column)]

    def read(self, row: int, column: str, picture: int = 0) -> Read:
        """A cell that has to be read."""
        return Read(self.sheet.column(column)[row], self.box(row, column), picture)

    def names(self, until: int | None = None) -> tuple[Read, ...]:
        """The row names, down to and including a row; all of them by default."""
        last = len(self.sheet.rows) if until is None else until + 1
        return tuple(self.read(i, self.sheet.columns[0]) for i in range(last))

    def total(self, picture: int = 0) -> Read:
        """What the receipt says at its foot."""
        return Read(self.sheet.total, self._boxes["total"], picture)

    def ask(self, kind: str, **slots: str) -> str:
        """A question of the style's split."""
        return grammar(kind).draw(self.rng, held_out=self.style.held_out).format(**slots)

    @property
    def seen(self) -> str:
        """What the picture shows."""
        names = ", ".join(self.sheet.columns)
        return f"a {_NAMES[self.sheet.kind]}: {len(self.sheet.rows)} rows; {names}"


_NAMES = {"receipt": "receipt", "timetable": "timetable", "lab": "lab report"}


def spoken(name: str) -> str:
    """Writes a row's name as it stands in a sentence: Bread as bread, GGT and TSH as they are."""
    return name if any(letter.isupper() for letter in name[1:]) else name.lower()


def row_name(sheet: Sheet, row: int) -> str:
    """Returns how a question names a row; towns keep their capital."""
    name = sheet.rows[row][0]
    return name if sheet.kind == "timetable" else spoken(name)


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws a table, its picture and a question about it."""
    kind = KINDS[rng.integers(len(KINDS))]
    return draw_about(Page(rng, style, draw_sheet(rng, kind, held_out=style.held_out)))


def draw_about(page: Page) -> Item:
    """Draws a question about a table."""
    rng, kind = page.rng, page.sheet.kind
    if rng.random() < CELL_SHARE[kind]:
        columns = [name for name in page.sheet.columns if name in CELLS[kind]]
        row = int(rng.integers(len(page.sheet.rows)))
        return cell_item(page, row, columns[rng.integers(len(columns))])
    return _MAKERS[MORE[kind][rng.integers(len(MORE[kind]))]](page)


def cell_item(page: Page, row: int, column: str) -> Item:
    """A question about one cell."""
    sheet = page.sheet
    kind, sentence = CELLS[sheet.kind][column]
    name, value = row_name(sheet, row), sheet.column(column)[row]
    rivals = tuple(one for one in sheet.column(column) if one != value)
    return Item(
        kind,
        page.ask(kind, row=name),
        sentence.format(row=name, value=value),
        partial(says, truth=value, rivals=rivals),
        pictures=(page.picture,),
        reads=(*page.names(row), page.read(row, column)),
        seen=page.seen,
    )


def _named(page: Page, kind: str, row: int, sentence: str, reads: tuple[Read, ...]) -> Item:
    """A question whose answer is a row's name."""
    sheet = page.sheet
    name = sheet.rows[row][0]
    rivals = tuple(one[0] for one in sheet.rows if one[0] != name)
    value = sheet.column({"receipt": "Price", "timetable": "Departs"}[sheet.kind])[row]
    return Item(
        f"{sheet.kind}.{kind}",
        page.ask(f"{sheet.kind}.{kind}", value=value),
        sentence.format(row=row_name(sheet, row)),
        partial(says, truth=name, rivals=rivals),
        pictures=(page.picture,),
        reads=reads,
        seen=page.seen,
    )


def _extreme(page: Page, *, most: bool) -> Item:
    prices = [cents(one) for one in page.sheet.column("Price")]
    best = max(prices) if most else min(prices)
    if prices.count(best) > 1:  # nobody can say which
        return total_item(page)
    row = prices.index(best)
    reads = tuple(page.read(i, "Price") for i in range(len(prices)))
    item = _named(page, "most" if most else "least", row, "The {row}.", reads)
    return replace(item, last=(page.read(row, "Item"),))


def _who(page: Page) -> Item:
    column = "Price" if page.sheet.kind == "receipt" else "Departs"
    values = page.sheet.column(column)
    single = [i for i, value in enumerate(values) if values.count(value) == 1]
    row = single[page.rng.integers(len(single))] if single else 0
    reads = (*(page.read(i, column) for i in range(row + 1)), page.read(row, page.sheet.columns[0]))
    sentence = "The {row}." if page.sheet.kind == "receipt" else "It goes to {row}."
    return _named(page, "who", row, sentence, reads)


def _end(page: Page, *, first: bool) -> Item:
    row = 0 if first else len(page.sheet.rows) - 1
    reads = (page.read(row, "Departs"), page.read(row, "To"))
    return _named(page, "first" if first else "last", row, "It goes to {row}.", reads)


def two_item(page: Page, one: int, two: int, *, is_sum: bool, is_told: bool = False) -> Item:
    """What two lines of a receipt cost together, or by how much one is dearer.

    A sum is calculated in the order of the lines, or, if both prices are told, of the telling.
    """
    prices = page.sheet.column("Price")
    first, last = sorted((one, two))
    if not is_sum and cents(prices[one]) < cents(prices[two]):
        one, two = two, one
    sign = 1 if is_sum else -1
    value = cents(prices[one]) + sign * cents(prices[two])
    kind = "receipt.sum" if is_sum else "receipt.difference"
    text = page.ask(kind, row=row_name(page.sheet, one), other=row_name(page.sheet, two))
    names = page.names(last)
    prices_read = (page.read(first, "Price"), page.read(last, "Price"))
    reads = (*names[: first + 1], prices_read[0], *names[first + 1 :], prices_read[1])
    terms = (first, last) if is_sum and not is_told else (one, two)
    call = f"calculator({prices[terms[0]]}{'+' if is_sum else '-'}{prices[terms[1]]})"
    return Item(
        kind,
        text,
        f"The {'sum' if is_sum else 'difference'} is {price(value)}.",
        partial(costs, value=value),
        pictures=(page.picture,),
        reads=reads,
        uses=(Use(call, decimal(value)),),
        seen=page.seen,
    )


def _two(page: Page, *, is_sum: bool) -> Item:
    one, two = page.rng.permutation(len(page.sheet.rows))[:2].tolist()
    return two_item(page, one, two, is_sum=is_sum)


def total_item(page: Page) -> Item:
    """What the receipt says at its foot."""
    total = page.sheet.total
    return Item(
        "receipt.total", page.ask("receipt.total"), f"The total is {total}.",
        partial(says, truth=total), pictures=(page.picture,), reads=(page.total(),), seen=page.seen,
    )  # fmt: skip


def check_item(page: Page) -> Item:
    """Whether the total is what the prices add up to."""
    prices = page.sheet.column("Price")
    real, said = sum(cents(one) for one in prices), cents(page.sheet.total)
    right = real == said
    truth, rival = ("Yes", "No") if right else ("No", "Yes")
    sentence = (
        f"{truth}, it is {page.sheet.total}." if right else f"No, it should be {price(real)}."
    )
    return Item(
        "receipt.check",
        page.ask("receipt.check"),
        sentence,
        partial(says, truth=truth, rivals=(rival,)),
        pictures=(page.picture,),
        reads=(*(page.read(i, "Price") for i in range(len(prices))), page.total()),
        uses=(
            Use(f"calculator({'+'.join(prices)})", decimal(real)),
            Use(f"calculator({decimal(real)}-{page.sheet.total})", decimal(real - said)),
        ),
        seen=page.seen,
    )


def _count(page: Page) -> Item:
    count, kind = len(page.sheet.rows), f"{page.sheet.kind}.count"
    noun = {"timetable": "departures", "lab": "results"}[page.sheet.kind]
    return Item(
        kind, page.ask(kind), f"There are {count} {noun}.", partial(says, truth=str(count)),
        pictures=(page.picture,), reads=(), seen=page.seen,
    )  # fmt: skip


def costs(answer: str, value: int) -> bool:
    """Accepts 2.5 and 2.50 alike: the calculator writes the one, people the other."""
    return says(answer, price(value)) or says(answer, decimal(value))


def decimal(value: int) -> str:
    """Writes cents as the calculator does."""
    return ("-" if value < 0 else "") + price(abs(value)).rstrip("0").rstrip(".")


_MAKERS: dict[str, Callable[[Page], Item]] = {
    "sum": partial(_two, is_sum=True),
    "difference": partial(_two, is_sum=False),
    "most": partial(_extreme, most=True),
    "least": partial(_extreme, most=False),
    "who": _who,
    "total": total_item,
    "check": check_item,
    "first": partial(_end, first=True),
    "last": partial(_end, first=False),
    "count": _count,
}
