"""What the encoder learns to read from: crops of drawn items with their text, pages with places.

Everything that is marked on a page (cells, cards, labels, bars) is cut out once, its box a little
off as an inexact zoom would be. Arrays, N crops and M pages:
  crops (N, 64, 64, 3) uint8, texts (N, LONGEST) int8 indices of LETTERS from the left,
  levels (N,) int16: how far a bar goes, in per mille, -1 for text;
  pages (M, 64, 64, 3) uint8, places (M, SLOTS, 4) int8: boxes in percent by slot, -1 for none.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cogitate.evals import bars, cards, nouns, sheets
from cogitate.evals.items import Box, Style
from cogitate.evals.render import Pixels
from PIL import Image
from tqdm import tqdm

from mini.fonts import training_source
from mini.views import crop_view, whole_view

# Index 0 is nothing; letters are read whatever their case.
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789.:/^-&'"
LONGEST = 14
ROWS, COLUMNS, CARDS, BARS = 8, 4, 12, 7
CELL, CARD, LABEL, BAR, TOP, TOTAL = 0, 32, 44, 51, 58, 59
SLOTS = 60
INVENTED_SHARE = 0.6
SHARD_PAGES = 100
JITTER_SHARE = 0.7
SIDE_JITTER, BAR_JITTER = 0.04, 0.01
LARGEST_NOISE = 2.0

Marks = dict[Hashable, tuple[str, float]]


@dataclass(frozen=True)
class Glimpses:
    """What was drawn, see the module for shapes; arrays are only read."""

    crops: Pixels
    texts: npt.NDArray[np.int8]
    levels: npt.NDArray[np.int16]
    pages: Pixels
    places: npt.NDArray[np.int8]


def shake(rng: np.random.Generator, box: Box, *, is_bar: bool = False) -> Box:
    """Moves the edges of most boxes a little, by a share of the box and by up to a percent.

    Those of bars less: how far a bar goes is told by the edges, too.
    """
    if rng.random() > JITTER_SHARE:
        return box
    sides = np.array((box[2] - box[0], box[3] - box[1]) * 2)
    far = (BAR_JITTER if is_bar else SIDE_JITTER) * sides + 0.3
    moved = np.rint(np.array(box) + rng.normal(size=4) * far).astype(int)
    x0, y0, x1, y1 = (int(value) for value in np.clip(moved, 0, 100))
    x0, y0 = min(x0, 99), min(y0, 99)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def slot(mark: Hashable) -> int | None:
    """Returns the slot of a mark on a page."""
    match mark:
        case ("cell", int(row), int(column)):
            return CELL + row * COLUMNS + column
        case ("card", int(i)):
            return CARD + i
        case ("label", int(i)):
            return LABEL + i
        case ("bar", int(i)):
            return BAR + i
        case ("top",):
            return TOP
        case "total":
            return TOTAL
    return None


def _page(rng: np.random.Generator, style: Style) -> tuple[Pixels, dict[Hashable, Box], Marks]:
    """Draws a page, its boxes, and what each says: a text, or a level for a bar."""
    pick = rng.random()
    if pick < 0.3:
        words = nouns.WORDS if rng.random() < 0.7 else nouns.GOODS
        labels = cards.draw_labels(rng, words, held_out=style.held_out)
        drawn = cards.render_labels(rng, labels, style).photo(rng, style.noise)
        marks: Marks = {("card", i): (word, -1.0) for i, word in enumerate(labels.words)}
    elif pick < 0.7:
        kind = sheets.KINDS[rng.integers(3)]
        sheet = sheets.draw_sheet(rng, kind, held_out=style.held_out)
        drawn = sheets.render_sheet(rng, sheet, style).photo(rng, style.noise)
        marks = {
            ("cell", i, j): (cell, -1.0)
            for i, row in enumerate(sheet.rows)
            for j, cell in enumerate(row)
        }
        if sheet.total:
            marks["total"] = (sheet.total, -1.0)
    else:
        chart = bars.draw_chart(rng, held_out=style.held_out)
        drawn = bars.render_chart(rng, chart, style).photo(rng, style.noise)
        marks = {("label", i): (label, -1.0) for i, label in enumerate(chart.labels)}
        marks |= {("bar", i): ("", v / chart.top) for i, v in enumerate(chart.values)}
        marks["top",] = (str(chart.top), -1.0)
    return *drawn, marks


def spelled(text: str) -> list[int] | None:
    """Returns a text's letters as indices; None for one that is too long or strange."""
    known = [LETTERS.find(letter) for letter in text.lower()]
    if len(known) > LONGEST or min(known, default=0) < 0:
        return None
    return known + [0] * (LONGEST - len(known))


def draw_shard(seed: int, count: int, *, style: Style | None = None) -> Glimpses:
    """Draws `count` pages; in the training style unless another is given."""
    rng, source = np.random.default_rng(seed), training_source()
    token = nouns.INVENTED.set(INVENTED_SHARE)
    crops, texts, levels, pages = [], [], [], []
    places = np.full((count, SLOTS, 4), -1, np.int8)
    for i in range(count):
        one = style or Style(float(rng.uniform(0, LARGEST_NOISE)), source, held_out=False)
        pixels, boxes, marks = _page(rng, one)
        image = Image.fromarray(pixels)
        pages.append(whole_view(image))
        for mark, box in boxes.items():
            where = slot(mark)
            if where is None or mark not in marks:
                continue
            places[i, where] = box
            text, level = marks[mark]
            letters = spelled(text)
            if letters is None:
                continue
            crops.append(crop_view(image, shake(rng, box, is_bar=level >= 0)))
            texts.append(letters)
            levels.append(round(1000 * level) if level >= 0 else -1)
    nouns.INVENTED.reset(token)
    return Glimpses(
        np.stack(crops), np.array(texts, np.int8), np.array(levels, np.int16), np.stack(pages),
        places,
    )  # fmt: skip


def _joined(shards: Iterator[Glimpses]) -> Glimpses:
    parts = list(shards)
    names = Glimpses.__dataclass_fields__
    return Glimpses(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def draw(directory: Path, *, pages: int, seed: int, processes: int = 2) -> None:
    """Draws at least `pages` pages into `directory`; does nothing if that is done already."""
    if (directory / "places.npy").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    seeds = range(seed, seed + -(-pages // SHARD_PAGES))
    with ProcessPoolExecutor(processes) as pool:
        shards = pool.map(partial(draw_shard, count=SHARD_PAGES), seeds)
        done = tqdm(shards, total=len(seeds), desc="glimpses", unit="shard")
        glimpses = _joined(iter(done))
    for name in Glimpses.__dataclass_fields__:
        np.save(directory / f"{name}.npy", getattr(glimpses, name))


def open_glimpses(directory: Path) -> Glimpses:
    """Maps what was drawn into memory."""
    names = Glimpses.__dataclass_fields__
    return Glimpses(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in names))
