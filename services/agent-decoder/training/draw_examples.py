"""Draws the pictures in `examples/` from the held-out generator and asks the model about them.

    python services/agent-decoder/training/draw_examples.py

The first board, puzzle and scene that the shipped model answers right are kept, so that a first
try with the examples does not start with a miss; how often it is right is measured elsewhere.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from cogitate.evals import boards, countdown, easy_vqa
from cogitate.evals.checks import has_label, has_number, proves
from cogitate.evals.datasets import Question
from cogitate.evals.render import COLOUR_NAMES, add_pixel_noise, to_png
from cogitate.evals.sources import held_out_source
from evaluate import MODEL
from mini.agents import Agents, Task
from mini.words import AGENT_HINTS

EXAMPLES = Path(__file__).parents[3] / "examples"
CELL_PX = 128
NOISE = 0.3
SCENE_PX = 256
AGENT_COUNT = 8
FULL_BOARD = 12
TARGET = 26
RED = COLOUR_NAMES.index("red")


def board_candidates() -> Iterator[Question]:
    """Yields sums over three or four red cards on a full board."""
    source = held_out_source()
    for seed in range(2000):
        rng = np.random.default_rng((21, seed))
        board = boards.draw_board(rng)
        numbers = board.numbers_of(RED)
        if len(board.cards) != FULL_BOARD or len(numbers) not in (3, 4):
            continue
        clean = boards.render_board(rng, board, noise=NOISE, source=source, cell_px=CELL_PX)
        png = to_png(add_pixel_noise(rng, clean, NOISE))
        check = partial(has_number, truth=sum(numbers))
        text = "What is the sum of the red cards?"
        yield Question("board", "boards", text, png, str(sum(numbers)), check)


def countdown_candidates() -> Iterator[Question]:
    """Yields puzzles that make 26 from four red cards on a full board."""
    source = held_out_source()
    for seed in range(20000):
        rng = np.random.default_rng((22, seed))
        puzzle = countdown.draw_puzzle(rng, held_out=True)
        board, colour = countdown.lay_out(rng, puzzle)
        if puzzle.target != TARGET or colour != RED or len(board.cards) != FULL_BOARD:
            continue
        clean = boards.render_board(rng, board, noise=NOISE, source=source, cell_px=CELL_PX)
        png = to_png(add_pixel_noise(rng, clean, NOISE))
        text = countdown.QUESTION_FORMS[0].format(colour="red", target=TARGET)
        truth = ", ".join(str(step) for step in puzzle.steps) + "."
        check = partial(proves, numbers=puzzle.numbers, target=TARGET)
        yield Question("countdown", "countdown", text, png, truth, check)


def shape_candidates() -> Iterator[Question]:
    """Yields teal circles."""
    teal = easy_vqa.SHAPE_COLOUR_NAMES.index("teal")
    for seed in range(100):
        rng = np.random.default_rng((23, seed))
        circle = easy_vqa.SHAPES.index("circle")
        png = to_png(easy_vqa.draw_scene(rng, circle, teal, size=SCENE_PX))
        check = partial(has_label, truth="yes")
        yield Question("shape", "easy-vqa", "Is there a circle?", png, "Yes.", check)


def first_right(agents: Agents, candidates: Iterator[Question], temperature: float) -> Question:
    """Returns the first question that at least one agent answers right."""
    for question in candidates:
        hints = AGENT_HINTS if temperature else AGENT_HINTS[:1]
        tasks = [
            Task(question.text, question.image_png, hints[i % len(hints)])
            for i in range(AGENT_COUNT if temperature else 1)
        ]
        sessions = agents.run(tasks, temperature=temperature, seed=0)
        answers = [agents.answer(session) for session in sessions]
        if any(question.check(answer) for answer in answers):
            print(answers)
            return question
    raise LookupError("no candidate is answered right")


def main() -> None:
    """Writes the pictures and prints the questions that go with them."""
    agents = Agents(MODEL)
    EXAMPLES.mkdir(exist_ok=True)
    for candidates, temperature in (
        (board_candidates(), 0.0),
        (countdown_candidates(), 0.8),
        (shape_candidates(), 0.0),
    ):
        question = first_right(agents, candidates, temperature)
        assert question.image_png is not None
        (EXAMPLES / f"{question.id}.png").write_bytes(question.image_png)
        print(f"{question.id}.png: {question.text} -> {question.truth}")


if __name__ == "__main__":
    main()
