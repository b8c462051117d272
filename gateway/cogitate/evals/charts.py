"""Questions about bar charts. A value counts as right within `TOLERANCE` of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from cogitate.evals.bars import Chart, draw_chart, render_chart
from cogitate.evals.checks import is_near, says
from cogitate.evals.grammar import number_word
from cogitate.evals.items import Item, Read, Style, Use
from cogitate.evals.phrases import grammar

TOLERANCE = 0.05
# A limit that is asked for keeps this share of the axis away from every bar.
LIMIT_GAP = 0.03


class Plot:
    """A drawn chart that questions are asked about."""

    def __init__(self, rng: np.random.Generator, style: Style, chart: Chart) -> None:
        self.rng, self.style, self.chart = rng, style, chart
        self.picture, self._boxes = render_chart(rng, chart, style).photo(rng, style.noise)

    @property
    def axis(self) -> Read:
        """The axis: how far it goes in how many steps."""
        return Read(f"0 to {self.chart.top} by {self.chart.step}", self._boxes["axis",])

    def bar(self, index: int) -> Read:
        """A bar, with its label."""
        text = f"{self.chart.labels[index]} {self.chart.values[index]}"
        return Read(text, self._boxes["bar", index])

    def item(
        self, kind: str, slots: dict[str, str], truth: str, check: Callable[[str], bool],
        bars: tuple[int, ...], uses: tuple[Use, ...] = (),
    ) -> Item:  # fmt: skip
        """A question about the chart that needs some of its bars read."""
        form = grammar(f"chart.{kind}").draw(self.rng, held_out=self.style.held_out)
        way = "upright" if self.chart.upright else "lying"
        return Item(
            f"chart.{kind}",
            form.format(**slots),
            truth,
            check,
            pictures=(self.picture,),
            reads=(self.axis, *map(self.bar, bars)),
            uses=uses,
            seen=f"a chart of {len(self.chart.labels)} {way} bars",
        )


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws a chart, its picture and a question about it."""
    plot = Plot(rng, style, draw_chart(rng, held_out=style.held_out))
    kind = str(
        rng.choice(("value", "most", "least", "sum", "above"), p=(0.4, 0.15, 0.1, 0.2, 0.15))
    )
    return _MAKERS[kind](plot)


def value_item(plot: Plot) -> Item:
    """The value of one bar."""
    chart = plot.chart
    i = int(plot.rng.integers(len(chart.labels)))
    label, value = chart.labels[i], chart.values[i]
    check = partial(is_near, truth=value, share=TOLERANCE)
    return plot.item("value", {"label": label}, f"{label} is at {value}.", check, (i,))


def _extreme(plot: Plot, *, most: bool) -> Item:
    values = plot.chart.values
    i = values.index(max(values) if most else min(values))
    label = plot.chart.labels[i]
    others = tuple(one for one in plot.chart.labels if one != label)
    word, kind = ("highest", "most") if most else ("lowest", "least")
    check = partial(says, truth=label, rivals=others)
    return plot.item(kind, {}, f"{label} is the {word}.", check, (i,))


def _sum(plot: Plot) -> Item:
    chart = plot.chart
    one, two = plot.rng.permutation(len(chart.labels))[:2].tolist()
    value = chart.values[one] + chart.values[two]
    slots = {"label": chart.labels[one], "other": chart.labels[two]}
    use = Use(f"calculator({chart.values[one]}+{chart.values[two]})", str(value))
    check = partial(is_near, truth=value, share=TOLERANCE)
    return plot.item("sum", slots, f"The sum is {value}.", check, (one, two), (use,))


def _above(plot: Plot) -> Item:
    chart = plot.chart
    gap = max(LIMIT_GAP * chart.top, 0.5)
    ticks = [chart.step * k for k in range(1, chart.ticks)]
    clear = [t for t in ticks if all(abs(t - v) >= gap for v in chart.values)]
    if not clear:
        return value_item(plot)
    limit = int(plot.rng.choice(clear))
    count = sum(value > limit for value in chart.values)
    verb, noun = ("is", "bar") if count == 1 else ("are", "bars")
    truth = f"There {verb} {count} {noun}."
    slots = {"limit": number_word(plot.rng, limit)}
    bars = tuple(range(len(chart.values)))
    return plot.item("above", slots, truth, partial(says, truth=str(count)), bars)


_MAKERS: dict[str, Callable[[Plot], Item]] = {
    "value": value_item,
    "most": partial(_extreme, most=True),
    "least": partial(_extreme, most=False),
    "sum": _sum,
    "above": _above,
}
