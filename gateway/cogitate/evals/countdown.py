"""Countdown: combine four numbers, each used once, with + - * so that they make a target.

Puzzles are made backwards, by a random derivation, so every one has an answer. Puzzles are split
by a hash of (sorted numbers, target): a tenth is held out, and training never sees those.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from cogitate.evals.boards import HANDWRITTEN_SHARE, Board, render_board
from cogitate.evals.render import COLOUR_NAMES, Card, Pixels, add_pixel_noise, to_png
from cogitate.evals.sources import Source, held_out_source

NUMBER_COUNT = 4
LARGEST_NUMBER = 20
SMALLEST_TARGET, LARGEST_TARGET = 5, 200
LARGEST_RESULT = 399
HELD_OUT_ONE_IN = 10
OPERATORS = "+-*"

QUESTION_FORMS = (
    "Use each number on the {colour} cards once with + - * to make {target}.",
    "Make {target} from the numbers on the {colour} cards, each used once, with + - *.",
    "Combine the {colour} cards with + - * so that they make {target}.",
)


@dataclass(frozen=True)
class Step:
    """One calculation, `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


@dataclass(frozen=True)
class Puzzle:
    """Four numbers, a target and one derivation that reaches it."""

    numbers: tuple[int, ...]
    target: int
    steps: tuple[Step, ...]

    @property
    def is_held_out(self) -> bool:
        """Tells whether the puzzle belongs to the evaluation split."""
        key = f"{sorted(self.numbers)}>{self.target}".encode()
        return hashlib.sha256(key).digest()[0] % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class CountdownQuestion:
    """A puzzle on a board: four cards of one colour carry its numbers in reading order."""

    board: Board
    picture: Pixels
    colour: int
    text: str
    puzzle: Puzzle


def apply(left: int, operator: str, right: int) -> int:
    """Returns the value of one calculation."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def derive(rng: np.random.Generator, numbers: tuple[int, ...]) -> tuple[Step, ...] | None:
    """Combines the numbers in random pairs; None if a result is out of 0..399 on the way.

    The larger number of a pair is always written first, so there are no negative results.
    """
    pool = list(numbers)
    steps = []
    while len(pool) > 1:
        first = int(rng.random() * len(pool))
        second = (first + 1 + int(rng.random() * (len(pool) - 1))) % len(pool)
        left, right = max(pool[first], pool[second]), min(pool[first], pool[second])
        operator = OPERATORS[int(rng.random() * 3)]
        result = apply(left, operator, right)
        if result > LARGEST_RESULT:
            return None
        pool = [number for i, number in enumerate(pool) if i not in (first, second)] + [result]
        steps.append(Step(left, operator, right, result))
    return tuple(steps)


def draw_puzzle(rng: np.random.Generator, *, held_out: bool) -> Puzzle:
    """Draws a puzzle of the split asked for."""
    while True:
        numbers = tuple(int(n) for n in rng.integers(1, LARGEST_NUMBER + 1, NUMBER_COUNT))
        steps = derive(rng, numbers)
        if steps is None or not SMALLEST_TARGET <= steps[-1].result <= LARGEST_TARGET:
            continue
        puzzle = Puzzle(numbers, steps[-1].result, steps)
        if puzzle.is_held_out == held_out:
            return puzzle


def lay_out(rng: np.random.Generator, puzzle: Puzzle) -> tuple[Board, int]:
    """Places the puzzle's numbers on a board as the four cards of one colour; returns both."""
    shapes = ((2, 3), (2, 4), (3, 2), (3, 3), (3, 4))
    rows, columns = shapes[rng.integers(len(shapes))]
    colour = int(rng.integers(len(COLOUR_NAMES)))
    others = [c for c in range(len(COLOUR_NAMES)) if c != colour]
    places = sorted(rng.choice(rows * columns, NUMBER_COUNT, replace=False))
    numbers = dict(zip((int(place) for place in places), puzzle.numbers, strict=True))
    cards = []
    for place in range(rows * columns):
        is_handwritten = bool(rng.random() < HANDWRITTEN_SHARE)
        if place in numbers:
            cards.append(Card(numbers[place], colour, is_handwritten))
        else:
            number = int(rng.integers(1, LARGEST_NUMBER + 1))
            cards.append(Card(number, others[rng.integers(len(others))], is_handwritten))
    return Board(rows, columns, tuple(cards)), colour


def draw_question(
    rng: np.random.Generator, *, noise: float, source: Source, held_out: bool, cell_px: int = 64
) -> CountdownQuestion:
    """Draws a puzzle, its board, the picture and the words of the question."""
    puzzle = draw_puzzle(rng, held_out=held_out)
    board, colour = lay_out(rng, puzzle)
    form = QUESTION_FORMS[rng.integers(len(QUESTION_FORMS))]
    clean = render_board(rng, board, noise=noise, source=source, cell_px=cell_px)
    picture = add_pixel_noise(rng, clean, noise)
    text = form.format(colour=COLOUR_NAMES[colour], target=puzzle.target)
    return CountdownQuestion(board, picture, colour, text, puzzle)


def held_out_questions(
    limit: int, *, noise: float, seed: int
) -> list[tuple[CountdownQuestion, bytes]]:
    """Returns the first `limit` held-out puzzles with their PNG pictures; same for one seed."""
    source = held_out_source()
    questions = []
    for index in range(limit):
        rng = np.random.default_rng((seed, 4, round(noise * 1000), index))
        question = draw_question(rng, noise=noise, source=source, held_out=True)
        questions.append((question, to_png(question.picture)))
    return questions
