"""Boards of coloured cards that carry words instead of numbers: what lies where, and the drawing.

1 to 3 rows of 2 to 4 cards; no two words on a board are the same. Marks on the canvas are
("card", i) in reading order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cogitate.evals import canvas as c
from cogitate.evals import nouns
from cogitate.evals.canvas import Canvas
from cogitate.evals.items import Style
from cogitate.evals.render import COLOUR_NAMES, COLOURS

SHAPES = ((1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (3, 4))
LIGHT = ("yellow", "orange")


@dataclass(frozen=True)
class Labels:
    """Cards in reading order: `words` and the indices of their `colours`."""

    rows: int
    columns: int
    words: tuple[str, ...]
    colours: tuple[int, ...]

    @property
    def seen(self) -> str:
        """What the picture shows."""
        return f"{self.rows} rows of {self.columns} cards"

    def words_of(self, colour: int) -> tuple[str, ...]:
        """Returns the words on the cards of a colour."""
        return tuple(w for w, k in zip(self.words, self.colours, strict=True) if k == colour)

    @property
    def single_colours(self) -> tuple[int, ...]:
        """The colours that one card alone has."""
        return tuple(k for k in sorted(set(self.colours)) if self.colours.count(k) == 1)


def draw_labels(rng: np.random.Generator, words: tuple[str, ...], *, held_out: bool) -> Labels:
    """Invents a board on which at least one colour is on one card alone."""
    rows, columns = SHAPES[rng.integers(len(SHAPES))]
    chosen = nouns.draw(rng, words, rows * columns, held_out=held_out)
    while True:
        colours = rng.integers(0, len(COLOUR_NAMES), rows * columns).tolist()
        labels = Labels(rows, columns, tuple(chosen), tuple(colours))
        if labels.single_colours:
            return labels


def render_labels(rng: np.random.Generator, labels: Labels, style: Style) -> Canvas:
    """Draws a board; cards are as wide as the longest word needs."""
    size = int(rng.integers(18, 31))
    upper = bool(rng.random() < 0.25)
    face = c.draw_face(rng, style.source.fonts)
    font = face.at(size, bold=bool(rng.random() < 0.5))
    shown = [word.upper() if upper else word for word in labels.words]
    wide = max(font.getlength(word) for word in shown) + size * rng.uniform(1.0, 2.2)
    tall = size * rng.uniform(2.4, 4.0)
    gap = size * rng.uniform(0.3, 0.8)
    paper = tuple(int(v) for v in rng.integers(226, 252, 3))
    canvas = Canvas(
        labels.columns * (wide + gap) + gap,
        labels.rows * (tall + gap) + gap,
        (paper[0], paper[1], paper[2]),
    )
    for i, word in enumerate(shown):
        row, column = divmod(i, labels.columns)
        x, y = gap + column * (wide + gap), gap + row * (tall + gap)
        name, shade = COLOURS[labels.colours[i]]
        fill = np.clip(np.array(shade) + rng.integers(-12, 13, 3), 0, 255).tolist()
        box = (x, y, x + wide, y + tall)
        canvas.draw.rounded_rectangle(box, size * 0.45, fill=(fill[0], fill[1], fill[2]))
        ink = (30, 30, 34) if name in LIGHT else (255, 255, 255)
        canvas.text(x + wide / 2, y + tall / 2, word, font, ink, "mm")
        canvas.marks["card", i] = box
    return canvas
