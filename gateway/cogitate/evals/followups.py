"""Conversations about one picture: a question, "and the pears?", "how much is that together?".

An item is the last question; `earlier` has the turns before it with their right answers. The first
turn of a conversation is a question like any other, so only the later ones are asked here.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache, partial

import numpy as np
from cogitate.evals.bars import draw_chart
from cogitate.evals.charts import Plot, bar_item, plain
from cogitate.evals.checks import says
from cogitate.evals.grammar import Grammar
from cogitate.evals.items import Item, Style, Use
from cogitate.evals.sheets import Kind, draw_sheet
from cogitate.evals.tables import CELLS, Page, cell_item, row_name, two_item

_RULES = {
    "so": "[|ok, |thanks, |thank you. |good. |and now: |fine, |right, |I see. |great, ]",
    "too": "[|, please| too|, then| as well]",
    "it": "[|it |that |the one ]",
    "more": (
        "<so>[[and|what about|how about|and what about|now] [|the one of |that of |the same for ]"
        "{row}<too>?|[the same|and the same|now the same|do the same|again|once more] for "
        "{row}<too>[?|.]|[and|now|next:] {row}<too>[?|.]|[can|could|would] you do {row}<too>?]"
    ),
    "sum": (
        "<so>[[and|so|then] [what is that|what's that|how much is that|what are they|how much are "
        "they] [together|in all|altogether|added up]<too>?|[what is|what's|give me|tell me|find] "
        "[the sum|the total|the sum of the two|both together|the two added up|the sum of both]"
        "<too>[?|.]|[add|sum] [them|both|the two|these] up<too>.|[together|in total|both "
        "together|in sum]<too>?]"
    ),
    "difference": (
        "<so>[[and|so|then] [what is|what's|how big is|how large is] the difference<too>?"
        "|[how far apart are|how different are|how much is between] [they|the two|both|these]<too>?"
        "|[give me|tell me|find|work out] [the difference|how far apart they are|the gap|the "
        "difference of both|the difference between them]<too>[?|.]|[by how much do|how much do] "
        "[they|the two|both|these] differ<too>?]"
    ),
}


@cache
def phrase(kind: str) -> Grammar:
    """Returns the grammar of "more", "sum" or "difference"."""
    return Grammar(f"<{kind}>", _RULES)


def draw_item(rng: np.random.Generator, style: Style) -> Item:
    """Draws a conversation of two or three questions; the last one is to be answered."""
    pick = rng.random()
    if pick < 0.4:
        return _about_receipt(rng, style)
    if pick < 0.7:
        return _about_chart(rng, style)
    return _about_cells(rng, style)


def _say(rng: np.random.Generator, kind: str, style: Style, **slots: str) -> str:
    return phrase(kind).draw(rng, held_out=style.held_out).format(**slots)


def _about_cells(rng: np.random.Generator, style: Style) -> Item:
    """The same about another row of a timetable or a lab report."""
    kinds: tuple[Kind, ...] = ("timetable", "lab")
    kind = kinds[rng.integers(2)]
    page = Page(rng, style, draw_sheet(rng, kind, held_out=style.held_out))
    columns = [name for name in page.sheet.columns if name in CELLS[kind]]
    column = columns[rng.integers(len(columns))]
    rows = rng.permutation(len(page.sheet.rows))[: 2 + int(rng.random() < 0.4)].tolist()
    items = [cell_item(page, row, column) for row in rows]
    texts = [items[0].text]
    texts += [_say(rng, "more", style, row=row_name(page.sheet, row)) for row in rows[1:]]
    return _last(f"{kind}.more", items, texts)


def _about_receipt(rng: np.random.Generator, style: Style) -> Item:
    """Two prices, then what they come to or by how much they differ."""
    page = Page(rng, style, draw_sheet(rng, "receipt", held_out=style.held_out))
    one, two = rng.permutation(len(page.sheet.rows))[:2].tolist()
    items = [cell_item(page, row, "Price") for row in (one, two)]
    texts = [items[0].text, _say(rng, "more", style, row=row_name(page.sheet, two))]
    if rng.random() < 0.4:
        return _last("receipt.more", items, texts)
    is_sum = bool(rng.random() < 0.5)
    last = two_item(page, one, two, is_sum=is_sum, is_told=True)
    texts.append(_say(rng, "sum" if is_sum else "difference", style))
    # Both prices have been said already: nothing has to be read again.
    return _last(last.kind, [*items, last], texts, is_told=True)


def _about_chart(rng: np.random.Generator, style: Style) -> Item:
    """Two bars, then their sum or difference."""
    plot = Plot(rng, style, draw_chart(rng, held_out=style.held_out))
    one, two = rng.permutation(len(plot.chart.labels))[:2].tolist()
    items = [bar_item(plot, i) for i in (one, two)]
    values = [Decimal(item.uses[0].result) for item in items]
    texts = [items[0].text, _say(rng, "more", style, row=plot.chart.labels[two])]
    if rng.random() < 0.4:
        return _last("chart.more", items, texts)
    is_sum = bool(rng.random() < 0.5)
    large, small = max(values), min(values)
    value = large + small if is_sum else large - small
    texts.append(_say(rng, "sum" if is_sum else "difference", style))
    call = f"calculator({plain(large)}{'+' if is_sum else '-'}{plain(small)})"
    name = "sum" if is_sum else "difference"
    last = Item(
        f"chart.{name}",
        texts[-1],
        f"The {name} is {plain(value)}.",
        # The numbers are in the conversation: here no eye is needed, so none is forgiven.
        partial(says, truth=plain(value)),
        pictures=(plot.picture,),
        uses=(Use(call, plain(value)),),
    )
    return _last(last.kind, [*items, last], texts, is_told=True)


def _last(kind: str, items: list[Item], texts: list[str], *, is_told: bool = False) -> Item:
    """The last turn of a conversation, the others before it."""
    last = items[-1]
    turns = zip(texts[:-1], items[:-1], strict=True)
    return Item(
        f"followup.{kind}",
        texts[-1],
        last.truth,
        last.check,
        pictures=last.pictures,
        reads=() if is_told else last.reads,
        uses=last.uses,
        earlier=tuple((text, item.truth) for text, item in turns),
        seen=last.seen,
    )
