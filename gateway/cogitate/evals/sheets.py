"""Small tables as they are met in life: a receipt, a timetable, a lab report.

Each has a title, a header, 2 to 4 columns and 3 to 8 rows. The first column names the rows, each
name once. `draw_sheet` invents one, `render_sheet` draws it in a style of its own. Marks on the
canvas are ("cell", row, column), ("header", column) and, on a receipt, "total".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from cogitate.evals import canvas as c
from cogitate.evals import nouns
from cogitate.evals.canvas import Canvas, Face
from cogitate.evals.items import Style
from cogitate.evals.render import Colour

Kind = Literal["receipt", "timetable", "lab"]
KINDS: tuple[Kind, ...] = ("receipt", "timetable", "lab")
ROWS = (3, 8)
WRONG_TOTAL_SHARE = 0.5


@dataclass(frozen=True)
class Sheet:
    """A table. `total` is what a receipt says at its foot; it may be wrong."""

    kind: Kind
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: str = ""

    def column(self, name: str) -> tuple[str, ...]:
        """Returns the cells of a column."""
        index = self.columns.index(name)
        return tuple(row[index] for row in self.rows)


def cents(text: str) -> int:
    """Returns a price in cents."""
    whole, _, part = text.partition(".")
    return int(whole) * 100 + int(part)


def price(value: int) -> str:
    """Writes cents as a price."""
    return f"{value // 100}.{value % 100:02d}"


def draw_sheet(rng: np.random.Generator, kind: Kind, *, held_out: bool) -> Sheet:
    """Invents a table."""
    count = int(rng.integers(ROWS[0], ROWS[1] + 1))
    return {"receipt": _receipt, "timetable": _timetable, "lab": _lab}[kind](rng, count, held_out)


def _receipt(rng: np.random.Generator, count: int, held_out: bool) -> Sheet:
    goods = nouns.draw(rng, nouns.GOODS, count, held_out=held_out)
    prices = rng.choice(np.arange(25, 1900, 5), count, replace=False)
    numbers = rng.integers(1, 7, count)
    rows = []
    columns = (("Item", "Price"), ("Item", "Qty", "Price"), ("Item", "Qty", "Each", "Price"))[
        rng.integers(3)
    ]
    for name, each, number in zip(goods, prices.tolist(), numbers.tolist(), strict=True):
        times = number if len(columns) > 2 else 1
        cells = {"Item": name.capitalize(), "Qty": str(number)}
        cells |= {"Each": price(each), "Price": price(each * times)}
        rows.append(tuple(cells[column] for column in columns))
    total = sum(cents(row[-1]) for row in rows)
    if rng.random() < WRONG_TOTAL_SHARE:
        total += int(rng.choice([-1, 1])) * int(rng.choice((10, 50, 100, 200, 500)))
    total = max(total, 10)
    return Sheet("receipt", _title(rng, nouns.SHOPS, held_out), columns, tuple(rows), price(total))


def _timetable(rng: np.random.Generator, count: int, held_out: bool) -> Sheet:
    places = nouns.draw(rng, nouns.PLACES, count, held_out=held_out)
    minutes = np.sort(rng.choice(np.arange(5 * 60, 23 * 60), count, replace=False)).tolist()
    tracks = rng.permutation(np.arange(1, 20))[:count].tolist()
    lines = [f"{'RSX'[rng.integers(3)]}{n}" for n in rng.permutation(np.arange(1, 90))[:count]]
    columns = (
        ("To", "Departs"),
        ("To", "Departs", "Track"),
        ("To", "Train", "Departs"),
        ("To", "Train", "Departs", "Track"),
    )[rng.integers(4)]
    rows = []
    for place, minute, track, line in zip(places, minutes, tracks, lines, strict=True):
        cells = {"To": place, "Train": line, "Track": str(track)}
        cells["Departs"] = f"{minute // 60:02d}:{minute % 60:02d}"
        rows.append(tuple(cells[column] for column in columns))
    return Sheet("timetable", "Departures", columns, tuple(rows))


def _lab(rng: np.random.Generator, count: int, held_out: bool) -> Sheet:
    listed = tuple(a.name for a in nouns.ANALYTES)
    names = nouns.draw(rng, listed, count, held_out=held_out)
    columns = (
        ("Test", "Result"),
        ("Test", "Result", "Unit"),
        ("Test", "Sample", "Result", "Unit"),
    )[rng.integers(3)]
    rows = []
    for name in names:
        known = nouns.analyte(name)
        cells = {"Test": name, "Unit": known.unit, "Result": result(rng, known)}
        cells["Sample"] = ("Serum", "Plasma", "Blood")[rng.integers(3)]
        rows.append(tuple(cells[column] for column in columns))
    return Sheet("lab", ("Lab report", "Blood tests", "Results")[rng.integers(3)], columns,
                 tuple(rows))  # fmt: skip


def result(rng: np.random.Generator, analyte: nouns.Analyte) -> str:
    """Draws a result: low, within the range, or high, each about a third of the time."""
    low, high = analyte.low, analyte.high
    spread = high - low
    bounds = ((max(low - spread, low * 0.4), low), (low, high), (high, high + spread))
    start, end = bounds[rng.integers(3)]
    step = 10**-analyte.decimals
    value = round(float(rng.uniform(start, end)), analyte.decimals)
    return f"{max(value, step):.{analyte.decimals}f}"


def _title(rng: np.random.Generator, words: tuple[str, ...], held_out: bool) -> str:
    return nouns.draw(rng, words, 1, held_out=held_out)[0]


@dataclass(frozen=True)
class _Look:
    """How one table looks, drawn once."""

    face: Face
    size: int
    ink: Colour
    paper: Colour
    accent: Colour
    rules: str
    pad_x: float
    pad_y: float


def _draw_look(rng: np.random.Generator, style: Style, kind: Kind) -> _Look:
    rules = ("plain", "lines", "grid", "zebra", "board")
    usual = {"receipt": (0.7, 0.15, 0.05, 0.1, 0.0), "timetable": (0.1, 0.25, 0.15, 0.2, 0.3)}
    shares = usual.get(kind, (0.1, 0.3, 0.3, 0.3, 0.0))
    look = rules[rng.choice(5, p=shares)]
    ink, paper = c.pick_colour(rng, c.INKS), c.pick_colour(rng, c.PAPERS)
    accent = c.pick_colour(rng, c.ACCENTS)
    if look == "board":  # a dark board with light letters, as in a station
        ink = ((255, 236, 170), (240, 244, 250))[rng.integers(2)]
        paper = ((22, 28, 44), (30, 30, 32), (16, 42, 66))[rng.integers(3)]
    size = int(rng.integers(18, 31))
    return _Look(
        c.draw_face(rng, style.source.fonts), size, ink, paper, accent, look,
        size * rng.uniform(0.5, 1.4), size * rng.uniform(0.25, 0.7),
    )  # fmt: skip


def render_sheet(rng: np.random.Generator, sheet: Sheet, style: Style) -> Canvas:
    """Draws a table. Its size and aspect follow from its words and its style."""
    look = _draw_look(rng, style, sheet.kind)
    plain, bold = look.face.at(look.size), look.face.at(look.size, bold=True)
    title = look.face.at(round(look.size * 1.3), bold=True)
    height = look.size * 1.25 + 2 * look.pad_y
    widths = [
        max(bold.getlength(name), *(plain.getlength(row[i]) for row in sheet.rows)) + 2 * look.pad_x
        for i, name in enumerate(sheet.columns)
    ]
    margin = look.size * rng.uniform(0.6, 1.6)
    needed = max(sum(widths), title.getlength(sheet.title) + look.size)
    widths[0] += needed - sum(widths)
    top = margin + look.size * 2.2
    foot = height * 1.4 if sheet.total else 0.0
    sheet_height = top + height * (len(sheet.rows) + 1) + foot + margin
    canvas = Canvas(needed + 2 * margin, sheet_height, look.paper)
    centred = sheet.kind == "receipt" or rng.random() < 0.3
    x = canvas.width / 2 if centred else margin + look.pad_x
    canvas.text(x, margin, sheet.title, title, look.ink, "ma" if centred else "la")
    edges = margin + np.concatenate([[0.0], np.cumsum(widths)])
    _header(canvas, sheet, look, edges, top, height)
    for i, row in enumerate(sheet.rows):
        _row(canvas, look, edges, top + height * (i + 1), height, i, row)
    bottom = top + height * (len(sheet.rows) + 1)
    _rules(canvas, look, edges, top, bottom, height)
    if sheet.total:
        _total(canvas, sheet.total, look, edges, bottom, height)
    return canvas


def _is_number(text: str) -> bool:
    return text[:1].isdigit() and not text.startswith("10^")


def _place(edges: np.ndarray, i: int, look: _Look, text: str) -> tuple[float, str]:
    """Numbers stand to the right, words to the left."""
    if _is_number(text):
        return float(edges[i + 1]) - look.pad_x, "rm"
    return float(edges[i]) + look.pad_x, "lm"


def _header(
    canvas: Canvas, sheet: Sheet, look: _Look, edges: np.ndarray, y: float, height: float
) -> None:
    filled = look.rules in ("grid", "zebra")
    if filled:
        canvas.draw.rectangle((edges[0], y, edges[-1], y + height), look.accent)
    ink = (255, 255, 255) if filled else look.ink
    font = look.face.at(look.size, bold=True)
    for i, name in enumerate(sheet.columns):
        x, anchor = _place(edges, i, look, sheet.rows[0][i])
        canvas.text(x, y + height / 2, name, font, ink, anchor)
        canvas.marks["header", i] = (edges[i], y, edges[i + 1], y + height)


def _row(
    canvas: Canvas, look: _Look, edges: np.ndarray, y: float, height: float, i: int,
    row: tuple[str, ...],
) -> None:  # fmt: skip
    if look.rules == "zebra" and i % 2:
        shade = c.tint(look.accent, 0.12)
        canvas.draw.rectangle((edges[0], y, edges[-1], y + height), shade)
    font = look.face.at(look.size)
    for j, text in enumerate(row):
        x, anchor = _place(edges, j, look, text)
        canvas.text(x, y + height / 2, text, font, look.ink, anchor)
        canvas.marks["cell", i, j] = (edges[j], y, edges[j + 1], y + height)


def _rules(
    canvas: Canvas, look: _Look, edges: np.ndarray, top: float, bottom: float, height: float
) -> None:
    faint = tuple((a * 2 + b) // 3 for a, b in zip(look.paper, look.ink, strict=True))
    left, right = float(edges[0]), float(edges[-1])
    canvas.draw.line((left, top + height, right, top + height), look.ink, 2)
    if look.rules in ("lines", "grid", "board"):
        for y in np.arange(top + 2 * height, bottom + 1, height):
            canvas.draw.line((left, float(y), right, float(y)), faint, 1)
    if look.rules == "grid":
        for x in edges:
            canvas.draw.line((float(x), top, float(x), bottom), faint, 1)


def _total(
    canvas: Canvas, total: str, look: _Look, edges: np.ndarray, y: float, height: float
) -> None:
    left, right = float(edges[0]), float(edges[-1])
    for x in np.arange(left, right, look.size * 0.6):
        canvas.draw.line((x, y + height * 0.2, x + look.size * 0.35, y + height * 0.2), look.ink, 2)
    font, middle = look.face.at(look.size, bold=True), y + height * 0.75
    canvas.text(left + look.pad_x, middle, "TOTAL", font, look.ink, "lm")
    where = canvas.text(right - look.pad_x, middle, total, font, look.ink, "rm")
    pad = look.size * 0.4
    canvas.marks["total"] = (where[0] - pad, middle - height / 2, right, middle + height / 2)
