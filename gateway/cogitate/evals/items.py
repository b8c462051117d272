"""One drawn question in full: what is asked, what is true, and how one gets there.

An `Item` says where everything lies that has to be read and which tools lead from there to the
answer, so that evaluation, training traces and examples come from the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from cogitate.evals.render import Pixels
from cogitate.evals.sources import Source

# x0, y0, x1, y1 in whole percent of a picture.
Box = tuple[int, int, int, int]
Check = Callable[[str], bool]


@dataclass(frozen=True)
class Table:
    """A table the caller provides; its first column names the rows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def cell(self, row: str, column: str) -> str:
        """Returns a cell. Raises StopIteration or ValueError for one that is not there."""
        return next(one for one in self.rows if one[0] == row)[self.columns.index(column)]


@dataclass(frozen=True)
class Read:
    """Something that has to be read: what it says, and where it stands in which picture."""

    text: str
    box: Box
    picture: int = 0


@dataclass(frozen=True)
class Use:
    """A tool call on the way, such as `calculator(2*3)`, and its result; none where it fails."""

    call: str
    result: str


@dataclass(frozen=True)
class Style:
    """How an item is drawn: noise (see `render`), what with, and for which split."""

    noise: float
    source: Source
    held_out: bool


@dataclass(frozen=True)
class Item:
    """One question: the steps to its answer are `reads`, then `uses`, then `last`.

    `truth` is the sentence of a right answer, `earlier` the turns before it, each a question and
    its answer.
    """

    kind: str
    text: str
    truth: str
    check: Check
    pictures: tuple[Pixels, ...] = ()
    reads: tuple[Read, ...] = ()
    uses: tuple[Use, ...] = ()
    last: tuple[Read, ...] = ()
    tables: tuple[Table, ...] = ()
    tools: tuple[str, ...] = ()
    """Signatures of tools besides the trained ones, such as `shop.price(item)`."""
    earlier: tuple[tuple[str, str], ...] = ()
    seen: str = field(default="", compare=False)
    """What the whole picture shows, in a few words: the first thought of a trace."""


Draw = Callable[[np.random.Generator, Style], Item]
