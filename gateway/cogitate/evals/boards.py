"""Boards of coloured cards: what lies where, how it is drawn, and questions about one colour.

A board has 2 or 3 rows of 2 to 4 cards. Cells are (row, column), counted from zero, in reading
order. Named dimensions: R rows, C columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cogitate.evals.render import (
    CARD_PX,
    COLOUR_NAMES,
    Card,
    Pixels,
    add_pixel_noise,
    render_card,
    to_png,
)
from cogitate.evals.sources import Source, held_out_source

MAX_READ_CARDS = 4
HANDWRITTEN_SHARE = 0.35
FAVOURED_SHARE = 0.22

Cell = tuple[int, int]
Box = tuple[int, int, int, int]

QUESTION_FORMS: dict[str, tuple[str, ...]] = {
    "sum": (
        "What is the sum of the numbers on the {colour} cards?",
        "What is the sum of the {colour} cards?",
        "Add up the numbers on the {colour} cards.",
        "What do the {colour} cards add up to?",
        "What is the total of the {colour} cards?",
    ),
    "max": (
        "What is the largest number on the {colour} cards?",
        "What is the largest number on a {colour} card?",
        "What is the biggest {colour} number?",
        "Which number on the {colour} cards is the highest?",
    ),
    "min": (
        "What is the smallest number on the {colour} cards?",
        "What is the smallest number on a {colour} card?",
        "What is the smallest {colour} number?",
        "Which number on the {colour} cards is the lowest?",
    ),
    "diff": (
        "What is the difference between the largest and the smallest number on the {colour} cards?",
        "What is the difference between the largest and the smallest {colour} card?",
        "How far apart are the largest and the smallest {colour} number?",
    ),
    "count": (
        "How many {colour} cards are there?",
        "How many cards are {colour}?",
        "Count the {colour} cards.",
        "How many {colour} cards do you see?",
    ),
}
KINDS = tuple(QUESTION_FORMS)


def _span(numbers: Sequence[int]) -> int:
    return max(numbers) - min(numbers)


RULES: dict[str, Callable[[Sequence[int]], int]] = {
    "sum": sum,
    "max": max,
    "min": min,
    "diff": _span,
    "count": len,
}


@dataclass(frozen=True)
class Board:
    """Cards in reading order on a grid of `rows` x `columns`."""

    rows: int
    columns: int
    cards: tuple[Card, ...]

    def cells_of(self, colour: int) -> tuple[Cell, ...]:
        """Returns the cells of one colour in reading order."""
        places = (i for i, card in enumerate(self.cards) if card.colour == colour)
        return tuple(divmod(i, self.columns) for i in places)

    def numbers_of(self, colour: int) -> tuple[int, ...]:
        """Returns the numbers of one colour in reading order."""
        return tuple(card.number for card in self.cards if card.colour == colour)


@dataclass(frozen=True)
class BoardQuestion:
    """A question about one colour of a board and its true answer."""

    board: Board
    picture: Pixels
    kind: str
    colour: int
    text: str
    truth: int


def cell_box(cell: Cell, rows: int, columns: int) -> Box:
    """Returns the box (x0, y0, x1, y1) of a cell in whole percent of the picture."""
    row, column = cell
    return (
        round(100 * column / columns),
        round(100 * row / rows),
        round(100 * (column + 1) / columns),
        round(100 * (row + 1) / rows),
    )


def draw_number(rng: np.random.Generator) -> int:
    """Draws a card's number: a quarter below 10, a half below 100, a quarter below 1000."""
    bounds = ((0, 10), (10, 100), (100, 1000))
    low, high = bounds[rng.choice(3, p=(0.25, 0.5, 0.25))]
    return int(rng.integers(low, high))


def draw_board(
    rng: np.random.Generator, number: Callable[[np.random.Generator], int] = draw_number
) -> Board:
    """Draws a board on which one colour is more frequent than the others."""
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    favoured = int(rng.integers(len(COLOUR_NAMES)))
    cards = []
    for _ in range(rows * columns):
        is_favoured = rng.random() < FAVOURED_SHARE
        colour = favoured if is_favoured else int(rng.integers(len(COLOUR_NAMES)))
        cards.append(Card(number(rng), colour, bool(rng.random() < HANDWRITTEN_SHARE)))
    return Board(rows, columns, tuple(cards))


def render_board(
    rng: np.random.Generator, board: Board, *, noise: float, source: Source, cell_px: int = CARD_PX
) -> Pixels:
    """Draws a board, (R * cell_px, C * cell_px, 3), without pixel noise. Advances `rng`."""
    picture = np.zeros((board.rows * cell_px, board.columns * cell_px, 3), np.uint8)
    shade = rng.integers(205, 250, 3)
    for i, card in enumerate(board.cards):
        tint = np.clip(shade + rng.integers(-6, 7, 3), 0, 255)
        background = (int(tint[0]), int(tint[1]), int(tint[2]))
        row, column = divmod(i, board.columns)
        picture[row * cell_px : (row + 1) * cell_px, column * cell_px : (column + 1) * cell_px] = (
            render_card(rng, card, noise=noise, source=source, background=background, size=cell_px)
        )
    return picture


def draw_question(
    rng: np.random.Generator, *, noise: float, source: Source, cell_px: int = CARD_PX
) -> BoardQuestion:
    """Draws a board and a question about a colour on it; at most four cards have to be read."""
    board = draw_board(rng)
    present = sorted({card.colour for card in board.cards})
    weights = np.array([len(board.cells_of(colour)) for colour in present], float)
    colour = int(rng.choice(present, p=weights / weights.sum()))
    numbers = board.numbers_of(colour)
    kind = KINDS[rng.integers(len(KINDS))] if len(numbers) <= MAX_READ_CARDS else "count"
    forms = QUESTION_FORMS[kind]
    text = forms[rng.integers(len(forms))].format(colour=COLOUR_NAMES[colour])
    clean = render_board(rng, board, noise=noise, source=source, cell_px=cell_px)
    picture = add_pixel_noise(rng, clean, noise)
    return BoardQuestion(board, picture, kind, colour, text, RULES[kind](numbers))


def answer_sentence(kind: str, colour: str, value: int) -> str:
    """Returns the sentence a right answer is given in."""
    if kind == "count":
        verb, noun = ("is", "card") if value == 1 else ("are", "cards")
        return f"There {verb} {value} {colour} {noun}."
    subject = {"sum": "sum", "max": "largest", "min": "smallest", "diff": "difference"}[kind]
    return f"The {subject} is {value}."


def held_out_questions(limit: int, *, noise: float, seed: int) -> list[tuple[BoardQuestion, bytes]]:
    """Returns the first `limit` held-out questions with their PNG pictures; same for one seed."""
    source = held_out_source()
    questions = []
    for index in range(limit):
        rng = np.random.default_rng((seed, round(noise * 1000), index))
        question = draw_question(rng, noise=noise, source=source)
        questions.append((question, to_png(question.picture)))
    return questions
