"""Figures to compare, drawn anew each time, so that comparing is learned and no figures are.

Whether one is the best so far, more than a limit, or the very one that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from cogitate.evals.charts import LIMIT_GAP
from cogitate.evals.items import Box, Item, Read

from mini.scripts import COUNTED, found_last, is_named

COUNT = 14
FIGURE = re.compile(r"\d+(?:\.\d+)?")
DECIMALS_OF_BARS = 3
BETTER_SHARE, SAME_SHARE = 0.4, 0.3


def draw(rng: np.random.Generator, item: Item) -> list[tuple[str, bool]]:
    """Draws figures like those of an item, each with whether it is wanted."""
    match item.kind.rpartition(".")[2]:
        case "above":
            return _above(rng, _limit(item))
        case "who":
            return _alike(
                rng, next(one.text for one in item.reads if is_named(one.text, item.text))
            )
    return _best(rng, item.reads[0].text, is_most=item.kind.endswith("most"))


def compared(item: Item) -> tuple[Read, ...]:
    """The reads that are compared with each other, or with what was calculated before them."""
    return item.last if _is_limited(item) else item.reads


def swap(
    rng: np.random.Generator, item: Item, pool: Sequence[tuple[str, int]]
) -> tuple[Item, list[int]]:
    """Puts figures of a pool (text, patch) in the place of those compared; returns the patches.

    What is to be read or said after them follows.
    """
    reads = compared(item)
    drawn: dict[str, int] = {}
    while len(drawn) < len(reads):
        text, patch = pool[rng.integers(len(pool))]
        if not (_is_limited(item) and abs(float(text) - _limit(item)) < LIMIT_GAP):
            drawn.setdefault(text, patch)
    swapped = tuple(replace(read, text=text) for read, text in zip(reads, drawn, strict=True))
    if _is_limited(item):
        item = replace(item, last=swapped)
        count = sum(found_last(item))
        told = "There is 1 bar." if count == 1 else f"There are {count} bars."
        return replace(item, truth=told), list(drawn.values())
    old, new = (_extreme(item, figures).box for figures in (reads, swapped))
    last = tuple(replace(read, box=_moved(read.box, old, new)) for read in item.last)
    return replace(item, reads=swapped, last=last), list(drawn.values())


def is_reckoned(item: Item) -> bool:
    """Tells whether two figures that were read go into the last calculation."""
    return bool(item.uses) and len(_reckoned(item)) == 2


def redraw(rng: np.random.Generator, item: Item) -> Item:
    """Puts new figures in the place of those that go into the last calculation.

    The larger stands again where the larger was, so that the calculation is the same.
    """
    old = sorted(_reckoned(item), key=float)
    new: set[str] = set()
    while len(new) < len(old):
        decimals = len(old[len(new)].partition(".")[2])
        top = 1.0 if decimals == DECIMALS_OF_BARS else float(rng.choice((9, 99, 999)))
        new.add(f"{rng.uniform(0.02, 1.0) * top:.{decimals}f}")
    swapped = dict(zip(old, sorted(new, key=float), strict=True))
    use = item.uses[-1]
    told = FIGURE.sub(lambda match: swapped.get(match[0], match[0]), use.call)
    reads = tuple(replace(read, text=swapped.get(read.text, read.text)) for read in item.reads)
    return replace(item, reads=reads, uses=(*item.uses[:-1], replace(use, call=told)))


def _reckoned(item: Item) -> set[str]:
    told = set(FIGURE.findall(item.uses[-1].call))
    return {read.text for read in item.reads if read.text in told and "." in read.text}


def _is_limited(item: Item) -> bool:
    return item.kind.endswith(COUNTED)


def _limit(item: Item) -> float:
    return float(item.uses[-1].result)


def _extreme(item: Item, reads: Sequence[Read]) -> Read:
    pick = max if item.kind.endswith("most") else min
    return pick(reads, key=lambda read: float(read.text))


def _moved(box: Box, old: Box, new: Box) -> Box:
    """Moves a box as far as `new` is from `old`, but not off the picture."""
    x, y = new[0] - old[0], new[1] - old[1]
    x0, y0, x1, y1 = (
        min(max(edge + by, 0), 100) for edge, by in zip(box, (x, y, x, y), strict=True)
    )
    return x0, y0, x1, y1


def _best(rng: np.random.Generator, like: str, *, is_most: bool) -> list[tuple[str, bool]]:
    """Many are the best so far, by little or by much."""
    decimals = len(like.partition(".")[2])
    top = 1.0 if decimals == DECIMALS_OF_BARS else float(rng.uniform(8, 120))
    best = f"{top * rng.uniform(*((0.05, 0.5) if is_most else (0.5, 1.0))):.{decimals}f}"
    drawn = {best: True}
    while len(drawn) < COUNT:
        is_better = rng.random() < BETTER_SHARE
        end = top if is_better == is_most else 0.0
        gap = (end - float(best)) * rng.uniform() ** 2 * (0.5 if is_better else 1.0)
        text = f"{float(best) + gap:.{decimals}f}"
        if text not in drawn:
            drawn[text] = float(text) > float(best) if is_most else float(text) < float(best)
            best = text if drawn[text] else best
    return list(drawn.items())


def _above(rng: np.random.Generator, limit: float) -> list[tuple[str, bool]]:
    """Shares of an axis on either side of a limit, most of them near it."""
    drawn = []
    for _ in range(COUNT):
        end = 1.0 if rng.random() < 0.5 else 0.0
        text = f"{limit + (end - limit) * rng.uniform() ** 2:.{DECIMALS_OF_BARS}f}"
        drawn.append((text, float(text) > limit))
    return drawn


def _alike(rng: np.random.Generator, wanted: str) -> list[tuple[str, bool]]:
    """Sometimes the very same, else one that differs in a digit or in all of them."""
    drawn = []
    digits = [i for i, letter in enumerate(wanted) if letter.isdigit()]
    for _ in range(COUNT):
        text = list(wanted)
        pick = rng.random()
        changed = digits if pick > (1 + SAME_SHARE) / 2 else [digits[rng.integers(len(digits))]]
        for i in changed if pick > SAME_SHARE else []:
            text[i] = str(rng.integers(10))
        drawn.append(("".join(text), "".join(text) == wanted))
    return drawn
