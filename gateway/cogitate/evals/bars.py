"""Bar charts with an axis of ticks: what they show, and how they are drawn.

3 to 7 bars, upright or lying; values are whole numbers from a tenth of the axis to its end. Marks
on the canvas are ("bar", i), from a little before the axis to a little behind its end, so that both
are seen, ("label", i), and ("top",), the number where the axis ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cogitate.evals import canvas as c
from cogitate.evals import nouns
from cogitate.evals.canvas import Canvas, Face, Font
from cogitate.evals.items import Style
from cogitate.evals.render import Colour

BARS = (3, 7)
STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200)
LEAST_SHARE = 0.1
# Two bars differ by at least this share of the axis: nobody has to guess which is longer.
LEAST_GAP = 0.06
# What the mark of a bar shows beyond either end of the axis, as a share of the axis.
MARGIN = 0.05


@dataclass(frozen=True)
class Chart:
    """Bars by label; the axis goes from 0 in `ticks` steps of `step`."""

    title: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    step: int
    ticks: int
    upright: bool

    @property
    def top(self) -> int:
        """The end of the axis."""
        return self.step * self.ticks


def draw_chart(rng: np.random.Generator, *, held_out: bool) -> Chart:
    """Invents a chart whose bars all have different values."""
    count = int(rng.integers(BARS[0], BARS[1] + 1))
    step, ticks = int(rng.choice(STEPS)), int(rng.integers(4, 7))
    if step == 1:  # few whole numbers, so few bars
        count = min(count, ticks - 1)
    top = step * ticks
    series = nouns.SERIES[rng.integers(len(nouns.SERIES))]
    labels = nouns.draw(rng, series, count, held_out=held_out)
    values = _values(rng, len(labels), top)  # a short list of words may have too few
    title = nouns.draw(rng, nouns.MEASURES, 1, held_out=held_out)[0]
    return Chart(title, tuple(labels), tuple(values), step, ticks, bool(rng.random() < 0.5))


def _values(rng: np.random.Generator, count: int, top: int) -> list[int]:
    """Draws different whole numbers, each a clear gap away from the next, in any order."""
    low, gap = max(1, round(LEAST_SHARE * top)), max(1, round(LEAST_GAP * top))
    room = top - low - gap * (count - 1)
    starts = np.sort(rng.integers(0, room + 1, count)) + low + gap * np.arange(count)
    return [int(value) for value in rng.permutation(starts)]


@dataclass(frozen=True)
class _Look:
    face: Face
    size: int
    ink: Colour
    fills: tuple[Colour, ...]
    thickness: float
    gridlines: bool

    @property
    def font(self) -> Font:
        return self.face.at(self.size)


def _draw_look(rng: np.random.Generator, style: Style, count: int) -> _Look:
    first = int(rng.integers(len(c.ACCENTS)))
    many = rng.random() < 0.35
    fills = tuple(c.ACCENTS[(first + i * many) % len(c.ACCENTS)] for i in range(count))
    return _Look(
        c.draw_face(rng, style.source.fonts),
        int(rng.integers(18, 27)),
        c.pick_colour(rng, c.INKS),
        fills,
        float(rng.uniform(0.5, 0.8)),
        bool(rng.random() < 0.65),
    )


def render_chart(rng: np.random.Generator, chart: Chart, style: Style) -> Canvas:
    """Draws a chart. The long side of the plot is drawn from 240 to 460 px."""
    look = _draw_look(rng, style, len(chart.labels))
    paper = c.pick_colour(rng, c.PAPERS)
    along = float(rng.integers(240, 461))
    widest = max(look.font.getlength(label) for label in chart.labels)
    slot = (
        max(widest + look.size * 0.8, look.size * rng.uniform(2.0, 3.6))
        if chart.upright
        else look.size * rng.uniform(1.8, 2.8)
    )
    across = slot * len(chart.labels)
    ticks = look.font.getlength(str(chart.top))
    left = look.size + (ticks if chart.upright else widest) + look.size * 0.6
    top, bottom = look.size * 3.2, look.size * 2.4
    title = look.face.at(round(look.size * 1.2), bold=True)
    plot = (across, along) if chart.upright else (along, across)
    width = max(left + plot[0] + look.size * 1.5, title.getlength(chart.title) + 2 * look.size)
    canvas = Canvas(width, top + plot[1] + bottom, paper)
    centred = bool(rng.random() < 0.5)
    x = canvas.width / 2 if centred else look.size
    canvas.text(x, look.size * 0.7, chart.title, title, look.ink, "ma" if centred else "la")
    if chart.upright:
        _upright(canvas, chart, look, left, top, slot, along)
    else:
        _lying(canvas, chart, look, left, top, slot, along)
    return canvas


def _upright(
    canvas: Canvas, chart: Chart, look: _Look, left: float, top: float, slot: float, along: float
) -> None:
    floor, right = top + along, left + slot * len(chart.labels)
    margin = MARGIN * along
    faint = c.tint(look.ink, 0.25)
    for k in range(chart.ticks + 1):
        y = floor - along * k / chart.ticks
        if k and look.gridlines:
            canvas.draw.line((left, y, right, y), faint, 1)
        canvas.draw.line((left - 5, y, left, y), look.ink, 2)
        canvas.text(left - 9, y, str(k * chart.step), look.font, look.ink, "rm")
    for i, (label, value) in enumerate(zip(chart.labels, chart.values, strict=True)):
        middle, half = left + slot * (i + 0.5), slot * look.thickness / 2
        y = floor - along * value / chart.top
        canvas.draw.rectangle((middle - half, y, middle + half, floor), look.fills[i])
        canvas.text(middle, floor + 8, label, look.font, look.ink, "ma")
        slots = left + slot * i, left + slot * (i + 1)
        canvas.marks["bar", i] = (slots[0], top - margin, slots[1], floor + margin)
        canvas.marks["label", i] = (slots[0], floor + 4, slots[1], floor + 8 + look.size * 1.3)
    canvas.draw.line((left, top - 4, left, floor, right, floor), look.ink, 2)
    middle = look.size * 0.8
    canvas.marks["top",] = (0, top - middle, left - 6, top + middle)


def _lying(
    canvas: Canvas, chart: Chart, look: _Look, left: float, top: float, slot: float, along: float
) -> None:
    right, floor = left + along, top + slot * len(chart.labels)
    margin = MARGIN * along
    faint = c.tint(look.ink, 0.25)
    for k in range(chart.ticks + 1):
        x = left + along * k / chart.ticks
        if k and look.gridlines:
            canvas.draw.line((x, top, x, floor), faint, 1)
        canvas.draw.line((x, floor, x, floor + 5), look.ink, 2)
        canvas.text(x, floor + 9, str(k * chart.step), look.font, look.ink, "ma")
    for i, (label, value) in enumerate(zip(chart.labels, chart.values, strict=True)):
        middle, half = top + slot * (i + 0.5), slot * look.thickness / 2
        x = left + along * value / chart.top
        canvas.draw.rectangle((left, middle - half, x, middle + half), look.fills[i])
        canvas.text(left - 8, middle, label, look.font, look.ink, "rm")
        slots = top + slot * i, top + slot * (i + 1)
        canvas.marks["bar", i] = (left - margin, slots[0], right + margin, slots[1])
        half = max(half, look.size * 0.7)
        canvas.marks["label", i] = (0, middle - half, left - 4, middle + half)
    canvas.draw.line((left, top - 4, left, floor), look.ink, 2)
    canvas.draw.line((left, floor, right, floor), look.ink, 2)
    half = look.font.getlength(str(chart.top)) / 2 + look.size * 0.4
    canvas.marks["top",] = (right - half, floor + 6, right + half, floor + 10 + look.size * 1.3)
