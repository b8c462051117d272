"""Questions about bar charts. A value counts as right within `TOLERANCE` of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
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
LONGEST_SHARE = len("0.000")


class Plot:
    """A drawn chart that questions are asked about."""

    def __init__(self, rng: np.random.Generator, style: Style, chart: Chart) -> None:
        self.rng, self.style, self.chart = rng, style, chart
        self.picture, self._boxes = render_chart(rng, chart, style).photo(rng, style.noise)

    @property
    def seen(self) -> str:
        """What the picture shows."""
        way = "upright" if self.chart.upright else "lying"
        return f"a chart of {len(self.chart.labels)} {way} bars"

    def names(self, until: int | None = None) -> tuple[Read, ...]:
        """The labels, up to and including a bar's; all of them by default."""
        labels = self.chart.labels if until is None else self.chart.labels[: until + 1]
        return tuple(Read(text, self._boxes["label", i]) for i, text in enumerate(labels))

    @property
    def top(self) -> Read:
        """The number at the end of the axis."""
        return Read(str(self.chart.top), self._boxes["top",])

    def bar(self, index: int) -> Read:
        """How far a bar goes: its share of the axis."""
        return Read(self._share(index), self._boxes["bar", index])

    def _share(self, index: int) -> str:
        permille = round(1000 * self.chart.values[index] / self.chart.top)
        return f"0.{permille:03d}" if permille < 1000 else "1.000"

    def call(self, *bars: int) -> Use:
        """Turns the shares of bars into their value, or the sum of their values."""
        shares = [self._share(i) for i in bars]
        inner = f"({'+'.join(shares)})" if len(bars) > 1 else shares[0]
        value = sum(map(Decimal, shares), Decimal(0)) * self.chart.top
        return Use(f"calculator({self.chart.top}*{inner})", plain(value))

    def item(
        self, kind: str, slots: dict[str, str], truth: str, check: Callable[[str], bool],
        reads: tuple[Read, ...], uses: tuple[Use, ...] = (),
    ) -> Item:  # fmt: skip
        """A question about the chart."""
        form = grammar(f"chart.{kind}").draw(self.rng, held_out=self.style.held_out)
        return Item(
            f"chart.{kind}",
            form.format(**slots),
            truth,
            check,
            pictures=(self.picture,),
            reads=reads,
            uses=uses,
            seen=self.seen,
        )


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws a chart, its picture and a question about it."""
    plot = Plot(rng, style, draw_chart(rng, held_out=style.held_out))
    kind = str(
        rng.choice(("value", "most", "least", "sum", "above"), p=(0.4, 0.15, 0.1, 0.2, 0.15))
    )
    return _MAKERS[kind](plot)


def plain(value: Decimal) -> str:
    """Writes a number as the calculator does."""
    return f"{value.normalize():f}"


def value_item(plot: Plot) -> Item:
    """The value of one bar."""
    return bar_item(plot, int(plot.rng.integers(len(plot.chart.labels))))


def bar_item(plot: Plot, i: int) -> Item:
    """The value of a given bar: its share of the axis times the axis."""
    label, use = plot.chart.labels[i], plot.call(i)
    check = partial(is_near, truth=plot.chart.values[i], share=TOLERANCE)
    reads = (*plot.names(i), plot.top, plot.bar(i))
    truth = f"{label} is at {use.result}."
    return plot.item("value", {"label": label}, truth, check, reads, (use,))


def _extreme(plot: Plot, *, most: bool) -> Item:
    """The highest or lowest bar; all are read, since a small view of the whole shows too little."""
    shares = [plot.bar(i).text for i in range(len(plot.chart.labels))]
    best = max(shares) if most else min(shares)
    if shares.count(best) > 1:  # nobody can say which
        return value_item(plot)
    i = shares.index(best)
    label = plot.chart.labels[i]
    others = tuple(one for one in plot.chart.labels if one != label)
    word, kind = ("highest", "most") if most else ("lowest", "least")
    check = partial(says, truth=label, rivals=others)
    bars = tuple(plot.bar(k) for k in range(len(shares)))
    item = plot.item(kind, {}, f"{label} is the {word}.", check, bars)
    return replace(item, last=(plot.names(i)[i],))


def _sum(plot: Plot) -> Item:
    chart = plot.chart
    one, two = plot.rng.permutation(len(chart.labels))[:2].tolist()
    slots = {"label": chart.labels[one], "other": chart.labels[two]}
    first, last = sorted((one, two))
    use = plot.call(first, last)
    value = chart.values[one] + chart.values[two]
    check = partial(is_near, truth=value, share=TOLERANCE)
    names = plot.names(last)
    reads = (
        *names[: first + 1], plot.bar(first), *names[first + 1 :], plot.bar(last), plot.top,
    )  # fmt: skip
    return plot.item("sum", slots, f"The sum is {use.result}.", check, reads, (use,))


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
    share = Decimal(limit) / Decimal(chart.top)
    if len(written := plain(share)) > LONGEST_SHARE:  # a third has no end
        return value_item(plot)
    use = Use(f"calculator({limit}/{chart.top})", written)
    item = plot.item("above", slots, truth, partial(says, truth=str(count)), (plot.top,), (use,))
    # Each bar is compared with the limit as it is read, so that is known first.
    return replace(item, last=tuple(plot.bar(i) for i in range(len(chart.values))))


_MAKERS: dict[str, Callable[[Plot], Item]] = {
    "value": value_item,
    "most": partial(_extreme, most=True),
    "least": partial(_extreme, most=False),
    "sum": _sum,
    "above": _above,
}
