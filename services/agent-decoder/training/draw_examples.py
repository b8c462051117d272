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
from cogitate.evals.render import COLOUR_NAMES, to_png
from cogitate.evals.sources import held_out_source
from evaluate import MODEL
from mini.agents import Agents, Task
from mini.words import AGENT_HINTS

EXAMPLES = Path(__file__).parents[3] / "examples"
CELL_PX = 128
NOISE = 0.3
SCENE_PX = 256
AGENT_COUNT = 8


def board_candidates() -> Iterator[Question]:
    """Yields sums over three or four cards on a full board."""
    source = held_out_source()
    for seed in range(1000):
        rng = np.random.default_rng((21, seed))
        item = boards.draw_question(rng, noise=NOISE, source=source, cell_px=CELL_PX)
        count = len(item.board.cells_of(item.colour))
        if item.kind != "sum" or count < 3 or len(item.board.cards) != 12:
            continue
        text = f"What is the sum of the {COLOUR_NAMES[item.colour]} cards?"
        png, truth = to_png(item.picture), item.truth
        yield Question(
            "board", "boards", text, png, str(truth), lambda a, t=truth: has_number(a, t)
        )


def countdown_candidates() -> Iterator[Question]:
    """Yields puzzles on a full board."""
    source = held_out_source()
    for seed in range(1000):
        rng = np.random.default_rng((22, seed))
        item = countdown.draw_question(
            rng, noise=NOISE, source=source, held_out=True, cell_px=CELL_PX
        )
        if len(item.board.cards) != 12:
            continue
        puzzle = item.puzzle
        form = countdown.QUESTION_FORMS[0]
        text = form.format(colour=COLOUR_NAMES[item.colour], target=puzzle.target)
        yield Question(
            "countdown",
            "countdown",
            text,
            to_png(item.picture),
            str(puzzle.target),
            partial(proves, numbers=puzzle.numbers, target=puzzle.target),
        )


def scene_candidates() -> Iterator[Question]:
    """Yields teal shapes."""
    teal = easy_vqa.SHAPE_COLOUR_NAMES.index("teal")
    for seed in range(100):
        rng = np.random.default_rng((23, seed))
        png = to_png(easy_vqa.draw_scene(rng, seed % 3, teal, size=SCENE_PX))
        text = "what is the color of the shape?"
        yield Question("shape", "easy-vqa", text, png, "teal", partial(has_label, truth="teal"))


def first_right(agents: Agents, candidates: Iterator[Question], temperature: float) -> Question:
    """Returns the first question that at least one agent answers right."""
    for question in candidates:
        hints = AGENT_HINTS if temperature else AGENT_HINTS[:1]
        tasks = [
            Task(question.text, question.image_png, hints[i % len(hints)])
            for i in range(AGENT_COUNT if temperature else 1)
        ]
        sessions = agents.run(tasks, temperature=temperature, seed=0)
        if any(question.check(agents.answer(session)) for session in sessions):
            return question
    raise LookupError("no candidate is answered right")


def main() -> None:
    """Writes the pictures and prints the questions that go with them."""
    agents = Agents(MODEL)
    EXAMPLES.mkdir(exist_ok=True)
    for candidates, temperature in (
        (board_candidates(), 0.0),
        (countdown_candidates(), 0.8),
        (scene_candidates(), 0.0),
    ):
        question = first_right(agents, candidates, temperature)
        assert question.image_png is not None
        (EXAMPLES / f"{question.id}.png").write_bytes(question.image_png)
        print(f"{question.id}.png: {question.text} -> {question.truth}")


if __name__ == "__main__":
    main()
