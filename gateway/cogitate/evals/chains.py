"""Questions in several steps: read the picture, look up a table the caller provides, calculate.

`lookup(prices, bread)` gives the other cells of the row: the bare cell where the table has two
columns, else each with its column's name. That is what the tool-executor answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial

import numpy as np
from cogitate.evals import nouns
from cogitate.evals.bars import draw_chart
from cogitate.evals.cards import draw_labels, render_labels
from cogitate.evals.charts import TOLERANCE, Plot, bar_item, plain
from cogitate.evals.checks import is_within, says
from cogitate.evals.compare import difference
from cogitate.evals.grammar import number_word
from cogitate.evals.items import Item, Read, Style, Table, Use
from cogitate.evals.phrases import grammar
from cogitate.evals.render import COLOUR_NAMES
from cogitate.evals.sheets import cents, draw_sheet, price
from cogitate.evals.tables import Page, costs, decimal, row_name

ROWS = (3, 8)
VERDICTS = ("low", "normal", "high")


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws a picture, a table and a question that needs both."""
    return _MAKERS[rng.integers(len(_MAKERS))](rng, style)


def look_up(table: Table, row: str) -> Use:
    """Returns the call that looks a row up, and what comes back."""
    cells = next(one for one in table.rows if one[0] == row)
    pairs = zip(table.columns[1:], cells[1:], strict=True)
    told = cells[1] if len(cells) == 2 else ", ".join(f"{name} {cell}" for name, cell in pairs)
    return Use(f"lookup({table.name}, {row})", told)


def _table(
    rng: np.random.Generator, name: str, columns: tuple[str, ...], needed: str,
    others: tuple[str, ...], cells: Callable[[str], tuple[str, ...]],
) -> Table:  # fmt: skip
    """A table in which `needed` is one row among others."""
    count = int(rng.integers(ROWS[0], ROWS[1] + 1))
    rest = [one for one in others if one != needed]
    names = [needed, *(rest[i] for i in rng.permutation(len(rest))[: count - 1])]
    rows = tuple((names[i], *cells(names[i])) for i in rng.permutation(len(names)))
    return Table(name, columns, rows)


def _prices(rng: np.random.Generator, needed: str, others: tuple[str, ...]) -> Table:
    def cell(_: str) -> tuple[str, ...]:
        return (price(int(rng.integers(5, 400)) * 5),)

    return _table(rng, "prices", ("item", "price"), needed, others, cell)


def _times(table: Table, row: str, count: int) -> tuple[Use, Use, int]:
    """Looks a price up and multiplies it; the product is in cents."""
    found = look_up(table, row)
    value = cents(found.result) * count
    return found, Use(f"calculator({count}*{found.result})", decimal(value)), value


def _ask(rng: np.random.Generator, kind: str, style: Style, **slots: str) -> str:
    return grammar(f"chain.{kind}").draw(rng, held_out=style.held_out).format(**slots)


def _priced(rng: np.random.Generator, style: Style) -> Item:
    """What some of the thing that a card names cost."""
    labels = draw_labels(rng, nouns.GOODS, held_out=style.held_out)
    colour = int(rng.choice(labels.single_colours))
    place, count = labels.colours.index(colour), int(rng.integers(2, 10))
    word = labels.words[place]
    picture, boxes = render_labels(rng, labels, style).photo(rng, style.noise)
    table = _prices(rng, word, nouns.GOODS)
    found, product, value = _times(table, word, count)
    slots = {"colour": COLOUR_NAMES[colour], "count": number_word(rng, count)}
    return Item(
        "chain.price",
        _ask(rng, "price", style, **slots),
        f"They cost {price(value)}.",
        partial(costs, value=value),
        pictures=(picture,),
        reads=(Read(word, boxes["card", place]),),
        uses=(found, product),
        tables=(table,),
        seen=labels.seen,
    )


def _fare(rng: np.random.Generator, style: Style) -> Item:
    """What a group pays by the train that leaves at a time."""
    page = Page(rng, style, draw_sheet(rng, "timetable", held_out=style.held_out))
    row, count = int(rng.integers(len(page.sheet.rows))), int(rng.integers(2, 10))
    place, time = page.sheet.rows[row][0], page.sheet.column("Departs")[row]

    def cell(_: str) -> tuple[str, ...]:
        return (price(int(rng.integers(8, 180)) * 50),)

    table = _table(rng, "fares", ("to", "fare"), place, nouns.PLACES, cell)
    found, product, value = _times(table, place, count)
    reads = (*(page.read(i, "Departs") for i in range(row + 1)), page.read(row, "To"))
    return Item(
        "chain.fare",
        _ask(rng, "fare", style, value=time, count=number_word(rng, count)),
        f"They pay {price(value)}.",
        partial(costs, value=value),
        pictures=(page.picture,),
        reads=reads,
        uses=(found, product),
        tables=(table,),
        seen=page.seen,
    )


def ranges_table(rng: np.random.Generator, needed: str) -> Table:
    """The usual ranges of some analytes, `needed` among them."""

    def cell(name: str) -> tuple[str, ...]:
        one = nouns.analyte(name)
        return f"{one.low:.{one.decimals}f}", f"{one.high:.{one.decimals}f}"

    known = tuple(one.name for one in nouns.ANALYTES)
    return _table(rng, "ranges", ("test", "low", "high"), needed, known, cell)


def verdict(value: str, low: str, high: str) -> str:
    """Says where a value lies; the ends belong to the range."""
    return VERDICTS[(float(value) >= float(low)) + (float(value) > float(high))]


def _range(rng: np.random.Generator, style: Style) -> Item:
    """Whether a lab's result is low, normal or high by the ranges provided."""
    page = Page(rng, style, draw_sheet(rng, "lab", held_out=style.held_out))
    row = int(rng.integers(len(page.sheet.rows)))
    return range_item(page, row, ranges_table(rng, page.sheet.rows[row][0]))


def range_item(page: Page, row: int, table: Table) -> Item:
    """Where the result of a row lies by a table of ranges."""
    name, value = page.sheet.rows[row][0], page.sheet.column("Result")[row]
    low, high = table.cell(name, "low"), table.cell(name, "high")
    found = verdict(value, low, high)
    spoken = row_name(page.sheet, row)
    uses = (
        look_up(table, name),
        Use(f"calculator({value}-{low})", difference(value, low)),
        Use(f"calculator({high}-{value})", difference(high, value)),
    )
    return Item(
        "chain.range",
        _ask(page.rng, "range", page.style, row=spoken),
        f"{spoken[:1].upper()}{spoken[1:]} is {found}.",
        partial(says, truth=found, rivals=tuple(one for one in VERDICTS if one != found)),
        pictures=(page.picture,),
        reads=(*page.names(row), page.read(row, "Result")),
        uses=uses,
        tables=(table,),
        seen=page.seen,
    )


def _listed(rng: np.random.Generator, style: Style) -> Item:
    """Whether a receipt charged what the price list says."""
    sheet = draw_sheet(rng, "receipt", held_out=style.held_out)
    while "Qty" in sheet.columns and "Each" not in sheet.columns:
        sheet = draw_sheet(rng, "receipt", held_out=style.held_out)
    page, row = Page(rng, style, sheet), int(rng.integers(len(sheet.rows)))
    column = "Each" if "Each" in sheet.columns else "Price"
    charged, name = sheet.column(column)[row], sheet.rows[row][0].lower()
    table = _prices(rng, name, nouns.GOODS)
    right = bool(rng.random() < 0.5)
    off = 0 if right else int(rng.choice((5, 10, 20, 50, 100)))
    listed = price(cents(charged) + off)
    rows = tuple((one[0], listed) if one[0] == name else one for one in table.rows)
    table = Table(table.name, table.columns, rows)
    truth, rival = ("Yes", "No") if right else ("No", "Yes")
    return Item(
        "chain.listed",
        _ask(rng, "listed", style, row=name),
        f"{truth}, the list says {listed}.",
        partial(says, truth=truth, rivals=(rival,)),
        pictures=(page.picture,),
        reads=(*page.names(row), page.read(row, column)),
        uses=(
            look_up(table, name),
            Use(f"calculator({listed}-{charged})", difference(listed, charged)),
        ),
        tables=(table,),
        seen=page.seen,
    )


def _over(rng: np.random.Generator, style: Style) -> Item:
    """How far a bar is from its target."""
    plot = Plot(rng, style, draw_chart(rng, held_out=style.held_out))
    chart = plot.chart
    i = int(rng.integers(len(chart.labels)))
    item = bar_item(plot, i)
    label, value, told = chart.labels[i], chart.values[i], Decimal(item.uses[0].result)

    def cell(_: str) -> tuple[str, ...]:
        return (str(int(rng.integers(1, chart.top + 1))),)

    table = _table(rng, "targets", ("name", "target"), label, chart.labels, cell)
    found = look_up(table, label)
    target = int(found.result)
    large, small = max(told, Decimal(target)), min(told, Decimal(target))
    gap = plain(large - small)
    use = Use(f"calculator({plain(large)}-{plain(small)})", gap)
    return replace(
        item,
        kind="chain.over",
        text=_ask(rng, "over", style, label=label),
        truth=f"The difference is {gap}.",
        check=partial(is_within, truth=abs(value - target), slack=TOLERANCE * value),
        uses=(*item.uses, found, use),
        tables=(table,),
    )


_MAKERS: tuple[Callable[[np.random.Generator, Style], Item], ...] = (
    _priced, _fare, _range, _listed, _over,
)  # fmt: skip
